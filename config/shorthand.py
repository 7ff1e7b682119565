"""Output fields in short: `{party: string, amount: decimal?, tags: [string]}` as a JSON Schema.

A type is a word of `TYPES`, alternatives in quotes or bare (`yes|no|unclear`), a list `[type]`, or
nested fields `{...}`; a question mark behind it lets the field be null. Used for `output:` in a
pipeline and for `headrace ask --fields`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from config.errors import ConfigError
from config.yaml_text import YAMLError, parse_yaml
from connectors.sinks.parquet import CLAIM_FORMAT, LABEL_FORMAT

TYPES: Mapping[str, Mapping[str, Any]] = {
    # No maxLength: a grammar for one of 400 takes xgrammar 2.7 s to compile, without it 13 ms, and
    # labels make every chunk's grammar a new one. A stage's max_output_tokens is the bound.
    "string": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    # A pattern besides the format: engines constrain decoding with it, so the value parses.
    "decimal": {
        "type": "string",
        "format": "decimal",
        "pattern": r"^-?[0-9]{1,24}(\.[0-9]{1,9})?$",
    },
    "boolean": {"type": "boolean"},
    "date": {
        "type": "string",
        "format": "date",
        "pattern": r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$",
    },
    "line": {"type": "string", "format": LABEL_FORMAT},
    "cited": {"type": "string", "format": CLAIM_FORMAT},
}
"""Schema by type word. `line` is answered with a line of the document, verbatim and with its place;
`cited` with the model's own sentence, the lines it rests on and a quote from them."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_CHOICES = re.compile(r"[^|{}\[\],:]+(\|[^|{}\[\],:]+)+")


def is_json_schema(value: Mapping[str, Any]) -> bool:
    """Tell whether an `output` mapping is a JSON Schema rather than fields in short."""
    return isinstance(value.get("properties"), Mapping) or bool({"$schema", "$ref"} & set(value))


def parse_fields(text: str, where: str) -> dict[str, Any]:
    """Return the JSON Schema of fields written as `name: type, name: type`.

    Raises:
        ConfigError: The text is no list of fields; the message begins with `where`.
    """
    inner = text.strip()
    inner = inner if inner.startswith("{") else "{" + inner + "}"
    try:
        fields = parse_yaml(inner)
    except YAMLError as exc:
        raise ConfigError(f"{where}: {text!r} is no list of fields; {_EXAMPLE}") from exc
    if not isinstance(fields, dict) or not fields:
        raise ConfigError(f"{where}: {text!r} is no list of fields; {_EXAMPLE}")
    return fields_to_schema(fields, where)


_EXAMPLE = 'write for example "vendor: string, amount: decimal, due: date?"'


def fields_to_schema(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the JSON Schema of an object with these fields, all required.

    Raises:
        ConfigError: A name or a type is wrong; the message begins with `where`.
    """
    for name in fields:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"{where}: field name {name!r} must be letters, digits and _, not begin with a"
                " digit, and have at most 63 characters"
            )
    return {
        "type": "object",
        "properties": {name: _schema(kind, f"{where}.{name}") for name, kind in fields.items()},
        "required": list(fields),
        "additionalProperties": False,
    }


def _schema(kind: object, where: str) -> dict[str, Any]:
    if isinstance(kind, list):
        if len(kind) != 1:
            raise ConfigError(f"{where}: a list has one type, such as [string]; got {kind!r}")
        return {"type": "array", "items": _schema(kind[0], f"{where}[]"), "maxItems": 100}
    if isinstance(kind, Mapping):
        if is_json_schema(kind) or "type" in kind:
            return dict(kind)
        return fields_to_schema(kind, where)
    if kind is None:
        # YAML reads `{vendor, amount}` as names without values.
        return dict(TYPES["string"])
    return _word(str(kind).strip(), where)


def _word(word: str, where: str) -> dict[str, Any]:
    optional = word.endswith("?")
    word = word.removesuffix("?").strip()
    if _CHOICES.fullmatch(word):
        schema: dict[str, Any] = {"enum": [choice.strip() for choice in word.split("|")]}
        return {**schema, "enum": [*schema["enum"], None]} if optional else schema
    if word not in TYPES:
        near = difflib.get_close_matches(word, TYPES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"{where}: unknown type {word!r}; types: {', '.join(TYPES)}, a|b|c for a choice,"
            f" [type] for a list{hint}"
        )
    schema = dict(TYPES[word])
    if not optional:
        return schema
    # A label stays a label: a line that is not there is answered with null by the binding.
    return {**schema, "type": [schema["type"], "null"]}
