"""What a grammar for structured output cannot express, found before a request is paid for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

Grammar = Literal["xgrammar", "any"]

_XGRAMMAR_FORMATS = frozenset({
    "email", "date", "time", "date-time", "duration", "ipv4", "ipv6", "hostname", "uuid", "uri",
    "uri-reference", "uri-template", "json-pointer", "relative-json-pointer",
})  # fmt: skip
_ARRAY_KEYWORDS = ("uniqueItems", "contains", "minContains", "maxContains")
_NEVER = ("patternProperties", "not", "if", "dependentSchemas", "unevaluatedProperties")
_NAMED = frozenset({"properties", "$defs", "definitions"})
_VALUES = frozenset({"enum", "const", "default", "examples"})


def inexpressible(schema: Mapping[str, Any], grammar: Grammar) -> str | None:
    """Return the first keyword that the grammar cannot express, with its place; None where all can.

    Source: vLLM 0.32, v1/structured_output/backend_xgrammar.py and backend_guidance.py: with the
    backend `xgrammar` such a schema is answered with 400; with `auto` another backend takes over,
    but for what none can do.
    """
    return next(_problems(schema, grammar, "output"), None)


def _problems(schema: Mapping[str, Any], grammar: Grammar, place: str) -> Iterator[str]:
    for keyword in _NEVER:
        if keyword in schema:
            yield f"{place}: {keyword!r}"
    if str(schema.get("$ref", "#")).partition("#")[0]:
        yield f"{place}: '$ref' to another file"
    if grammar == "xgrammar":
        yield from _xgrammar_problems(schema, place)
    for name, inner in _inner(schema):
        yield from _problems(inner, grammar, f"{place}.{name}")


def _inner(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the schemas inside a schema, with where they stand."""
    for keyword, sub in schema.items():
        if keyword in _NAMED and isinstance(sub, Mapping):
            # The names below are the pipeline's own, not keywords.
            found = list(sub.items())
        elif keyword in _VALUES:
            found = []
        elif isinstance(sub, list):
            found = [(f"{keyword}[{number}]", inner) for number, inner in enumerate(sub)]
        else:
            found = [(keyword, sub)]
        yield from ((str(name), inner) for name, inner in found if isinstance(inner, Mapping))


def _xgrammar_problems(schema: Mapping[str, Any], place: str) -> Iterator[str]:
    kind = schema.get("type")
    kinds = set(kind) if isinstance(kind, list) else {kind}
    if kinds & {"integer", "number"} and "multipleOf" in schema:
        yield f"{place}: 'multipleOf'"
    if "array" in kinds:
        yield from (f"{place}: {word!r}" for word in _ARRAY_KEYWORDS if word in schema)
    if "string" in kinds:
        if schema.get("format", "date") not in _XGRAMMAR_FORMATS:
            yield f"{place}: 'format: {schema['format']}'"
        if {"format", "pattern"} & set(schema) and {"minLength", "maxLength"} & set(schema):
            yield f"{place}: a length beside 'pattern' or 'format'"
    if "propertyNames" in schema:
        yield f"{place}: 'propertyNames'"
    if len(schema.get("allOf", ())) > 1:
        yield f"{place}: 'allOf' with several branches"
