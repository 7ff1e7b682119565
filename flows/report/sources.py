"""Which lines of the source each value of a record rests on. Pure functions of a record's row."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from connectors.sinks.parquet import span_from_row
from flows.report.words import place

Row = Mapping[str, Any]

_TOP = re.compile(r"[^.\[]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backing:
    """What a record says of the sources of its values, by field such as `points[2]`."""

    citations: Mapping[str, Sequence[Row]]
    claims: Mapping[str, Row]

    def verdict(self, field: str) -> str | None:
        """Return what the check of a sentence found; None where the field is no cited claim."""
        claim = self.claims.get(field)
        return str(claim["verdict"]) if claim else None


def backing(row: Row) -> Backing:
    """Return the citations and claims of a record; records of earlier versions have no claims."""
    citations: dict[str, list[Row]] = defaultdict(list)
    for citation in row.get("citations") or ():
        citations[str(citation["field"])].append(citation)
    return Backing(
        citations=citations, claims={str(c["field"]): c for c in row.get("claims") or ()}
    )


def top_field(field: str) -> str:
    """Return the output field that `points[2].text` is a part of."""
    found = _TOP.match(field)
    return found.group() if found else field


def leaves(value: object, field: str) -> Iterator[tuple[str, object]]:
    """Yield the scalars of an output value, each with its field such as `points[2].text`."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from leaves(inner, f"{field}.{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{field}[{number}]")
    elif value is not None:
        yield field, value


def source_lines(row: Row) -> list[dict[str, Any]]:
    """Return one entry per citation of a record, and one per sentence that cites nothing.

    Each has `field`, `path`, `place`, `quote` and `verdict`, which is None where the field is no cited
    claim.
    """
    found = backing(row)
    lines = [
        {
            "field": field,
            "path": citation.get("path") or row.get("path"),
            "place": place(span_from_row(citation["span"])),
            "quote": citation["quote"],
            "verdict": found.verdict(field),
        }
        for field, citations in found.citations.items()
        for citation in citations
    ]
    bare = [field for field in found.claims if field not in found.citations]
    return lines + [
        {
            "field": field,
            "path": None,
            "place": None,
            "quote": found.claims[field]["quote"],
            "verdict": found.verdict(field),
        }
        for field in bare
    ]
