"""Rows of a sheet to segments: CSV with the row's number first, under a heading with the columns.

Of the layouts that keep every cell's place this one takes the fewest tokens: 4 % more than bare
CSV, where `A1=value` takes 84 % more.
"""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from connectors.document import Segment, Span

_MAX_HEADER_ROW = 10
"""A header row lies at most this many non-empty rows below the top; titles may be above it."""


class Row(NamedTuple):
    """One row that has a value: its number in the sheet, from 1, and its cells as text."""

    number: int
    cells: Sequence[str]


def column_letters(index: int) -> str:
    """Return `A` for 0, `Z` for 25, `AA` for 26."""
    letters = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters


def cell_text(value: object) -> str:
    """Return a cell as a reader would write it: ISO dates, 15 digits, no `.0`, one line."""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float):
        return format(value, ".15g")
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ")
    return " ".join(str(value).split()) if value is not None else ""


def sheet_segments(sheet: str, rows: Sequence[Row], first_column: int) -> Iterator[Segment]:
    """Yield a heading for the sheet, which holds its header row, then one segment per row.

    Args:
        sheet: The sheet's name; empty for a CSV file.
        rows: Non-empty rows in order.
        first_column: Index of the column of each row's first cell, from 0.
    """
    if not rows:
        return
    width = max(_last_filled(row) for row in rows) + 1
    header = _header_row(rows, width)
    first_letters = column_letters(first_column)
    last_letters = column_letters(first_column + width - 1)
    extent = f"{first_letters}{rows[0].number}:{last_letters}{rows[-1].number}"
    if header is None:
        columns = f"{first_letters} to {last_letters}" if width > 1 else first_letters
    else:
        names = [*header.cells, *[""] * width][:width]
        columns = ", ".join(
            f"{column_letters(first_column + index)} {name}".rstrip()
            for index, name in enumerate(names)
        )
    place = f"Sheet {sheet}!{extent}" if sheet else f"Table {extent}"
    cells = _extent(header, first_column) if header is not None else extent
    yield Segment(
        kind="heading",
        text=f"{place}, columns: row, {columns}",
        span=Span(sheet=sheet, cells=cells),
    )
    for row in rows:
        if row is not header:
            span = Span(sheet=sheet, cells=_extent(row, first_column))
            yield Segment(kind="table", text=_row_text(row), span=span)


def _header_row(rows: Sequence[Row], width: int) -> Row | None:
    """Return the row of column names: the first that is all words and fills half of the width."""
    for row in rows[:_MAX_HEADER_ROW]:
        filled = [cell for cell in row.cells if cell]
        if len(filled) * 2 < width:
            continue
        has_words = all(any(char.isalpha() for char in cell) for cell in filled)
        is_short = all(len(cell) <= 60 for cell in filled)
        return row if has_words and is_short and len(rows) > 1 else None
    return None


def _last_filled(row: Row) -> int:
    return max(index for index, cell in enumerate(row.cells) if cell)


def _extent(row: Row, first_column: int) -> str:
    first = next(index for index, cell in enumerate(row.cells) if cell)
    start = f"{column_letters(first_column + first)}{row.number}"
    end = f"{column_letters(first_column + _last_filled(row))}{row.number}"
    return start if start == end else f"{start}:{end}"


def _row_text(row: Row) -> str:
    buffer = io.StringIO()
    cells = row.cells[: _last_filled(row) + 1]
    csv.writer(buffer, lineterminator="").writerow([row.number, *cells])
    return buffer.getvalue()
