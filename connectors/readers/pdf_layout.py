"""Joins the lines of a PDF page into paragraphs and sentences. Pure: no PDF library here.

Lengths are points; boxes are x0, y0, x1, y1 with the origin at the top left, on the page turned so
that most of its text is horizontal. The segments' boxes are on the upright page again.
"""

from __future__ import annotations

import re
import statistics
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter

from connectors.document import Segment, SegmentKind, Span
from connectors.readers.pdf_boxes import Box, turn_box, within_page
from connectors.readers.pdf_grid import Grid, Place, TableSegments
from connectors.readers.sentences import MAX_SENTENCE_CHARS, split_sentences

_SIZE_JUMP = 1.18
_HEADING_SIZE = 1.12
_MAX_HEADING_CHARS = 160
_MAX_HEADING_LINES = 3
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ufeff\uffff]")
_BULLET_GLYPHS = str.maketrans({"\uf0b7": "•", "\uf0a7": "▪", "\uf0d8": "‣"})
_BULLET = re.compile(r"(?:[•▪◦‣●■□\u2013\u2014*-]|\(?\d{1,3}[.)]|\(?[A-Za-z][.)])\s")
_NUMBERED_HEADING = re.compile(r"(?:\d+\.)*\d+\.?\s+\S|[IVX]+\.\s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of text as the page shows it."""

    text: str
    box: Box
    size: float
    """Font size on the page."""
    bold: bool
    is_row: bool
    """Wide gaps between its parts: a table row, or a line of a running header."""
    is_hyphenated: bool
    """The line ends inside a word, whose hyphen is gone from the text."""

    @property
    def middle(self) -> float:
        """Height of the line's middle on the page."""
        return (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A picture or drawing beside text: its image segment, and what was read off it."""

    num_before: int
    """Lines of the page in front of it."""
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PageText:
    """The lines of one page with its size in points, both turned as its text asks."""

    page: int
    width: float
    height: float
    num_controls: int = 0
    """Characters left out of the lines because they are none: glyphs that the font maps to nothing."""
    turn: int = 0
    """Quarter turns clockwise that the upright page was given to make its text horizontal."""
    lines: tuple[Line, ...]
    grids: tuple[Grid, ...] = ()
    """Ruled tables, whose text is in no line."""
    figures: tuple[Figure, ...] = ()
    error: str | None = None
    """What cannot be told of the page; its lines are not touched by it."""

    @property
    def texts(self) -> list[str]:
        """Lines and cells."""
        return [
            *(line.text for line in self.lines),
            *(cell for grid in self.grids for row in grid.rows for cell in row.cells),
        ]


@dataclass(frozen=True, slots=True)
class Body:
    """What most of a document's text looks like, against which headings stand out."""

    size: float
    bold: bool


def find_body(pages: Iterable[PageText]) -> Body:
    """Return the font that most characters of the document are set in."""
    sizes: Counter[tuple[float, bool]] = Counter()
    for page in pages:
        for line in page.lines:
            sizes[round(line.size * 2) / 2, line.bold] += len(line.text)
    if not sizes:
        return Body(size=0.0, bold=False)
    (size, bold), _ = sizes.most_common(1)[0]
    return Body(size=size, bold=bold)


def page_segments(page: PageText, body: Body, tables: TableSegments) -> Iterator[Segment]:
    """Yield the page's headings, sentences, table rows and figures in the order of the content stream.

    Args:
        page: The page, later than those that `tables` has seen.
        body: The document's font.
        tables: Gives ruled tables as segments.
    """
    done = 0
    insets: list[Grid | Figure] = [*page.grids, *page.figures]
    for inset in sorted(insets, key=attrgetter("num_before")):
        yield from _text_segments(page, page.lines[done : inset.num_before], body)
        done = inset.num_before
        if isinstance(inset, Figure):
            yield from inset.segments
            continue
        num_above = sum(line.middle < inset.top * page.height for line in page.lines)
        num_below = sum(line.middle > inset.bottom * page.height for line in page.lines)
        yield from tables.segments(inset, Place(page.page, page.turn, num_above, num_below))
    yield from _text_segments(page, page.lines[done:], body)


def _text_segments(page: PageText, lines: Sequence[Line], body: Body) -> Iterator[Segment]:
    for paragraph in _paragraphs(lines):
        text, starts = _joined(paragraph)
        kind = _kind(paragraph, text, body)
        # A heading is short, and a row stays whole: the dots in it seldom end a sentence.
        is_whole = kind == "heading" or (kind == "table" and len(text) <= MAX_SENTENCE_CHARS)
        spans = [(0, len(text))] if is_whole else split_sentences(text)
        ends = [*starts[1:], len(text) + 1]
        for start, end in spans:
            # The lines that reach into the sentence.
            touched = paragraph[bisect_right(ends, start) : bisect_left(starts, end)]
            yield Segment(
                kind=kind,
                text=text[start:end],
                span=Span(page=page.page, bbox=_fractions(touched, page)),
            )


def _paragraphs(lines: Sequence[Line]) -> Iterator[list[Line]]:
    step = _usual_step(lines)
    current: list[Line] = []
    for line in lines:
        if current and not _continues(current, line, step):
            yield current
            current = []
        current.append(line)
    if current:
        yield current


def _usual_step(lines: Sequence[Line]) -> float:
    """Return the usual distance of lines, in font sizes."""
    steps = [
        (below.middle - above.middle) / above.size
        for above, below in pairwise(lines)
        if above.size > 0 and 0.5 < (below.middle - above.middle) / above.size < 3.5
    ]
    return statistics.median(steps) if len(steps) >= 3 else 1.2


def _continues(paragraph: Sequence[Line], line: Line, step: float) -> bool:
    last = paragraph[-1]
    if last.is_hyphenated or last.is_row or line.is_row or last.size <= 0:
        return last.is_hyphenated
    if abs(line.middle - last.middle) < 0.45 * last.size:
        # The same line, broken off by a superscript or a change of font.
        return -0.5 * last.size < line.box[0] - last.box[2] < 1.5 * last.size
    if not 1 / _SIZE_JUMP < line.size / last.size < _SIZE_JUMP or line.bold != last.bold:
        return False
    down = (line.middle - last.middle) / last.size
    overlap = min(line.box[2], last.box[2]) - max(line.box[0], last.box[0])
    if not 0.45 < down < max(1.45, 1.2 * step) or overlap <= 0 or _BULLET.match(line.text):
        return False
    return not _ended_early(paragraph, last, line)


def _ended_early(paragraph: Sequence[Line], last: Line, line: Line) -> bool:
    """Say whether the last line ends a paragraph: a full stop well before the right border."""
    right = max(part.box[2] for part in (*paragraph, line))
    return last.text.endswith((".", "!", "?", ":")) and right - last.box[2] > 4 * last.size


def _joined(paragraph: Sequence[Line]) -> tuple[str, list[int]]:
    """Return the paragraph as one line, and where in it each line starts."""
    text, starts = "", []
    for index, line in enumerate(paragraph):
        if index and not paragraph[index - 1].is_hyphenated and not _is_cjk_seam(text, line.text):
            text += "" if line.text[:1] in ",.;:)" else " "
        starts.append(len(text))
        text += line.text
    return text, starts


def _is_cjk_seam(before: str, after: str) -> bool:
    return "\u3000" <= before[-1:] <= "\u9fff" and "\u3000" <= after[:1] <= "\u9fff"


def _kind(paragraph: Sequence[Line], text: str, body: Body) -> SegmentKind:
    if len(paragraph) == 1 and paragraph[0].is_row:
        return "table"
    if len(text) > _MAX_HEADING_CHARS or len(paragraph) > _MAX_HEADING_LINES:
        return "paragraph"
    is_large = min(line.size for line in paragraph) >= _HEADING_SIZE * body.size
    stands_out = not body.bold and all(line.bold for line in paragraph)
    can_head = (is_large or stands_out) and body.size > 0
    if not can_head or sum(map(str.isalpha, text)) < 3:
        return "paragraph"
    if is_large:
        return "heading"
    ends_open = not text.endswith((".", ",", ";", ":")) or _NUMBERED_HEADING.match(text)
    return "heading" if stands_out and ends_open else "paragraph"


def on_one_line(raw: str) -> str:
    """Return what can be shown of a text, with single blanks."""
    text = _CONTROLS.sub("", raw)
    return " ".join((text if text.isascii() else text.translate(_BULLET_GLYPHS)).split())


def _fractions(lines: Sequence[Line], page: PageText) -> Box:
    if len(lines) == 1:
        x0, y0, x1, y1 = lines[0].box
    else:
        lefts, tops, rights, bottoms = zip(*[line.box for line in lines], strict=True)
        x0, y0, x1, y1 = min(lefts), min(tops), max(rights), max(bottoms)
    box = (x0 / page.width, y0 / page.height, x1 / page.width, y1 / page.height)
    return within_page(turn_box(box, -page.turn) if page.turn else box)
