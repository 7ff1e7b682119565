"""What PDFium says about one page: its lines with boxes and fonts, its pixels."""

from __future__ import annotations

import ctypes
import itertools
import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c

from connectors.readers.media import Pixels, as_pixels
from connectors.readers.pdf_boxes import TableCells, TablesError
from connectors.readers.pdf_cells import read_grids
from connectors.readers.pdf_layout import PageText
from connectors.readers.pdf_lines import TextLayer
from connectors.readers.pdf_order import mend_order, part_words
from connectors.readers.pdf_tables import RuledTables

_NUM_SAMPLES = 64
"""Characters of a page that are asked for their direction."""
_MAX_GARBLED = 0.1
_NO_CHARACTER = re.compile("[\ue000-\uf8ff\ufffd]")
_REPEATED = re.compile(r"(?:^| )([^\W\d_].{3,60}?\S) \1(?:[ .,;]|$)")
_MIN_REPEATED = 2
"""Lines that say something twice in a row, as where a page is drawn twice, with an offset."""
_IS_CONTROL = np.zeros(0x10000, dtype=np.bool_)
_IS_CONTROL[[unit for unit in range(0x20) if chr(unit) not in "\t\n\v\f\r"]] = True
_MIN_REPEATED_CHARS = 11
"""What `_REPEATED` matches at least."""


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
    layer = TextLayer(page, textpage)
    in_table, grids = read_grids(page, textpage, layer.units, tables)
    mend = part_words if layer.is_spread() else None
    starts, lines = layer.lines(in_table, mend)
    cells = (cell for _, grid in grids for row in grid.rows for cell in row.cells)
    shown = itertools.chain((line.text for line in lines), cells)
    if sum(map(_says_twice, shown)) >= _MIN_REPEATED:
        if grids:
            raise TablesError("the page is drawn twice")
        starts, lines = layer.lines(in_table, mend_order)
    return PageText(
        page=number,
        width=width,
        height=height,
        lines=tuple(lines),
        grids=tuple(replace(grid, num_before=bisect_left(starts, at)) for at, grid in grids),
        num_controls=int(np.count_nonzero(_IS_CONTROL[layer.units])),
    )


@contextmanager
def _text_layer(page: pdfium.PdfPage) -> Iterator[pdfium.PdfTextPage]:
    textpage = page.get_textpage()
    try:
        yield textpage
    finally:
        textpage.close()


def _says_twice(text: str) -> bool:
    return len(text) >= _MIN_REPEATED_CHARS and _REPEATED.search(text) is not None


def is_garbled(text: PageText) -> bool:
    """Say whether the text layer is noise: fonts without a mapping to Unicode."""
    characters = "".join(text.texts)
    if not characters:
        return text.num_controls > 0
    bad = len(_NO_CHARACTER.findall(characters)) + text.num_controls
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
    raw, rotation = textpage.raw, page.get_rotation()
    turns: Counter[int] = Counter()
    matrix = pdfium_c.FS_MATRIX()
    for index in range(0, count, max(1, count // _NUM_SAMPLES)):
        # What PDFium puts in, spaces above all, has no direction.
        if pdfium_c.FPDFText_IsGenerated(raw, index) == 1:
            continue
        if pdfium_c.FPDFText_GetMatrix(raw, index, matrix):
            degrees = math.degrees(math.atan2(matrix.b, matrix.a)) - rotation
            turns[round(degrees / 90) % 4] += 1
    return turns.most_common(1)[0][0] if turns else 0
