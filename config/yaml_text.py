"""YAML 1.2, in which `{due: date?, agreed: no}` means what it says; YAML 1.1 reads neither so."""

from __future__ import annotations

from io import StringIO

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

__all__ = ["YAMLError", "dump_yaml", "parse_yaml"]


def parse_yaml(text: str) -> object:
    """Return the value that the text writes: mappings, lists, strings, numbers, dates.

    Raises:
        YAMLError: It is not YAML, or a key occurs twice.
    """
    value: object = YAML(typ="safe", pure=True).load(text)
    return value


def dump_yaml(value: object) -> str:
    """Return the YAML of mappings, lists and plain values, keys in their order; `parse_yaml` reads it back."""
    # The safe kind would sort the keys.
    yaml = YAML(typ="rt", pure=True)
    yaml.default_flow_style = False
    yaml.width = 2**16
    out = StringIO()
    yaml.dump(value, out)
    return out.getvalue()
