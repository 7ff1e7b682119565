"""A stage's JSON Schema as typed columns, and its answers as their values.

What has no closed type is kept as JSON text. docs/tables.md has the whole mapping.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from connectors.sinks.values import BOOLEAN, FORMATS, INTEGER, JSON, NUMBER, STRING, Kind

_Refs = tuple[str, ...]

_CLOSING = ("type", "enum", "const", "properties", "items", "anyOf", "oneOf", "allOf")
"""Keywords that a column's type follows from."""


def output_kinds(output: Mapping[str, Any]) -> dict[str, Kind]:
    """Return how a stage's output fields are stored, by name, in the order of its schema.

    Raises:
        ValueError: A `$ref` leads nowhere, or readers would rename a column.
    """
    properties = output.get("properties", {})
    _check_names(properties)
    return {name: _kind(spec, output, ()) for name, spec in properties.items()}


def _check_names(names: Iterable[str]) -> None:
    """Check that every reader has the fields by their own names: DuckDB is blind to case.

    Raises:
        ValueError: A name is empty, or is another one in capitals.
    """
    seen: dict[str, str] = {}
    for name in names:
        if not name:
            raise ValueError("an output field has an empty name; give it one")
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise ValueError(
                f"output fields {other!r} and {name!r} differ in case only, which DuckDB does not"
                " tell apart; rename one"
            )


def arrow_type(spec: Mapping[str, Any]) -> pa.DataType:
    """Return the Arrow type of one JSON Schema."""
    return _kind(spec, spec, ()).arrow


def output_values(output: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, object]:
    """Return an answer as values of the output columns; None for what it does not hold.

    Raises:
        ValueError: A column cannot hold a value as it is; the message names field, value and limit.
    """
    return {name: _put(kind, answer.get(name), name) for name, kind in output_kinds(output).items()}


def describe_columns(output: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return names and types of the output columns, in order.

    Equal lists mean that parts can be read as one table. They do not depend on Arrow's version.
    """
    return [{"name": name, "type": kind.name} for name, kind in output_kinds(output).items()]


def _put(kind: Kind, value: object, field: str) -> object:
    return None if value is None else kind.store(value, field)


_STRINGS = frozenset({STRING.name, *(kind.name for kind in FORMATS.values())})
_NUMBERS = frozenset({INTEGER.name, NUMBER.name})


def _kind(spec: object, root: Mapping[str, Any], refs: _Refs) -> Kind:
    """Return how values of a schema inside `root` are stored; `refs` lead from the root to it."""
    if not isinstance(spec, Mapping):
        return JSON
    if "$ref" in spec:
        return _referred(spec, root, refs)
    if "type" not in spec:
        return _untyped(spec, root, refs)
    named = spec["type"] if isinstance(spec["type"], list) else [spec["type"]]
    kinds = [_typed(name, spec, root, refs) for name in named if name != "null"]
    return _common(kinds)


def _typed(name: str, spec: Mapping[str, Any], root: Mapping[str, Any], refs: _Refs) -> Kind:
    if name == "string":
        return FORMATS.get(str(spec.get("format")), STRING)
    if name == "array":
        return _array(spec, root, refs)
    if name == "object":
        return _object(spec, root, refs)
    return {"integer": INTEGER, "number": NUMBER, "boolean": BOOLEAN}[name]


def _untyped(spec: Mapping[str, Any], root: Mapping[str, Any], refs: _Refs) -> Kind:
    if "const" in spec or "enum" in spec:
        return _common([
            _of_value(value) for value in spec.get("enum", [spec.get("const")]) if value is not None
        ])
    for keyword in ("anyOf", "oneOf"):
        if keyword in spec:
            return _common([_kind(s, root, refs) for s in spec[keyword] if not _is_null(s)])
    parts = spec.get("allOf", ())
    return _kind(parts[0], root, refs) if len(parts) == 1 else JSON


def _is_null(spec: object) -> bool:
    return isinstance(spec, Mapping) and (
        spec.get("type") == "null" or spec.get("const", ...) is None or spec.get("enum") == [None]
    )


def _of_value(value: object) -> Kind:
    plain = {str: STRING, bool: BOOLEAN, int: INTEGER, float: NUMBER}
    return plain.get(type(value), JSON)


def _common(kinds: Sequence[Kind]) -> Kind:
    """Return what holds values of all the kinds as they are; of none, a string that is always null."""
    names = {kind.name for kind in kinds}
    if len(names) == 1:
        return kinds[0]
    if names <= _STRINGS:
        return STRING
    return NUMBER if names <= _NUMBERS else JSON


def _referred(spec: Mapping[str, Any], root: Mapping[str, Any], refs: _Refs) -> Kind:
    ref = str(spec["$ref"])
    if ref in refs:
        # Arrow has no type that holds itself.
        return JSON
    target = _resolve(ref, root)
    beside = {key: value for key, value in spec.items() if key != "$ref"}
    if not isinstance(target, Mapping) or any(key in beside and key in target for key in _CLOSING):
        return JSON
    return _kind({**target, **beside}, root, (*refs, ref))


def _resolve(ref: str, root: Mapping[str, Any]) -> object:
    """Return what a reference such as `#/$defs/party` means.

    Raises:
        ValueError: It leads nowhere, or out of the schema.
    """
    found: object = root
    head, *steps = ref.split("/")
    for step in steps if head == "#" else ["?"]:
        name = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or name not in found:
            raise ValueError(
                f"$ref {ref!r} leads nowhere; write it as '#/$defs/NAME', and put NAME under $defs"
                " of the same schema"
            )
        found = found[name]
    return found


def _array(spec: Mapping[str, Any], root: Mapping[str, Any], refs: _Refs) -> Kind:
    if "prefixItems" in spec or not isinstance(spec.get("items"), Mapping):
        return JSON
    item = _kind(spec["items"], root, refs)

    def store(value: Sequence[object], field: str) -> object:
        return [_put(item, each, f"{field}[{number}]") for number, each in enumerate(value)]

    return Kind(name=f"list<{item.name}>", arrow=pa.list_(item.arrow), store=store)


def _object(spec: Mapping[str, Any], root: Mapping[str, Any], refs: _Refs) -> Kind:
    is_open = bool(spec.get("additionalProperties")) or "patternProperties" in spec
    if is_open or not spec.get("properties"):
        # Parquet has no struct without fields.
        return JSON
    _check_names(spec["properties"])
    kinds = {name: _kind(sub, root, refs) for name, sub in spec["properties"].items()}

    def store(value: Mapping[str, object], field: str) -> object:
        return {
            name: _put(kind, value.get(name), f"{field}.{name}") for name, kind in kinds.items()
        }

    inner = ", ".join(f"{json.dumps(name)}: {kind.name}" for name, kind in kinds.items())
    arrow = pa.struct([(name, kind.arrow) for name, kind in kinds.items()])
    return Kind(name=f"struct<{inner}>", arrow=arrow, store=store)
