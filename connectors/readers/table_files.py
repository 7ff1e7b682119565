"""Writes the tables that a reader finds as Parquet files, to be queried: as text they are for a model.

Types are told from what all cells of a column show; a column of several kinds is text. A first column
`row` holds the number of each row on its sheet, so that every value keeps its cell.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from connectors.document import TableFile
from connectors.readers.table_header import Row
from connectors.readers.table_rows import cell_range, column_letters
from connectors.readers.tables import Table

_ERRORS = ("#DIV/0!", "#N/A", "#NAME?", "#NULL!", "#NUM!", "#REF!", "#VALUE!", "#SPILL!", "#CALC!")
"""Cells that have no value; in a table they are null."""
# A number with a leading zero is a code, one of more digits than a float holds is an identifier.
_INTEGER = r"^-?(?:0|[1-9][0-9]{0,17})$"
_NUMBER = r"^-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?$"
_IDENTIFIER = r"[0-9]{16}"
_AMOUNT = re.compile(r"([^\d\s.,+-]{0,4})-?\d[\d.]*(?:[eE][+-]?\d+)?(%| [A-Z]{3})?")
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[ T][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?)?$"
_BOOLEANS = ("TRUE", "FALSE", "true", "false")
WITHOUT_FILE = "tables_without_file"
"""Name in a document's metadata of how many tables have no file, and why."""
_MAX_TABLES = 500
"""Most files of one document; a sheet of forms may have thousands of small blocks."""
_MAX_COLUMNS = 5_000
"""Most columns of all of a document's files: each costs a millisecond, and a sheet may have 16,384."""


class TableWriter:
    """Writes one file per table into a document's media folder."""

    def __init__(self, folder: Path) -> None:
        """Prepare to write into `folder`."""
        self._folder = folder
        self.files: list[TableFile] = []
        self._num_columns = 0
        self._num_left_out = 0

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What the document says of tables beyond the limits."""
        if not self._num_left_out:
            return ()
        limits = f"files are limited to {_MAX_TABLES} tables and {_MAX_COLUMNS:,} columns"
        return ((WITHOUT_FILE, f"{self._num_left_out:,}: {limits}"),)

    def add(
        self,
        sheet: str,
        tables: Iterable[Table],
        first_column: int,
        formulas: Mapping[int, Mapping[int, str]] = MappingProxyType({}),
    ) -> None:
        """Write the tables of one sheet; single lines and columns of notes are left out.

        Args:
            sheet: Its name.
            tables: The tables on it.
            first_column: Index of the column of each row's first cell, from 0.
            formulas: What stands in front of values, by row number and column from 0; it is left out.

        Raises:
            OSError: The folder cannot be written.
        """
        for table in tables:
            body = table.body[: len(table.body) - table.num_totals]
            is_wide = table.right > table.left or table.name or not sheet
            if not is_wide or len(body) <= (not table.names):
                continue
            width = table.right - table.left + 1
            if len(self.files) == _MAX_TABLES or self._num_columns + width > _MAX_COLUMNS:
                self._num_left_out += 1
                continue
            self._num_columns += width
            values = [_without(row, formulas.get(row.number), first_column) for row in body]
            self._write(sheet, table._replace(body=values), first_column)

    def _write(self, sheet: str, table: Table, first_column: int) -> None:
        places = range(table.left, table.right + 1)
        names = unique_names(
            table.names or [""] * len(places), [column_letters(first_column + i) for i in places]
        )
        columns = [_typed(_column(table.body, index)) for index in places]
        fields = [pa.field("row", pa.int64(), nullable=False)]
        arrays = [pa.array([row.number for row in table.body], pa.int64())]
        for name, (series, unit) in zip(names, columns, strict=True):
            array = series.to_arrow(compat_level=pl.CompatLevel.oldest())
            arrays.append(array)
            metadata = {"unit": unit} if unit else None
            fields.append(pa.field(name, array.type, metadata=metadata))
        rows = [*table.header, *table.body]
        self.put(
            pa.Table.from_arrays(arrays, schema=pa.schema(fields)),
            sheet=sheet,
            cells=cell_range(rows, first_column),
            title=table.name or " / ".join(c for row in table.titles for c in row.cells if c),
        )

    def put(self, data: Any, *, sheet: str = "", cells: str = "", title: str = "") -> None:  # noqa: ANN401 - pyarrow has no types
        """Write one Arrow table.

        Raises:
            OSError: The folder cannot be written.
        """
        name = f"t{len(self.files) + 1:04d}.parquet"
        pq.write_table(data, self._folder / name, compression="zstd")
        self.files.append(
            TableFile(
                name=name,
                sheet=sheet,
                cells=cells,
                title=title,
                columns=tuple(data.column_names),
                num_rows=data.num_rows,
            )
        )


def _without(row: Row, formulas: Mapping[int, str] | None, first_column: int) -> Row:
    """Return the row with values only: a formula that has none is blank."""
    if not formulas:
        return row
    cells = list(row.cells)
    for column, formula in formulas.items():
        index = column - first_column
        if 0 <= index < len(cells):
            cells[index] = cells[index].removeprefix(formula).removeprefix(" -> ")
    return Row(row.number, cells)


def _column(body: Sequence[Row], index: int) -> pl.Series:
    cells = [row.cells[index] if index < len(row.cells) else "" for row in body]
    series = pl.Series(cells, dtype=pl.String)
    return series.set(series.is_in([*_ERRORS, ""]), None)


def unique_names(names: Sequence[str], letters: Sequence[str]) -> list[str]:
    """Return a name for each column: what its header says, or its letter; none twice."""
    found: list[str] = []
    # SQL does not tell `Name` from `name`.
    taken = {"row"}
    for name, letter in zip(names, letters, strict=True):
        chosen = name or letter
        while chosen.casefold() in taken:
            chosen += f" ({letter})"
        taken.add(chosen.casefold())
        found.append(chosen)
    return found


def _typed(series: pl.Series) -> tuple[pl.Series, str]:
    """Return the column in the type that all its cells show, and the unit that all numbers have."""
    shown = series.drop_nulls()
    if shown.is_empty():
        return series, ""
    if shown.is_in(_BOOLEANS).all():
        return series.str.to_lowercase() == "true", ""
    if shown.str.contains(_TIME).all() and (parsed := _times(series, shown)) is not None:
        return parsed, ""
    number = _numbers(series, shown)
    if number is not None:
        return number, ""
    return _amounts(series, shown) or (series, "")


def _numbers(series: pl.Series, shown: pl.Series) -> pl.Series | None:
    if shown.str.contains(_INTEGER).all():
        return series.cast(pl.Int64)
    if shown.str.contains(_IDENTIFIER).any() or not shown.str.contains(_NUMBER).all():
        return None
    found = series.cast(pl.Float64)
    return None if found.is_infinite().any() else found


def _times(series: pl.Series, shown: pl.Series) -> pl.Series | None:
    """Return dates, or times where a cell has one; None where a day is none, such as 2024-02-30."""
    if shown.str.contains(_DATE).all():
        parsed = series.str.to_date("%Y-%m-%d", strict=False)
    else:
        whole = series.str.replace("T", " ").str.replace(_DATE, "${0} 00:00:00")
        parsed = whole.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", strict=False, time_unit="us")
    # Nor does Python know the year 0.
    is_whole = parsed.null_count() == series.null_count() and (parsed.dt.year() > 0).all()
    return parsed if is_whole else None


def _amounts(series: pl.Series, shown: pl.Series) -> tuple[pl.Series, str] | None:
    """Return percentages or amounts of one currency as numbers, and their unit; None for others."""
    first = _AMOUNT.fullmatch(str(shown[0]))
    before, after = (first[1], first[2] or "") if first is not None else ("", "")
    is_currency = any(unicodedata.category(char) == "Sc" for char in before)
    if not (is_currency or (after and not before)):
        return None
    if not (shown.str.starts_with(before) & shown.str.ends_with(after)).all():
        return None
    bare, whole = (
        item.str.strip_prefix(before).str.strip_suffix(after) for item in (shown, series)
    )
    numbers = _numbers(whole, bare)
    if numbers is None or bare.str.contains(_IDENTIFIER).any():
        return None
    unit = (before + after).strip()
    return (numbers / 100 if unit == "%" else numbers.cast(pl.Float64)), unit
