"""Reads lines of a document: by their numbers, by page, by cells of a sheet, or by time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pydantic import Field

from connectors.document import Segment, Span, clock
from engine.tool import Aside, ToolAnswer, ToolError, ToolSpec
from tools.cells import Cells
from tools.corpus import Entry
from tools.labels import find_document, lines_there, shown_line, shown_place, shown_text
from tools.tool import Arguments, Scope, spec_of

_MOST_LINES = 400
_MOST_CHARS = 32_000
_MOST_SHEETS = 20
_FOREVER_S = 1e9


class ReadArguments(Arguments):
    """Which lines to read: by line numbers alone, or those of one page, of cells, or of a time."""

    document: str = Field(min_length=1)
    """Label of the document (D3), or its path."""
    from_line: int = Field(default=1, ge=1)
    """The line to begin with, also where a page, cells or a time are given."""
    num_lines: int = Field(default=120, ge=1, le=_MOST_LINES)
    """Most lines."""
    page: int | None = Field(default=None, ge=1)
    """Only lines of this page of a PDF, from 1."""
    sheet: str | None = None
    """Only rows of this sheet of a workbook."""
    cells: str | None = None
    """Only rows that meet this range, such as A5:F20, B:C or 5:20."""
    from_s: float | None = Field(default=None, allow_inf_nan=False)
    """Only what is seen or said in a film at this second or later."""
    to_s: float | None = Field(default=None, allow_inf_nan=False)
    """Only what is seen or said in a film up to this second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """Which lines of a document are asked for."""

    fits: Callable[[Span], bool]
    name: str
    """In words, such as `page 4`; empty where all lines fit."""
    nothing: Callable[[Sequence[Segment]], str]
    """Says what there is where none fits."""


class Read:
    """Gives lines with their labels, and says how to go on."""

    spec: ToolSpec = spec_of(
        "read",
        "Reads lines of one document in order, with their labels: by line numbers, by page, by sheet"
        " and cells, or by time in a film.",
        ReadArguments,
    )

    def __init__(self, scope: Scope) -> None:
        self._corpus = scope.corpus

    async def call(self, arguments: Mapping[str, Any], aside: Aside) -> ToolAnswer:  # noqa: ARG002
        """Return the lines.

        Raises:
            ToolError: There is no such document, line, page, sheet or time, or the ways are mixed.
        """
        return await asyncio.to_thread(self._read, ReadArguments.of(arguments))

    def _read(self, asked: ReadArguments) -> ToolAnswer:
        entry = find_document(self._corpus, asked.document)
        if entry.num_lines == 0:
            raise ToolError(f"{entry.label} has no lines: nothing could be read of it")
        if asked.from_line > entry.num_lines:
            raise ToolError(f"{entry.label} has no line {asked.from_line}; {lines_there(entry)}")
        lines = self._corpus.lines(entry.label)
        choice = _choice(asked, lines)
        if choice is None:
            first = asked.from_line
            numbered = enumerate(islice(lines, first - 1, None), start=first)
            return _shown(entry, numbered, asked.num_lines, "")
        found = (
            (number, line)
            for number, line in enumerate(lines, start=1)
            if number >= asked.from_line and choice.fits(line.span)
        )
        begun = next(found, None)
        if begun is None:
            behind = f" from line {asked.from_line} on" if asked.from_line > 1 else ""
            raise ToolError(
                f"{entry.label} has nothing for {choice.name}{behind}; {choice.nothing(lines)}"
            )
        return _shown(entry, _after(begun, found), asked.num_lines, choice.name)


def _after(
    first: tuple[int, Segment], rest: Iterator[tuple[int, Segment]]
) -> Iterator[tuple[int, Segment]]:
    yield first
    yield from rest


def _shown(
    entry: Entry, found: Iterator[tuple[int, Segment]], most: int, chosen: str
) -> ToolAnswer:
    """Return the lines that fit into an answer, and where the next one is."""
    numbers: list[int] = []
    spans: list[Span] = []
    texts: list[str] = []
    num_chars = 0
    following = None
    for number, line in found:
        text = shown_line(f"{entry.label}L{number}", line)
        if texts and (len(texts) >= most or num_chars + len(text) > _MOST_CHARS):
            following = number
            break
        numbers.append(number)
        spans.append(line.span)
        texts.append(text)
        num_chars += len(text)
    lines = f"lines {numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"line {numbers[0]}"
    of = f"{lines} of {entry.num_lines}{f', those of {chosen}' if chosen else ''}"
    more = f"; go on with from_line={following}" if following is not None else ""
    return ToolAnswer(text="\n".join([shown_place(entry, spans), f"{of}{more}", *texts]))


def _choice(asked: ReadArguments, lines: Sequence[Segment]) -> _Choice | None:
    """Return which lines are asked for; None where it is by their numbers alone.

    Raises:
        ToolError: Ways are mixed, or one is not of this kind of document.
    """
    by_cells = bool((asked.sheet or "").strip() or (asked.cells or "").strip())
    ways = [
        choose
        for is_asked, choose in (
            (asked.page is not None, _by_page),
            (by_cells, _by_cells),
            (asked.from_s is not None or asked.to_s is not None, _by_time),
        )
        if is_asked
    ]
    if len(ways) > 1:
        raise ToolError("give only one of: page; sheet and cells; from_s and to_s")
    return ways[0](asked, lines) if ways else None


def _by_page(asked: ReadArguments, _lines: Sequence[Segment]) -> _Choice:
    def there(lines: Sequence[Segment]) -> str:
        pages = [line.span.page for line in lines if line.span.page is not None]
        if not pages:
            return "it has no pages: read it by from_line"
        return f"its pages with lines are {min(pages)} to {max(pages)}"

    return _Choice(
        fits=lambda span: span.page == asked.page, name=f"page {asked.page}", nothing=there
    )


def _by_cells(asked: ReadArguments, lines: Sequence[Segment]) -> _Choice:
    sheet = _sheet_of(asked.sheet, lines)
    area = None
    if (asked.cells or "").strip():
        # A model may write the sheet in front.
        area = Cells.of((asked.cells or "").rpartition("!")[2])
        if area is None:
            raise ToolError(f"{shown_text(asked.cells or '')!r} is no range of cells; write A5:F20")

    def fits(span: Span) -> bool:
        if span.sheet != sheet:
            return False
        if area is None:
            return True
        own = Cells.of(span.cells or "")
        return own is not None and area.meets(own)

    def there(lines: Sequence[Segment]) -> str:
        ranges = [line.span.cells for line in lines if line.span.sheet == sheet and line.span.cells]
        first, last = (ranges[0], ranges[-1]) if ranges else ("nothing", "nothing")
        return f"its lines run from {first} to {last}"

    name = f"{shown_text(sheet) or 'the table'}{f' {asked.cells}' if area else ''}"
    return _Choice(fits=fits, name=shown_text(name), nothing=there)


def _sheet_of(wanted: str | None, lines: Sequence[Segment]) -> str:
    """Return the sheet that is asked for.

    Raises:
        ToolError: There is none of that name, or several and none is named.
    """
    sheets = list(dict.fromkeys(s for line in lines if (s := line.span.sheet) is not None))
    if not sheets:
        raise ToolError("the document has no sheets: read it by from_line")
    named = ", ".join(repr(shown_text(name)) for name in sheets[:_MOST_SHEETS])
    if sheets == [""]:
        # A table without a name, whatever it is called.
        return ""
    if not (wanted or "").strip():
        if len(sheets) > 1:
            raise ToolError(f"cells need a sheet; its sheets are {named}")
        return sheets[0]
    folded = (wanted or "").strip().casefold()
    found = [sheet for sheet in sheets if sheet.casefold() == folded]
    if not found:
        raise ToolError(f"there is no sheet {shown_text(wanted or '')!r}; its sheets are {named}")
    return found[0]


def _by_time(asked: ReadArguments, _lines: Sequence[Segment]) -> _Choice:
    start = -_FOREVER_S if asked.from_s is None else max(-_FOREVER_S, asked.from_s)
    end = _FOREVER_S if asked.to_s is None else min(_FOREVER_S, asked.to_s)
    if end < start or start >= _FOREVER_S:
        raise ToolError("to_s must not be before from_s")

    def fits(span: Span) -> bool:
        if span.t0 is None:
            return False
        until = span.t1 if span.t1 is not None else span.t0
        # What ends where the time begins is over.
        return span.t0 <= end and (until > start or span.t0 >= start)

    def there(lines: Sequence[Segment]) -> str:
        times = [t for line in lines for t in (line.span.t0, line.span.t1) if t is not None]
        if not times:
            return "it is no film: read it by from_line"
        return f"it runs from {min(times):.1f} to {max(times):.1f} s"

    begin = clock(start) if abs(start) < _FOREVER_S else "the beginning"
    finish = clock(end) if abs(end) < _FOREVER_S else "the end"
    return _Choice(fits=fits, name=f"{begin} to {finish}", nothing=there)
