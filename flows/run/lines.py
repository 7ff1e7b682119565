"""What a stage is shown of earlier answers: one line per statement, with the places it rests on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, overload

from connectors.document import Document, Segment, Span
from flows.run.labels import Citation, Claim, Line, Origin, Verdict, worst


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """An earlier answer."""

    output: Mapping[str, Any]
    citations: Sequence[Citation]
    claims: Sequence[Claim]
    begins: Origin | None = None
    """Where what was asked about begins; stands in for what the answer does not cite."""


class DocumentLines(Sequence[Line]):
    """A document's segments as lines, made when they are looked at: most answers name none of them."""

    def __init__(
        self, document: Document, segments: Sequence[Segment], shown: Segment | None = None
    ) -> None:
        """Take the segments as the document has them; `shown`: a row's as the model is shown it."""
        self._document, self._segments, self._shown = document, segments, shown

    @cached_property
    def _lines(self) -> list[Line]:
        return [
            Line(segment=s, origins=(origin(self._document, s),), shown=self._shown)
            for s in self._segments
        ]

    def __len__(self) -> int:
        """Return how many lines there are."""
        return len(self._segments)

    @overload
    def __getitem__(self, index: int) -> Line: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Line]: ...
    def __getitem__(self, index: int | slice) -> Line | Sequence[Line]:
        """Return the line at a place, or those between two."""
        return self._lines[index]


def origin(document: Document, segment: Segment) -> Origin:
    """Return the place of a document's segment."""
    return Origin(path=document.source.path, document_key=document.document_key, segment=segment)


def heading(text: str) -> Line:
    """Return a line that says what the next ones are about; nothing can rest on it."""
    segment = Segment(kind="heading", text=" ".join(text.split()), span=Span())
    return Line(segment=segment, origins=(), verdict="unsourced")


def lines_of(given: Given) -> list[Line]:
    """Return what an answer says: a line per claim, per quoted line and per object in a list.

    Fields that cite nothing come together in one line, which stands where the answer begins.
    """
    places = _Places(given)
    lines: list[Line] = []
    uncited: list[str] = []
    prefixed = len(given.output) > 1
    for name, value in given.output.items():
        if value is None or value in ("", [], {}):
            continue
        entries = (
            [(f"{name}[{number}]", item) for number, item in enumerate(value)]
            if isinstance(value, list)
            else [(name, value)]
        )
        if not any(places.below(field) or places.claims_below(field) for field, _ in entries):
            uncited.append(f"{name}: {_said(value)}")
            continue
        for field, item in entries:
            lines.extend(_entry(places, field, item, name if prefixed else ""))
    if uncited:
        begins = (given.begins,) if given.begins else places.all()
        lines.append(_line("; ".join(uncited), begins, "unsourced"))
    return lines


def _entry(places: _Places, field: str, value: object, name: str) -> Iterator[Line]:
    """Yield the lines of one statement."""
    claim = places.claims.get(field)
    found = places.below(field)
    if isinstance(value, str) and claim is None and found:
        # A line of the document, as it stands there.
        yield Line(segment=replace(found[0].segment, label="", text=value), origins=found)
        return
    text = _said(value)
    verdicts = [one.verdict for one in places.claims_below(field)]
    if claim is not None and claim.quote.strip() and claim.quote.strip() != claim.text.strip():
        text = f"{text} («{claim.quote.strip()}»)"
    yield _line(f"{name}: {text}" if name else text, found, worst(verdicts))


def _line(text: str, origins: tuple[Origin, ...], verdict: Verdict) -> Line:
    first = origins[0].segment if origins else None
    segment = Segment(
        kind="paragraph",
        text=" ".join(text.split()),
        span=first.span if first else Span(),
        tier=first.tier if first else "native",
    )
    return Line(segment=segment, origins=origins, verdict=verdict)


class _Places:
    """The citations and claims of an answer, by field."""

    def __init__(self, given: Given) -> None:
        self.claims = {claim.field: claim for claim in given.claims}
        self._origins: dict[str, list[Origin]] = defaultdict(list)
        for citation in given.citations:
            self._origins[citation.field].append(citation.origin)

    def below(self, field: str) -> tuple[Origin, ...]:
        """Return the places of a field and of what is inside it; also of an unsourced claim, none."""
        found = (
            origin
            for name, origins in self._origins.items()
            if _is_below(name, field)
            for origin in origins
        )
        return tuple(dict.fromkeys(found))

    def claims_below(self, field: str) -> list[Claim]:
        """Return the claims in a field."""
        return [claim for name, claim in self.claims.items() if _is_below(name, field)]

    def all(self) -> tuple[Origin, ...]:
        """Return the places of all fields."""
        return tuple(
            dict.fromkeys(origin for origins in self._origins.values() for origin in origins)
        )


def _is_below(name: str, field: str) -> bool:
    return name == field or name.startswith((f"{field}.", f"{field}["))


def _said(value: object) -> str:
    if isinstance(value, Mapping):
        return "; ".join(
            f"{name}: {_said(item)}" for name, item in value.items() if item is not None
        )
    if isinstance(value, list | tuple):
        return ", ".join(_said(item) for item in value)
    return "" if value is None else str(value)


def relabelled(lines: Sequence[Line]) -> list[Line]:
    """Return the lines, each once, under the labels L1, L2 and on."""
    found: dict[tuple[object, ...], Line] = {}
    for line in lines:
        found.setdefault((line.segment.text, line.segment.span, line.origins), line)
    return [
        replace(line, segment=line.segment.with_label(f"L{number}"))
        for number, line in enumerate(found.values(), start=1)
    ]
