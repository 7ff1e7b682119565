"""What MCP servers say, made harmless: descriptions, schemas and results, all written by strangers.

They are data for the model. Nothing in them may steer it through marks or hidden characters, make this
process fetch something, or keep it busy.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from mcp_types import (
    CallToolResult,
    EmbeddedResource,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

from connectors.control_marks import disarm
from engine.request import JsonSchema

MAX_DESCRIPTION_CHARS = 1_000
MAX_RESULT_CHARS = 100_000
MAX_ERROR_CHARS = 2_000
_MAX_SCHEMA_BYTES = 16_384
_MAX_DEPTH = 10
_MIN_SECRET_CHARS = 4
_NOT_IN_NAME = re.compile(r"[^A-Za-z0-9_-]")

_VALUES = frozenset({
    "type", "enum", "const", "default", "required", "format", "title", "description", "examples",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength",
    "minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties",
})  # fmt: skip
_SCHEMAS = frozenset({"items", "additionalProperties", "not", "contains"})
_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_NAMED = frozenset({"properties", "$defs", "definitions"})


class SchemaRefused(Exception):
    """A tool's schema cannot be used; the message says why."""


def plain(text: str, secrets: Sequence[str] = (), max_chars: int = MAX_RESULT_CHARS) -> str:
    """Return the text without control and invisible characters, marks of chat templates, and secrets.

    Of a longer one its beginning, and how long it was.
    """
    for secret in secrets:
        if len(secret) >= _MIN_SECRET_CHARS:
            text = text.replace(secret, "[secret]")
    # First, since looking at each of millions of characters takes seconds.
    text = _cut(text, max_chars)
    kept = (
        char
        for char in text
        if char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cf", "Co", "Cs"}
    )
    return disarm("".join(kept))


def _cut(text: str, max_chars: int) -> str:
    if len(text) <= max_chars:
        return text
    return f"{text[:max_chars]}\n(the first {max_chars:,} of {len(text):,} characters)"


def tool_name(server: str, name: str) -> str:
    """Return the name that the model calls; it may be too long."""
    return f"{server}__{_NOT_IN_NAME.sub('_', name)}"


def clean_schema(schema: Mapping[str, Any], secrets: Sequence[str] = ()) -> JsonSchema:
    """Return the schema with the keywords that a model needs, none of which costs more than a look.

    Regular expressions, references to other places and unknown keywords are left out: the server checks
    the arguments itself.

    Raises:
        SchemaRefused: It is no schema of an object, too large, or holds text that cannot be shown as it is.
    """
    if schema.get("type") != "object":
        raise SchemaRefused(
            f"the root of its schema is of type {schema.get('type')!r}, not an object"
        )
    try:
        size = len(orjson.dumps(schema))
    except TypeError as exc:
        raise SchemaRefused("its schema is no JSON") from exc
    if size > _MAX_SCHEMA_BYTES:
        raise SchemaRefused(f"its schema has {size:,} bytes; {_MAX_SCHEMA_BYTES:,} are allowed")
    found: JsonSchema = _clean(schema, secrets, 0)
    return found


def _clean(schema: Any, secrets: Sequence[str], depth: int) -> Any:  # noqa: ANN401 - any JSON
    if depth > _MAX_DEPTH:
        raise SchemaRefused(f"its schema is nested more than {_MAX_DEPTH} deep")
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, Mapping):
        raise SchemaRefused("a part of its schema is no schema")
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _VALUES:
            found[key] = _value(key, value, secrets)
        elif key in _SCHEMAS:
            found[key] = _clean(value, secrets, depth + 1)
        elif key in _LISTS and isinstance(value, Sequence) and not isinstance(value, str):
            found[key] = [_clean(item, secrets, depth + 1) for item in value]
        elif key in _NAMED and isinstance(value, Mapping):
            found[key] = {
                _exact(name): _clean(item, secrets, depth + 1) for name, item in value.items()
            }
        elif key == "$ref":
            found[key] = _reference(value)
    return found


def _value(key: str, value: Any, secrets: Sequence[str]) -> Any:  # noqa: ANN401 - any JSON
    if key in {"title", "description"}:
        return plain(str(value), secrets, MAX_DESCRIPTION_CHARS)
    _exact(value if isinstance(value, str) else orjson.dumps(value).decode())
    return value


def _exact(text: str) -> str:
    """Return a text that the model has to give back as it is.

    Raises:
        SchemaRefused: It cannot be shown as it is.
    """
    if plain(text) != text:
        raise SchemaRefused("its schema has control characters or marks in names or values")
    return text


def _reference(value: object) -> str:
    # Any other would be fetched by who checks arguments.
    if not isinstance(value, str) or not value.startswith(("#/$defs/", "#/definitions/")):
        raise SchemaRefused(f"its schema refers to {str(value)[:80]!r}, outside itself")
    return _exact(value)


def result_text(result: CallToolResult) -> str:
    """Return what a call gave as text; of pictures and sounds that there are some."""
    parts = []
    for item in result.content:
        if isinstance(item, TextContent):
            parts.append(item.text)
        elif isinstance(item, EmbeddedResource) and isinstance(item.resource, TextResourceContents):
            parts.append(item.resource.text)
        elif isinstance(item, ResourceLink):
            parts.append(f"[resource {item.name}: {item.uri}]")
        else:
            parts.append(f"[{item.type}: not shown]")
    if not parts and result.structured_content is not None:
        parts.append(orjson.dumps(result.structured_content).decode())
    return "\n".join(parts)
