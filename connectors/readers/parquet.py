"""Reads Parquet files by pyarrow: one table whose columns have names, by row groups."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from connectors.document import Content, Unit, UnitStatus
from connectors.errors import DocumentRejected
from connectors.readers import VERSIONS, ReaderOptions, no_picture
from connectors.readers.table_files import WITHOUT_FILE, TableWriter, unique_names
from connectors.readers.table_header import Row
from connectors.readers.table_rows import cell_text, column_letters, sheet_segments
from connectors.readers.tables import Table

VERSION = VERSIONS["parquet"]
"""Raised whenever the same file gives other segments; it enters the chunk keys."""

_BATCH_ROWS = 1024


def read(path: Path, media_type: str, media_dir: Path, options: ReaderOptions) -> Content:
    """Return the file's rows, numbered from 1, and a unit for each row group.

    Raises:
        DocumentRejected: The file is encrypted or damaged, or has no row.
    """
    file = _open(path)
    rows: list[Row] = []
    units: list[Unit] = []
    first = 1
    for group in range(file.num_row_groups):
        unit, found = _read_group(file, group, first, options.max_rows - len(rows), options=options)
        units.append(unit)
        rows += found
        first += file.metadata.row_group(group).num_rows
    failed = [unit for unit in units if unit.status == "failed"]
    if not rows:
        if failed:
            raise DocumentRejected(f"no row group can be read: {failed[0].error}", reason="damaged")
        raise DocumentRejected("the file has no row with a value", reason="empty")
    names = [cell_text(name) for name in file.schema_arrow.names]
    writer = TableWriter(media_dir)
    metadata: list[tuple[str, str]] = []
    if options.tables:
        try:
            writer.put(_typed_rows(file, [row.number for row in rows]))
        except pa.ArrowException as exc:
            metadata.append((WITHOUT_FILE, f"1: pyarrow cannot copy it: {exc}"))
    return Content(
        media_type=media_type,
        reader=f"parquet/{VERSION}{options.changes('max_rows')}",
        units=tuple(units),
        segments=tuple(sheet_segments("", [Table((), (), rows, names, 0, len(names) - 1)], 0)),
        tables=tuple(writer.files),
        metadata=tuple(metadata),
    )


preview = no_picture


def _open(path: Path) -> Any:  # noqa: ANN401 - pyarrow has no types
    with path.open("rb") as file:
        if file.read(4) == b"PARE":
            raise DocumentRejected(
                "the Parquet file is encrypted: store it without encryption", reason="encrypted"
            )
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as exc:
        raise DocumentRejected(f"pyarrow cannot open it: {exc}", reason="damaged") from exc


def _read_group(
    file: Any,  # noqa: ANN401 - pyarrow has no types
    group: int,
    first: int,
    room: int,
    *,
    options: ReaderOptions,
) -> tuple[Unit, list[Row]]:
    """Return at most `room` rows of a row group that have a value, and what became of the others."""
    name = f"rows {first}-{first + file.metadata.row_group(group).num_rows - 1}"
    rows: list[Row] = []
    error = None
    try:
        for row in _rows(file, group, first):
            if len(rows) == room:
                error = f"rows from {row.number} on left out: reader.max_rows is {options.max_rows}"
                break
            rows.append(row)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as exc:
        error = f"rows behind {rows[-1].number if rows else first - 1} cannot be read: {exc}"
    status: UnitStatus = "failed" if error else "read" if rows else "empty"
    return Unit(name=name, status=status, error=error), rows


def _rows(file: Any, group: int, first: int) -> Iterator[Row]:  # noqa: ANN401 - pyarrow has no types
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group]):
        for number, cells in enumerate(_cells(batch), start=first):
            if any(cells):
                yield Row(number, cells)
        first += batch.num_rows


def _typed_rows(file: Any, numbers: Sequence[int]) -> Any:  # noqa: ANN401 - pyarrow has no types
    """Return the rows of these numbers, from 1 and in order, as the file types them."""
    kept: list[Any] = []
    first, at = 1, 0
    for group in range(file.num_row_groups):
        stop = first + file.metadata.row_group(group).num_rows
        batches = file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group])
        # Not beyond the last row that was read of a group: what follows may be damaged.
        while at < len(numbers) and numbers[at] < stop:
            batch = next(batches)
            end = bisect_left(numbers, first + batch.num_rows, lo=at)
            # By slices: not every type can be taken row by row.
            while at < end:
                run = at + 1
                while run < end and numbers[run] == numbers[run - 1] + 1:
                    run += 1
                kept.append(batch.slice(numbers[at] - first, run - at))
                at = run
            first += batch.num_rows
        first = stop
    table = pa.Table.from_batches(kept)
    letters = [column_letters(index) for index in range(table.num_columns)]
    renamed = table.rename_columns(unique_names(table.column_names, letters))
    field = pa.field("row", pa.int64(), nullable=False)
    return renamed.add_column(0, field, pa.array(numbers, pa.int64()))


def _cells(batch: Any) -> Iterator[list[str]]:  # noqa: ANN401 - pyarrow has no types
    columns = [_texts(column) for column in batch.columns]
    return (list(cells) for cells in zip(*columns, strict=True))


def _texts(column: Any) -> list[str]:  # noqa: ANN401 - pyarrow has no types
    try:
        if getattr(column.type, "unit", "") == "ns" and not pa.types.is_duration(column.type):
            # Python's own dates end at the microsecond.
            column = column.cast(pa.string())
        values = column.to_pylist()
    except (OverflowError, ValueError, KeyError):
        # A time beyond Python's calendar is given as Arrow writes it, one in a zone that is not
        # known in UTC.
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp(column.type.unit))
        values = column.cast(pa.string()).to_pylist()
    return [_text(value) for value in values]


def _text(value: object) -> str:
    if isinstance(value, bytes):
        # Old writers do not say that their bytes are text.
        value = value.decode("utf-8", errors="replace")
    elif isinstance(value, list | dict):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return cell_text(value)
