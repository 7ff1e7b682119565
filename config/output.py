"""What a stage's output schema must be, checked when the pipeline is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema

from connectors.sinks.columns import output_kinds
from connectors.sinks.parquet import CLAIM_FORMAT, LABEL_FORMAT, RESERVED_COLUMNS

_BOUND = frozenset({LABEL_FORMAT, CLAIM_FORMAT})


def check_output(output: Mapping[str, Any]) -> None:
    """Check that answers to a JSON Schema can be columns of a table.

    Raises:
        ValueError: They cannot; the message says which field, and what to do.
    """
    try:
        jsonschema.Draft202012Validator.check_schema(dict(output))
    except jsonschema.SchemaError as exc:
        raise ValueError(f"output is not a JSON Schema: {exc.message}") from exc
    properties = output.get("properties")
    if output.get("type") != "object" or not properties:
        raise ValueError("output must be of type object and have properties")
    taken = sorted(name for name in properties if name.casefold() in RESERVED_COLUMNS)
    if taken:
        raise ValueError(f"output field {taken[0]!r} is a column of every record; rename it")
    output_kinds(output)
    _check_labels(output)


def _check_labels(output: Mapping[str, Any]) -> None:
    """Check that every label is where it is bound to the lines of a chunk.

    Raises:
        ValueError: It is not.
    """
    bound = list(_bound_labels(output))
    if any(label.get("type") not in ("string", ["string", "null"]) for label in bound):
        raise ValueError(
            f"a field of format {LABEL_FORMAT} or {CLAIM_FORMAT} is of type string or [string, 'null']"
        )
    if len(bound) != sum(1 for _ in _labels(output)):
        raise ValueError(
            f"a field of format {LABEL_FORMAT} or {CLAIM_FORMAT} stands under properties or items, not"
            " under anyOf or $defs; where it may be null, write type: [string, 'null']"
        )


def _bound_labels(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if schema.get("format") in _BOUND:
        yield schema
        return
    for inner in (*schema.get("properties", {}).values(), schema.get("items")):
        if isinstance(inner, Mapping):
            yield from _bound_labels(inner)


def _labels(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        if value.get("format") in _BOUND:
            yield value
            return
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _labels(inner)


def formats_in(schema: object) -> set[str]:
    """Return all formats that a schema asks for, at any depth."""
    if isinstance(schema, Mapping):
        own = {str(schema["format"])} if isinstance(schema.get("format"), str) else set()
        return own.union(*map(formats_in, schema.values()))
    return set().union(*map(formats_in, schema)) if isinstance(schema, list) else set()
