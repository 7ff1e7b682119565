"""Labels in answers: bound into the schema before a request, resolved to text and places after it.

A string of format `segment-label` may only be the label of a line that the model was shown; what is
stored is the line's text, and a citation says where it stands. Two keywords narrow the choice:
`segmentKinds` (a list of heading, paragraph, table, image) and `minWords`; where no line meets them, all
lines stay open, so that there is always an answer.

A string of format `cited-claim` is asked for as a sentence with the labels of the lines it rests on and a
quote from them. What is stored is the sentence; a claim says whether the quote stands there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from connectors.citations import Quotable
from connectors.document import Segment
from connectors.sinks.parquet import CLAIM_FORMAT, LABEL_FORMAT

Verdict = Literal["verified", "not_found", "unsourced"]

_KINDS, _MIN_WORDS = "segmentKinds", "minWords"
_KEYWORDS = frozenset({"format", _KINDS, _MIN_WORDS})
_MOST_LINES = 8
"""Most lines that one sentence may name."""
_Place = tuple[str | int, ...]
"""Keys and numbers on the way to an inner schema."""
_NEAR = 4
"""Lines around a named one that a quote may run over."""
MOST_PLACES = 32
"""Most places that are kept for one sentence, those of its quote first: one about a corpus rests, by way of
many others, on thousands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A place in a document that an answer rests on."""

    path: str
    document_key: str
    segment: Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line that the model is shown, and where what it says stands."""

    segment: Segment
    origins: tuple[Origin, ...]
    """One for a line of a document; those of its own lines for what an earlier answer says."""
    shown: Segment | None = None
    """The line as the model is shown it, where that is not how its document has it: a row by fields."""
    verdict: Verdict | None = None
    """What became of the claim that it repeats; None for a document's own text."""

    @property
    def as_shown(self) -> Segment:
        """Return what the model is shown, and quotes."""
        return self.shown or self.segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Citation:
    """One field of an answer and a place that it rests on."""

    field: str
    """Name of the output field; `names[2].title` inside lists and objects."""
    label: str
    """Of the line that the model was shown."""
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One sentence of an answer, and whether what it quotes stands where it says."""

    field: str
    text: str
    quote: str
    verdict: Verdict


def is_label(schema: Mapping[str, Any]) -> bool:
    """Tell whether the answer to `schema` is a segment's label."""
    return schema.get("format") == LABEL_FORMAT


def is_claim(schema: Mapping[str, Any]) -> bool:
    """Tell whether the answer to `schema` is a sentence with lines and a quote."""
    return schema.get("format") == CLAIM_FORMAT


def _claim(label: str) -> dict[str, Any]:
    """Return the schema of a claim on lines whose labels are of this pattern."""
    return {
        "type": "object",
        # What it rests on comes first, so that the sentence follows from it.
        "properties": {
            "lines": {
                "type": "array",
                "items": {"type": "string", "pattern": label},
                "maxItems": _MOST_LINES,
                "description": "labels of the lines that the text rests on",
            },
            "quote": {
                "type": "string",
                "description": "a few words of those lines, copied exactly",
            },
            "text": {"type": "string", "description": "one sentence"},
        },
        "required": ["lines", "quote", "text"],
        "additionalProperties": False,
    }


_CLAIM = _claim("^L[0-9]{1,6}$")
_FOUND_CLAIM = _claim("^(L[0-9]{1,6}|D[0-9]{1,7}L[0-9]{1,8})$")
"""An agent's: it names lines that it was not shown at the start."""


def bind_labels(schema: Mapping[str, Any], segments: Sequence[Segment]) -> dict[str, Any]:
    """Return the schema as it is sent: label fields closed to the labels of `segments`."""
    return Binding(schema).to(segments)


class Binding:
    """A schema made ready to be bound to the lines of one question after the other.

    Claims name lines by a pattern: a choice of thousands of labels in each of them would be a grammar
    too large to compile, and a label that is not there is told by the check of the quote.
    """

    def __init__(self, schema: Mapping[str, Any], *, finds: bool = False) -> None:
        """Prepare the schema.

        Args:
            schema: Of the stage.
            finds: Whether claims may name lines that an agent has found by tools.
        """
        self._claim = _FOUND_CLAIM if finds else _CLAIM
        self._labels: list[tuple[_Place, Mapping[str, Any]]] = []
        self._bound = self._prepared(schema, ())

    @property
    def has_labels(self) -> bool:
        """Tell whether it depends on the lines at all."""
        return bool(self._labels)

    def to(self, segments: Sequence[Segment]) -> dict[str, Any]:
        """Return the schema as it is sent about these lines; what does not depend on them is shared."""
        bound = self._bound
        for place, schema in self._labels:
            bound = _with(bound, place, _closed(schema, segments))
        return bound

    def _prepared(self, schema: Mapping[str, Any], place: _Place) -> dict[str, Any]:
        """Return the schema without what is ours, and take down where labels are to be bound."""
        if is_label(schema):
            self._labels.append((place, schema))
            return {}
        if is_claim(schema):
            return {
                **self._claim,
                "type": ["object", "null"] if "null" in schema["type"] else "object",
            }
        # `decimal` is a format of ours; engines refuse a grammar with a format that they do not know.
        ours = schema.get("format") == "decimal"
        bound = {key: value for key, value in schema.items() if not (ours and key == "format")}
        for keyword in ("properties", "$defs", "definitions"):
            if isinstance(named := schema.get(keyword), Mapping):
                bound[keyword] = {
                    name: self._inner(sub, (*place, keyword, name)) for name, sub in named.items()
                }
        for keyword in ("anyOf", "oneOf", "allOf"):
            if keyword in schema:
                bound[keyword] = [
                    self._inner(sub, (*place, keyword, number))
                    for number, sub in enumerate(schema[keyword])
                ]
        if isinstance(items := schema.get("items"), Mapping):
            bound["items"] = self._prepared(items, (*place, "items"))
        return bound

    def _inner(self, schema: object, place: _Place) -> object:
        """Return an inner schema prepared; `true` and `false` are schemas too."""
        return self._prepared(schema, place) if isinstance(schema, Mapping) else schema


def _with(value: Any, place: _Place, leaf: object) -> Any:  # noqa: ANN401 - any JSON
    """Return the value with another leaf at a place; what is not on the way there is shared."""
    if not place:
        return leaf
    copied = value.copy()
    copied[place[0]] = _with(value[place[0]], place[1:], leaf)
    return copied


def _closed(schema: Mapping[str, Any], segments: Sequence[Segment]) -> dict[str, Any]:
    """Return the schema of a label as the choice between those of the lines."""
    plain = {key: value for key, value in schema.items() if key not in _KEYWORDS}
    labels: list[str | None] = [segment.label for segment in _open_to(schema, segments)]
    return {**plain, "enum": [*labels, None] if "null" in schema["type"] else labels}


def _open_to(schema: Mapping[str, Any], segments: Sequence[Segment]) -> Sequence[Segment]:
    kinds, min_words = schema.get(_KINDS), schema.get(_MIN_WORDS, 0)
    if not kinds and not min_words:
        return segments
    chosen = [
        segment
        for segment in segments
        if (not kinds or segment.kind in kinds) and len(segment.text.split()) >= min_words
    ]
    return chosen or segments


class Shown:
    """The lines that a model was shown, to look up what it names."""

    def __init__(self, lines: Sequence[Line]) -> None:
        """Take the lines in the order in which they were shown."""
        self._lines = lines

    @cached_property
    def _index(self) -> Mapping[str, int]:
        return {line.segment.label: number for number, line in enumerate(self._lines)}

    @cached_property
    def _quotable(self) -> Quotable:
        return Quotable([line.as_shown.text for line in self._lines])

    def line(self, label: str) -> Line:
        """Return the line with a label that the schema was bound to."""
        return self._lines[self._index[label]]

    def judge(self, answer: Mapping[str, Any]) -> tuple[Verdict, list[Line]]:
        """Return what became of a claim, and the lines that it rests on.

        The quote decides, wherever it stands; a claim is no better than those it rests on.
        """
        named = {self._index[label] for label in answer["lines"] if label in self._index}
        wanted = answer["quote"] if answer["quote"].strip() else answer["text"]
        if not answer["lines"] and not answer["quote"].strip():
            return "unsourced", []
        found = self._find_near(wanted, named) or self._quotable.find(wanted)
        # Where the quote stands comes first.
        numbers = [*(found or ()), *sorted(named.difference(found or ()))]
        lines = [self._lines[number] for number in numbers]
        if found is None:
            return "not_found", lines
        return worst(self._lines[number].verdict for number in found), lines

    def _find_near(self, quote: str, named: Collection[int]) -> range | None:
        """Return the lines at the named ones that a quote stands in.

        Most quotes stand there, and to make all of a long chunk ready takes a second.
        """
        for number in sorted(named):
            first = max(0, number - _NEAR)
            near = [line.as_shown.text for line in self._lines[first : number + _NEAR + 1]]
            found = Quotable(near).find(quote, among=(number - first,))
            if found is not None:
                return range(found.start + first, found.stop + first)
        return None


def worst(verdicts: Iterable[Verdict | None]) -> Verdict:
    """Return the verdict on what rests on all of these; None is a document's own text."""
    found = set(verdicts)
    if "unsourced" in found:
        return "unsourced"
    return "not_found" if "not_found" in found else "verified"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """An answer without labels."""

    output: dict[str, Any]
    citations: tuple[Citation, ...]
    """In field order; one per place."""
    claims: tuple[Claim, ...]


def resolve_labels(
    schema: Mapping[str, Any], answer: Mapping[str, Any], lines: Sequence[Line]
) -> Resolved:
    """Return the answer with labels replaced by text, its citations and its claims.

    Args:
        schema: The stage's schema, with or without bound labels.
        answer: A valid answer to the bound schema.
        lines: What the model was shown.
    """
    shown = Shown(lines)
    citations: list[Citation] = []
    claims: list[Claim] = []

    def cite(name: str, line: Line) -> None:
        citations.extend(
            Citation(field=name, label=line.segment.label, origin=origin) for origin in line.origins
        )

    def resolve(spec: Mapping[str, Any], value: object, name: str) -> object:
        if is_label(spec) and isinstance(value, str):
            line = shown.line(value)
            cite(name, line)
            return line.segment.text
        if is_claim(spec) and isinstance(value, Mapping):
            verdict, found = shown.judge(value)
            places = dict.fromkeys((line.segment.label, o) for line in found for o in line.origins)
            citations.extend(
                Citation(field=name, label=label, origin=place)
                for label, place in [*places][:MOST_PLACES]
            )
            text, quote = str(value["text"]), str(value["quote"])
            claims.append(Claim(field=name, text=text, quote=quote, verdict=verdict))
            return text
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
    return Resolved(output=resolved, citations=_distinct(citations), claims=tuple(claims))


def _distinct(citations: Sequence[Citation]) -> tuple[Citation, ...]:
    """Return the citations, each place of a field once."""
    found: dict[tuple[object, ...], Citation] = {}
    for one in citations:
        found.setdefault(
            (one.field, one.origin.path, one.origin.segment.text, one.origin.segment.span), one
        )
    return tuple(found.values())
