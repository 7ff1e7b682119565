"""YAML 1.2, in which `{due: date?, agreed: no}` means what it says; YAML 1.1 reads neither so."""

from __future__ import annotations

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

__all__ = ["YAMLError", "parse_yaml"]


def parse_yaml(text: str) -> object:
    """Return the value that the text writes: mappings, lists, strings, numbers, dates.

    Raises:
        YAMLError: It is not YAML, or a key occurs twice.
    """
    value: object = YAML(typ="safe", pure=True).load(text)
    return value
