"""Rows of a sheet back to fields: the cells of one row, each under the name of its column.

The inverse of connectors.readers.table_rows, for who shows a row by itself, away from its heading.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from connectors.document import Segment
from connectors.readers.table_rows import column_index, column_letters

Field = tuple[str, str]
"""Name of a column, and the text of the cell under it."""

_COLUMNS = ", columns: row, "
_CELL = re.compile(r'(?:^|,)(?:"((?:[^"]|"")*)"|([^,]*))')
_BETWEEN = " | "
"""Between fields. The check of quotes takes it for the border between two cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns of a table, as its heading names them."""

    first: int
    """Index of the first column on the sheet, from 0."""
    names: tuple[str, ...]
    """Each once: where two columns have one name, their letters stand behind it."""


def columns_of(heading: str) -> Columns | None:
    """Return the columns that the heading of a table names; None where it is none of a sheet's table."""
    _, mark, told = heading.rpartition(_COLUMNS)
    first = told.partition(" ")[0].partition(",")[0]
    if not mark or not (first.isascii() and first.isalpha() and first.isupper()):
        return None
    index = column_index(first)
    letters = told.split(" to ")
    if len(letters) == 2 and letters[1].isalpha() and letters[1].isupper():
        # Without names: `A to F`.
        end = column_index(letters[1]) + 1
        return Columns(first=index, names=tuple(map(column_letters, range(index, end))))
    return Columns(first=index, names=_unique(_names(told, index), index))


def _names(told: str, index: int) -> list[str]:
    """Return the names in `A Date, B Amount, C`: a name ends in front of the next column's letters."""
    names = []
    while True:
        own, following = column_letters(index), f", {column_letters(index + 1)}"
        end = told.find(following, len(own))
        while end >= 0 and told[end + len(following) :][:1] not in {"", " ", ","}:
            end = told.find(following, end + 1)
        text = told[len(own) :] if end < 0 else told[len(own) : end]
        names.append(text.strip())
        if end < 0:
            return names
        told, index = told[end + 2 :], index + 1


def _unique(names: Sequence[str], first: int) -> tuple[str, ...]:
    times = Counter(names)
    letters = [column_letters(first + place) for place in range(len(names))]
    return tuple(
        (name if times[name] == 1 else f"{name} ({letter})") if name else letter
        for name, letter in zip(names, letters, strict=True)
    )


def row_fields(columns: Columns, row: Segment) -> tuple[Field, ...]:
    """Return the cells of a row that have a text, in the order of the columns, without its number.

    Returns:
        Nothing where the row is not one of the table, or not whole.
    """
    cells = _cells(row.text)[1:]
    if row.span.cells is None or row.is_rest or len(cells) > len(columns.names):
        return ()
    # A row ends with its last cell that is filled, so its place tells how many there are.
    last = row.span.cells.rpartition(":")[2].rstrip("0123456789")
    if column_index(last) - columns.first + 1 != len(cells):
        return ()
    return tuple(
        (name, cell) for name, cell in zip(columns.names, cells, strict=False) if cell.strip()
    )


def _cells(line: str) -> list[str]:
    # Not by the csv module: it refuses cells of more than 131,072 characters.
    if '"' not in line:
        return line.split(",")
    return [
        found[1].replace('""', '"') if found[1] is not None else found[2]
        for found in _CELL.finditer(line)
    ]


def fields_text(fields: Sequence[Field]) -> str:
    """Return fields as one line: `Date: 2026-01-05 | Amount: 12.5`."""
    return _BETWEEN.join(map(field_text, fields))


def field_text(field: Field) -> str:
    """Return one field of such a line."""
    return f"{field[0]}: {field[1]}"
