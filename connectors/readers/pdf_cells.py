"""Fills the cells of ruled tables with the characters of PDFium's text layer.

Each character goes into the cell that its middle lies in, or into none: so none is lost, and none is
given twice.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from operator import itemgetter

import numpy as np
import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c
from numpy.typing import NDArray

from connectors.readers.pdf_boxes import Box, TableCells
from connectors.readers.pdf_grid import Cell, Grid, make_grid
from connectors.readers.pdf_layout import on_one_line
from connectors.readers.pdf_places import Places

_SOFT_HYPHEN = 0xFFFE
_BLANKS = [_SOFT_HYPHEN, *(unit for unit in range(0x3001) if chr(unit).isspace())]
_NONE = -1


def read_grids(
    page: pdfium.PdfPage,
    textpage: pdfium.PdfTextPage,
    units: NDArray[np.uint16],
    tables: TableCells,
) -> tuple[NDArray[np.bool_], list[tuple[int, Grid]]]:
    """Return which characters are in a table, and each table behind the index it begins at.

    Args:
        page: The page.
        textpage: Its text layer.
        units: The layer's text in UTF-16.
        tables: The cells of each table.
    """
    in_table = np.zeros(len(units), dtype=np.bool_)
    if not tables:
        return in_table, []
    owners, texts = _fill_cells(textpage, units, [cell for table in tables for cell in table])
    places = Places(page)
    grids, first = [], 0
    for table in tables:
        last = first + len(table)
        cells = [
            Cell(lines, places.points(box))
            for lines, box in zip(texts[first:last], table, strict=True)
        ]
        grid = make_grid(cells, places.width, places.height)
        if grid is not None:
            own = (owners >= first) & (owners < last)
            in_table |= own
            grids.append((int(np.argmax(own)), grid))
        first = last
    return in_table, sorted(grids, key=itemgetter(0))


def _fill_cells(
    textpage: pdfium.PdfTextPage, units: NDArray[np.uint16], cells: Sequence[Box]
) -> tuple[NDArray[np.int32], list[list[str]]]:
    """Return for each character the cell that it is in, or -1, and for each cell its lines."""
    x, y = _middles(textpage, len(units))
    owners = np.full(len(units), _NONE, dtype=np.int32)
    for index, (left, bottom, right, top) in enumerate(cells):
        owners[(x >= left) & (x < right) & (y >= bottom) & (y < top)] = index
    is_blank = np.isin(units, _BLANKS)
    owners[is_blank] = _NONE
    _give_blanks(owners, is_blank)
    shown = units.copy()
    _give_hyphens(owners, shown)
    return owners, _texts(owners, shown, len(cells))


def _middles(
    textpage: pdfium.PdfTextPage, count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    left, right, bottom, top = (ctypes.c_double() for _ in range(4))
    middles = np.full((2, count), np.nan)
    for unit in range(count):
        index = pdfium_c.FPDFText_GetCharIndexFromTextIndex(textpage, unit)
        if index >= 0 and pdfium_c.FPDFText_GetCharBox(textpage, index, left, right, bottom, top):
            middles[:, unit] = (left.value + right.value) / 2, (bottom.value + top.value) / 2
    return middles[0], middles[1]


def _give_blanks(owners: NDArray[np.int32], is_blank: NDArray[np.bool_]) -> None:
    """Put the blanks between two characters of one cell into that cell."""
    inked = np.flatnonzero(~is_blank)
    for before, after in zip(inked[:-1].tolist(), inked[1:].tolist(), strict=True):
        if after - before > 1 and owners[before] == owners[after]:
            owners[before + 1 : after] = owners[before]


def _give_hyphens(owners: NDArray[np.int32], units: NDArray[np.uint16]) -> None:
    """Give a hyphen that does not join two lines of one cell back to the text before it."""
    for at in np.flatnonzero(units == _SOFT_HYPHEN).tolist():
        if at and owners[at] == _NONE != owners[at - 1]:
            owners[at] = owners[at - 1]
            units[at] = ord("-")


def _texts(owners: NDArray[np.int32], units: NDArray[np.uint16], num_cells: int) -> list[list[str]]:
    texts: list[list[str]] = [[] for _ in range(num_cells)]
    starts = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist()]
    for start, end in zip(starts, [*starts[1:], len(units)], strict=True):
        if start < end and (owner := int(owners[start])) != _NONE:
            raw = units[start:end].tobytes().decode("utf-16-le", errors="ignore")
            lines = map(on_one_line, raw.replace("\ufffe", "").splitlines())
            texts[owner] += filter(None, lines)
    return texts
