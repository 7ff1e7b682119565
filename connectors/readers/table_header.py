"""Finds the header of a table: column names in one row, or in several under merged cells. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

MAX_HEAD_ROW = 10
"""A header lies at most this many non-empty rows below the top; other lines may be above it."""
_MAX_HEAD_ROWS = 4
"""Most rows that merged cells make one header of."""
_MAX_NAME_CHARS = 60
_PERIOD = re.compile(r"(?:19|20)\d\d(?:-\d\d-\d\d)?")
_SIGNS = frozenset("%#$€£¥")
NUM_ROWS_COMPARED = 5
"""Rows below a header that are looked at for numbers."""


class Row(NamedTuple):
    """One row that has a value: its number in the sheet, from 1, and its cells as text."""

    number: int
    cells: Sequence[str]


class Merge(NamedTuple):
    """Cells shown as one: row numbers from 1, columns as indices into `Row.cells`, ends included."""

    top: int
    left: int
    bottom: int
    right: int


class Head(NamedTuple):
    """The rows `[start:stop]` of a part that are its header."""

    start: int
    stop: int


Merges = Mapping[int, Sequence[Merge]]


def filled(row: Row) -> list[int]:
    """Return the columns that have a value."""
    return [index for index, cell in enumerate(row.cells) if cell]


def ends(row: Row) -> tuple[int, int]:
    """Return the first and the last column that has a value; the row has one."""
    cells = row.cells
    first, last = 0, len(cells) - 1
    while not cells[first]:
        first += 1
    while not cells[last]:
        last -= 1
    return first, last


def extent(rows: Iterable[Row]) -> tuple[int, int]:
    """Return the first and the last column with a value in any of the rows."""
    found = [ends(row) for row in rows]
    return min(first for first, _ in found), max(last for _, last in found)


def find_head(rows: Sequence[Row], first: int, last: int, merges: Merges) -> Head | None:
    """Return where the header is: the first row that fills half of the width, if it is all words."""
    width = last - first + 1
    for index, row in enumerate(rows[:MAX_HEAD_ROW]):
        cells = _spread(row, merges)[first : last + 1]
        num_cells = sum(map(bool, cells))
        groups = _groups(row, merges, width)
        # One cell merged from the first column on is a title.
        is_title = num_cells and cells[0] and sum(map(bool, row.cells)) == 1
        below = rows[index + 1] if index + 1 < len(rows) else None
        if groups and not is_title and below and below.number == row.number + 1:
            under = below.cells[first : last + 1]
            if _are_names(cells) and _are_names(under) and sum(map(bool, under)) > 1:
                return _head(rows, index, width, merges)
        if sum(map(bool, row.cells)) < min(2, width) or num_cells * 2 < width:
            continue
        # Years alone are names only where a column of labels begins beside them.
        if not _are_names(cells) or (cells[0] and not any(map(is_name, cells))):
            return None
        head = _head(rows, index, width, merges)
        return head if head and _suits_periods(rows, head, first, last) else None
    return None


def _head(rows: Sequence[Row], start: int, width: int, merges: Merges) -> Head | None:
    """Return the header from row `start` on; None if there is no row below it."""
    stop = start + 1
    while stop < len(rows) and stop - start < _MAX_HEAD_ROWS:
        upper, lower = rows[stop - 1], rows[stop]
        if lower.number != upper.number + 1 or not _are_names(lower.cells):
            break
        reaches = any(
            merge.bottom > upper.number and any(row.cells[merge.left : merge.left + 1])
            for row in rows[start:stop]
            for merge in merges.get(row.number, ())
        )
        if not reaches and not _groups(upper, merges, width):
            break
        stop += 1
    return Head(start, stop) if stop < len(rows) else None


def _groups(row: Row, merges: Merges, width: int) -> list[Merge]:
    """Return the row's cells that are merged over several columns, but not over the whole table."""
    return [
        merge
        for merge in merges.get(row.number, ())
        if merge.top == merge.bottom
        and 1 < merge.right - merge.left + 1 < width
        and merge.left < len(row.cells)
        and row.cells[merge.left]
    ]


def _spread(row: Row, merges: Merges) -> Sequence[str]:
    """Return the row's cells, the value of merged ones in each column they cover."""
    if row.number not in merges:
        return row.cells
    cells = list(row.cells)
    for merge in merges[row.number]:
        # The value may be a neighbour's where tables stand side by side and this one is cropped.
        if merge.left < len(cells) and cells[merge.left]:
            end = min(merge.right, len(cells) - 1)
            cells[merge.left : end + 1] = [cells[merge.left]] * (end + 1 - merge.left)
    return cells


def _suits_periods(rows: Sequence[Row], head: Head, first: int, last: int) -> bool:
    """Tell whether years in the header are names: other numbers stand below one of them."""
    header = rows[head.stop - 1].cells
    periods = [
        i for i in range(first, last + 1) if i < len(header) and _PERIOD.fullmatch(header[i])
    ]
    if not periods or head.stop - head.start > 1:
        return True
    return any(
        not is_name(cell) and not _PERIOD.fullmatch(cell)
        for row in rows[head.stop : head.stop + NUM_ROWS_COMPARED]
        for cell in (row.cells[i] for i in periods if i < len(row.cells))
        if cell
    )


def _are_names(cells: Sequence[str]) -> bool:
    """Tell whether the cells can be column names: short words or years."""
    values = [cell for cell in cells if cell]
    return bool(values) and all(is_name(cell) or _PERIOD.fullmatch(cell) for cell in values)


def is_name(cell: str) -> bool:
    """Tell whether a cell can be a column's name: it is short and has a letter, or is `%` or alike."""
    if len(cell) > _MAX_NAME_CHARS:
        return False
    return cell in _SIGNS or any(char.isalpha() for char in cell)


def has_numbers_below(rows: Sequence[Row], head: Head) -> bool:
    """Tell whether numbers stand under the words of a header: then it is no row of the body."""
    header = rows[head.stop - 1]
    for row in rows[head.stop : head.stop + NUM_ROWS_COMPARED]:
        for name, cell in zip(header.cells, row.cells, strict=False):
            if name and cell and not is_name(cell) and not _PERIOD.fullmatch(cell):
                return True
    return False


def column_names(header: Sequence[Row], left: int, right: int, merges: Merges) -> list[str]:
    """Return each column's name: what stands above it in the header, from top to bottom."""
    levels = [_spread(row, merges) for row in header]
    names = []
    for column in range(left, right + 1):
        values: list[str] = []
        for cells in levels:
            value = cells[column] if column < len(cells) else ""
            if value and value not in values[-1:]:
                values.append(value)
        names.append(" / ".join(values))
    return names
