"""Checks a quote: whether it stands in the lines that a statement is said to rest on, and where."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from connectors.citations import Quotable
from engine.tool import Aside, ToolAnswer, ToolError, ToolSpec
from tools.corpus import Corpus, Entry
from tools.labels import Place, find_lines, shown_line, shown_place
from tools.tool import Arguments, Scope, spec_of

_NEAR = 4
"""Lines around a named one that a quote may run over."""
_FAR = 1000
"""Lines around a named one in which a quote is looked for that does not stand there."""
_MOST_LABELS = 8
_MOST_RANGE = 40
_OWN_LABEL = re.compile(r"\[\s*D\d+L\d+\s*\]\s*", re.IGNORECASE)
_NUMBER = re.compile(r"\d[\d.,]*\d|\d")


class CiteArguments(Arguments):
    """A statement and what it rests on."""

    claim: str = Field(min_length=1)
    """The statement, in one sentence."""
    lines: tuple[str, ...] = Field(min_length=1, max_length=_MOST_LABELS)
    """Labels of the lines it rests on, such as D3L120, or a range such as D3L120-L124."""
    quote: str = Field(min_length=1)
    """A few words of those lines, copied exactly."""


class Cite:
    """Says whether a quote stands where a statement claims, before the statement is made."""

    spec: ToolSpec = spec_of(
        "cite",
        "Checks that a quote stands in the lines that a statement rests on, and gives the exact label and"
        " place to cite. Use it before stating what others will rely on.",
        CiteArguments,
    )

    def __init__(self, scope: Scope) -> None:
        self._corpus = scope.corpus

    async def call(self, arguments: Mapping[str, Any], aside: Aside) -> ToolAnswer:  # noqa: ARG002
        """Return the verified label, or what is wrong.

        Raises:
            ToolError: There is no such line.
        """
        return await asyncio.to_thread(self._check, CiteArguments.of(arguments))

    def _check(self, asked: CiteArguments) -> ToolAnswer:
        places = [
            place
            for label in asked.lines
            for place in find_lines(self._corpus, label, most=_MOST_RANGE)
        ]
        quote = _OWN_LABEL.sub("", asked.quote)
        if not any(map(str.isalnum, quote)):
            raise ToolError("the quote has no words; copy some from the lines")
        found, is_near = self._find(quote, places)
        if not found:
            said = "\n".join(
                shown_line(place.label, place.segment) for place in places[:_MOST_LABELS]
            )
            return ToolAnswer(
                text="NOT VERIFIED: the quote does not stand in these lines or close by. Copy the words"
                f" exactly, or cite other lines. The lines say:\n{said}"
            )
        label = found[0].label if len(found) == 1 else f"{found[0].label}-L{found[-1].number}"
        where = shown_place(found[0].entry, [place.segment.span for place in found])
        moved = "" if is_near else " It does not stand in the lines given: cite this label instead."
        lines = [shown_line(place.label, place.segment) for place in found]
        text = f"VERIFIED [{label}]: the quote stands in {where}.{moved}\n" + "\n".join(lines)
        return ToolAnswer(text=text + _unsaid(asked.claim, [*places, *found]))

    def _find(self, quote: str, places: Sequence[Place]) -> tuple[list[Place], bool]:
        """Return the lines that the quote stands in, and whether they are those named or beside them."""
        for place in places:
            if found := _stands(self._corpus, place, quote, reach=_NEAR):
                return found, True
        looked: set[str] = set()
        for place in places:
            if place.entry.label in looked:
                continue
            looked.add(place.entry.label)
            if found := _stands(self._corpus, place, quote, reach=_FAR):
                return found, False
        return [], False


def _stands(corpus: Corpus, place: Place, quote: str, *, reach: int) -> list[Place]:
    """Return the lines around a place that a quote stands in; those that are or touch it first."""
    entry: Entry = place.entry
    first = max(1, place.number - reach)
    segments = corpus.lines(entry.label)[first - 1 : place.number + reach]
    quotable = Quotable([segment.text for segment in segments])
    run = quotable.find(quote, among=(place.number - first,)) or quotable.find(quote)
    return [
        Place(entry=entry, number=first + index, segment=segments[index]) for index in run or ()
    ]


def _unsaid(claim: str, places: Sequence[Place]) -> str:
    """Return a note on numbers of the claim that its lines do not have; empty where they have all."""
    quotable = Quotable([place.segment.text for place in places])
    unlabelled = re.sub(r"D\d+L\d+", "", claim)
    numbers = dict.fromkeys(_NUMBER.findall(unlabelled))
    missing = [number for number in numbers if quotable.find(number) is None]
    if not missing:
        return ""
    return (
        f"\nNote: the claim says {', '.join(missing[:5])}, which the lines do not; make sure that it"
        " follows from them, or cite the lines that say it."
    )
