"""What PDFium says about one page: its lines with boxes and fonts, its pixels."""

from __future__ import annotations

import ctypes
import itertools
import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c
from numpy.typing import NDArray

from connectors.readers.media import Pixels, as_pixels
from connectors.readers.pdf_boxes import Box, TableCells, TablesError
from connectors.readers.pdf_cells import read_grids
from connectors.readers.pdf_layout import Line, PageText, on_one_line
from connectors.readers.pdf_order import Glyph, mend_order, part_words
from connectors.readers.pdf_places import fractions
from connectors.readers.pdf_tables import RuledTables

_CARRIAGE_RETURN, _LINE_FEED, _SOFT_HYPHEN = 0x0D, 0x0A, 0xFFFE
_ROW_GAP = 2.0
"""Gap between parts of a line, in font sizes, that a table row has and justified text has not."""
_BOLD_WEIGHT = 600
_NUM_SAMPLES = 64
"""Characters of a page that are asked for their direction."""
_MAX_GARBLED = 0.1
_REPEATED = re.compile(r"(?:^| )([^\W\d_].{3,60}?\S) \1(?:[ .,;]|$)")
_MIN_REPEATED = 2
"""Lines that say something twice in a row, as where a page is drawn twice, with an offset."""
_MAX_MENDED_CHARS = 1000
"""A longer line is no line of text; the time for one grows with its square."""
_MIN_PLACED, _MIN_SPREAD, _SPREAD_GAP = 8, 0.6, 0.01
"""Pairs of characters that tell whether letters are placed one by one, the share of them that must have a
gap, and that gap in font sizes: else widths alone place them, and PDFium finds their blanks."""
_NOT_PARTED = re.compile(r"[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010000-\U0010ffff]")
"""Written from right to left, or two units in the text layer."""
_CONTROL_UNITS = [unit for unit in range(0x20) if chr(unit) not in "\t\n\v\f\r"]


_Mend = Callable[[Sequence[Glyph], float], str]


class _Font(NamedTuple):
    size: float
    weight: int


def page_text(page: pdfium.PdfPage, number: int, tables: RuledTables) -> PageText:
    """Return the page's lines and ruled tables in the order of its content stream.

    Args:
        page: The page.
        number: Its number, from 1.
        tables: Tells where its tables are.

    Raises:
        pdfium.PdfiumError: The page's text cannot be loaded.
    """
    try:
        cells = tables.cells(page, number)
        return _in_order(page, number, cells)
    except TablesError as exc:
        error = f"its tables are given as lines of text: {exc}"
        return replace(_in_order(page, number, ()), error=error)


def _in_order(page: pdfium.PdfPage, number: int, tables: TableCells) -> PageText:
    with _text_layer(page) as textpage:
        turn = _turn(page, textpage)
        if turn == 0:
            return _laid_out(page, textpage, number, tables)
    # PDFium puts lines and cells in order on the upright page. Where text runs sideways there, it
    # orders them right once the page is turned.
    rotation = page.get_rotation()
    page.set_rotation((rotation + 90 * turn) % 360)
    try:
        with _text_layer(page) as textpage:
            return replace(_laid_out(page, textpage, number, tables), turn=turn)
    finally:
        page.set_rotation(rotation)


def _laid_out(
    page: pdfium.PdfPage, textpage: pdfium.PdfTextPage, number: int, tables: TableCells
) -> PageText:
    width, height = (max(side, 1.0) for side in page.get_size())
    units = _text_units(textpage)
    in_table, grids = read_grids(page, textpage, units, tables)
    mend = part_words if _is_spread(textpage) else None
    starts, lines = _lines(page, textpage, units, in_table, mend=mend)
    cells = (cell for _, grid in grids for row in grid.rows for cell in row.cells)
    shown = itertools.chain((line.text for line in lines), cells)
    if sum(_REPEATED.search(text) is not None for text in shown) >= _MIN_REPEATED:
        if grids:
            raise TablesError("the page is drawn twice")
        starts, lines = _lines(page, textpage, units, in_table, mend=mend_order)
    return PageText(
        page=number,
        width=width,
        height=height,
        lines=tuple(lines),
        grids=tuple(replace(grid, num_before=bisect_left(starts, at)) for at, grid in grids),
        num_controls=int(np.count_nonzero(np.isin(units, _CONTROL_UNITS))),
    )


@contextmanager
def _text_layer(page: pdfium.PdfPage) -> Iterator[pdfium.PdfTextPage]:
    textpage = page.get_textpage()
    try:
        yield textpage
    finally:
        textpage.close()


def is_garbled(text: PageText) -> bool:
    """Say whether the text layer is noise: fonts without a mapping to Unicode."""
    characters = "".join(text.texts)
    if not characters:
        return text.num_controls > 0
    bad = sum("\ue000" <= char <= "\uf8ff" or char == "\ufffd" for char in characters)
    bad += text.num_controls
    return bad > _MAX_GARBLED * (len(characters) + text.num_controls)


def render(page: pdfium.PdfPage, long_side_px: int) -> Pixels:
    """Return the upright page, its long side `long_side_px` whatever its size in points.

    Raises:
        pdfium.PdfiumError: The page cannot be drawn.
    """
    scale = long_side_px / max(*page.get_size(), 1.0)
    bitmap = page.render(scale=scale, force_bitmap_format=pdfium_c.FPDFBitmap_BGR)
    try:
        return as_pixels(bitmap.to_numpy().copy())
    finally:
        bitmap.close()


def has_marks(page: pdfium.PdfPage, *, beside_text: bool) -> bool:
    """Say whether anything is drawn on the page: images, curves, text without a readable layer.

    Args:
        page: The page.
        beside_text: Pass over text, because its layer can be read.
    """
    for index in range(max(0, pdfium_c.FPDFPage_CountObjects(page))):
        drawn = pdfium_c.FPDFPage_GetObject(page, index)
        if not beside_text or pdfium_c.FPDFPageObj_GetType(drawn) != pdfium_c.FPDF_PAGEOBJ_TEXT:
            return True
    return False


def picture_share(page: pdfium.PdfPage) -> float:
    """Return the share of the page that its largest image covers."""
    width, height = (max(side, 1.0) for side in page.get_size())
    left, bottom, right, top = (ctypes.c_float() for _ in range(4))
    largest = 0.0
    for index in range(max(0, pdfium_c.FPDFPage_CountObjects(page))):
        drawn = pdfium_c.FPDFPage_GetObject(page, index)
        if pdfium_c.FPDFPageObj_GetType(drawn) != pdfium_c.FPDF_PAGEOBJ_IMAGE:
            continue
        if pdfium_c.FPDFPageObj_GetBounds(drawn, left, bottom, right, top):
            area = (right.value - left.value) * (top.value - bottom.value)
            largest = max(largest, area / (width * height))
    return largest


def _turn(page: pdfium.PdfPage, textpage: pdfium.PdfTextPage) -> int:
    """Return the quarter turns clockwise of the upright page that make most text horizontal."""
    count = textpage.count_chars()
    turns: Counter[int] = Counter()
    matrix = pdfium_c.FS_MATRIX()
    for index in range(0, count, max(1, count // _NUM_SAMPLES)):
        # What PDFium puts in, spaces above all, has no direction.
        if pdfium_c.FPDFText_IsGenerated(textpage, index) == 1:
            continue
        if pdfium_c.FPDFText_GetMatrix(textpage, index, matrix):
            degrees = math.degrees(math.atan2(matrix.b, matrix.a)) - page.get_rotation()
            turns[round(degrees / 90) % 4] += 1
    return turns.most_common(1)[0][0] if turns else 0


def _is_spread(textpage: pdfium.PdfTextPage) -> bool:
    """Say whether the page's letters are placed one by one, with gaps between them."""
    count = textpage.count_chars()
    rect = pdfium_c.FS_RECTF()
    num_pairs = num_gaps = 0
    for index in range(0, count - 1, max(1, count // _NUM_SAMPLES)):
        pair = (pdfium_c.FPDFText_GetUnicode(textpage, index + at) for at in (0, 1))
        if not all(chr(char).isalnum() for char in pair):
            continue
        pdfium_c.FPDFText_GetLooseCharBox(textpage, index, rect)
        right, bottom, height = rect.right, rect.bottom, rect.top - rect.bottom
        pdfium_c.FPDFText_GetLooseCharBox(textpage, index + 1, rect)
        if height > 0 and abs(rect.bottom - bottom) < 1:
            num_pairs += 1
            num_gaps += abs(rect.left - right) > _SPREAD_GAP * height
    return num_pairs >= _MIN_PLACED and num_gaps > _MIN_SPREAD * num_pairs


def _lines(
    page: pdfium.PdfPage,
    textpage: pdfium.PdfTextPage,
    units: NDArray[np.uint16],
    in_table: NDArray[np.bool_],
    *,
    mend: _Mend | None,
) -> tuple[list[int], list[Line]]:
    """Return the lines outside of tables, and where in the units each begins."""
    starts, lines = [], []
    is_break = (units == _CARRIAGE_RETURN) | (units == _LINE_FEED) | (units == _SOFT_HYPHEN)
    breaks = np.flatnonzero(is_break | in_table).tolist()
    for before, end in itertools.pairwise([-1, *breaks, len(units)]):
        if end - before < 2:
            continue
        line = _line(page, textpage, units, (before + 1, end), mend=mend)
        if line is not None:
            starts.append(before + 1)
            lines.append(line)
    return starts, lines


def _text_units(textpage: pdfium.PdfTextPage) -> NDArray[np.uint16]:
    count = textpage.count_chars()
    if count <= 0:
        return np.empty(0, dtype=np.uint16)
    # PDFium may put in more units than there are characters in its list; twice is always enough.
    buffer = (ctypes.c_ushort * (2 * count + 16))()
    written = pdfium_c.FPDFText_GetText(textpage, 0, count, buffer)
    return np.frombuffer(buffer, dtype=np.uint16)[: max(written - 1, 0)]


def _line(
    page: pdfium.PdfPage,
    textpage: pdfium.PdfTextPage,
    units: NDArray[np.uint16],
    extent: tuple[int, int],
    *,
    mend: _Mend | None,
) -> Line | None:
    start, end = extent
    raw = units[start:end].tobytes().decode("utf-16-le", errors="ignore")
    text = on_one_line(raw)
    first = pdfium_c.FPDFText_GetCharIndexFromTextIndex(textpage, start)
    last = pdfium_c.FPDFText_GetCharIndexFromTextIndex(textpage, end - 1)
    if not text or first < 0 or last < first:
        return None
    boxes = _boxes(page, textpage, first, last)
    fonts = [_font(textpage, index) for index in {first, (first + last) // 2, last}]
    size = max(font.size for font in fonts)
    x0, y0 = min(box[0] for box in boxes), min(box[1] for box in boxes)
    x1, y1 = max(box[2] for box in boxes), max(box[3] for box in boxes)
    if mend is not None and y1 - y0 < 2 * size and _can_mend(text):
        text = on_one_line(mend(_glyphs(page, textpage, first, last), size))
    return Line(
        text=text,
        box=(x0, y0, x1, y1),
        size=size or (y1 - y0),
        bold=all(font.weight >= _BOLD_WEIGHT for font in fonts),
        is_row=_widest_gap(boxes) > _ROW_GAP * (size or y1 - y0),
        is_hyphenated=end < len(units) and int(units[end]) == _SOFT_HYPHEN,
    )


def _boxes(page: pdfium.PdfPage, textpage: pdfium.PdfTextPage, first: int, last: int) -> list[Box]:
    """Return the boxes of a run of characters in points on the page."""
    width, height = page.get_size()
    left, top, right, bottom = (ctypes.c_double() for _ in range(4))
    boxes = []
    for index in range(pdfium_c.FPDFText_CountRects(textpage, first, last - first + 1)):
        pdfium_c.FPDFText_GetRect(textpage, index, left, top, right, bottom)
        drawn = (left.value, top.value, right.value, bottom.value)
        x0, y0, x1, y1 = fractions(page, drawn)
        boxes.append((x0 * width, y0 * height, x1 * width, y1 * height))
    return boxes or [(0.0, 0.0, width, height)]


def _can_mend(text: str) -> bool:
    return len(text) < _MAX_MENDED_CHARS and not _NOT_PARTED.search(text)


def _glyphs(
    page: pdfium.PdfPage, textpage: pdfium.PdfTextPage, first: int, last: int
) -> list[Glyph]:
    width = page.get_size()[0]
    glyphs: list[Glyph] = []
    rect = pdfium_c.FS_RECTF()
    for index in range(first, last + 1):
        # The loose box holds the character's own margins, so that a gap is a blank.
        pdfium_c.FPDFText_GetLooseCharBox(textpage, index, rect)
        x0, _, x1, _ = fractions(page, (rect.left, rect.top, rect.right, rect.bottom))
        char = chr(pdfium_c.FPDFText_GetUnicode(textpage, index))
        glyphs.append(Glyph(char, x0 * width, x1 * width))
    return glyphs


def _font(textpage: pdfium.PdfTextPage, index: int) -> _Font:
    matrix = pdfium_c.FS_MATRIX()
    size = pdfium_c.FPDFText_GetFontSize(textpage, index)
    if pdfium_c.FPDFText_GetMatrix(textpage, index, matrix):
        size *= math.hypot(matrix.c, matrix.d)
    return _Font(abs(size), pdfium_c.FPDFText_GetFontWeight(textpage, index))


def _widest_gap(boxes: list[Box]) -> float:
    ordered = sorted(boxes)
    widest, reach = 0.0, ordered[0][2]
    for box in ordered[1:]:
        widest = max(widest, box[0] - reach)
        reach = max(reach, box[2])
    return widest
