"""Labels in answers: bound into the schema before a request, resolved to text and spans after it.

A string of format `segment-label` may only be the label of a line that the model was shown; what is
stored is the line's text, and a citation says where it stands. Two keywords narrow the choice:
`segmentKinds` (a list of heading, paragraph, table, image) and `minWords`; where no line meets them, all
lines stay open, so that there is always an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from connectors.document import Segment
from connectors.sinks.parquet import LABEL_FORMAT

_KINDS, _MIN_WORDS = "segmentKinds", "minWords"
_KEYWORDS = frozenset({"format", _KINDS, _MIN_WORDS})


@dataclass(frozen=True, slots=True, kw_only=True)
class Citation:
    """One field of an answer and the segment it quotes."""

    field: str
    """Name of the output field; `names[2].title` inside lists and objects."""
    segment: Segment


def is_label(schema: Mapping[str, Any]) -> bool:
    """Tell whether the answer to `schema` is a segment's label."""
    return schema.get("format") == LABEL_FORMAT


def bind_labels(schema: Mapping[str, Any], segments: Sequence[Segment]) -> dict[str, Any]:
    """Return the schema as it is sent: label fields closed to the labels of `segments`."""
    if is_label(schema):
        plain = {key: value for key, value in schema.items() if key not in _KEYWORDS}
        labels: list[str | None] = [segment.label for segment in _open_to(schema, segments)]
        return {**plain, "enum": [*labels, None] if "null" in schema["type"] else labels}
    # `decimal` is a format of ours; engines refuse a grammar with a format that they do not know.
    ours = schema.get("format") == "decimal"
    bound = {key: value for key, value in schema.items() if not (ours and key == "format")}
    for keyword in ("properties", "$defs", "definitions"):
        if isinstance(named := schema.get(keyword), Mapping):
            bound[keyword] = {name: _bind(sub, segments) for name, sub in named.items()}
    for keyword in ("anyOf", "oneOf", "allOf"):
        if keyword in schema:
            bound[keyword] = [_bind(sub, segments) for sub in schema[keyword]]
    if isinstance(items := schema.get("items"), Mapping):
        bound["items"] = bind_labels(items, segments)
    return bound


def _bind(schema: object, segments: Sequence[Segment]) -> object:
    """Return an inner schema bound; `true` and `false` are schemas too."""
    return bind_labels(schema, segments) if isinstance(schema, Mapping) else schema


def _open_to(schema: Mapping[str, Any], segments: Sequence[Segment]) -> Sequence[Segment]:
    kinds, min_words = schema.get(_KINDS), schema.get(_MIN_WORDS, 0)
    chosen = [
        segment
        for segment in segments
        if (not kinds or segment.kind in kinds) and len(segment.text.split()) >= min_words
    ]
    return chosen or segments


def resolve_labels(
    schema: Mapping[str, Any], answer: Mapping[str, Any], segments: Mapping[str, Segment]
) -> tuple[dict[str, Any], list[Citation]]:
    """Return the answer with labels replaced by text, and the citations in field order.

    Args:
        schema: The stage's schema, with or without bound labels.
        answer: A valid answer to the bound schema.
        segments: What the model was shown, by label.
    """
    citations: list[Citation] = []

    def resolve(spec: Mapping[str, Any], value: object, name: str) -> object:
        if is_label(spec) and isinstance(value, str):
            citations.append(Citation(field=name, segment=segments[value]))
            return segments[value].text
        if isinstance(value, Mapping):
            specs = spec.get("properties", {})
            return {
                key: resolve(specs.get(key, {}), item, f"{name}.{key}" if name else key)
                for key, item in value.items()
            }
        if isinstance(value, list):
            items = spec.get("items", {})
            return [resolve(items, item, f"{name}[{i}]") for i, item in enumerate(value)]
        return value

    resolved = resolve(schema, answer, "")
    assert isinstance(resolved, dict)
    return resolved, citations
