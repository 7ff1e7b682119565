"""Reads CSV and TSV files, with comma, semicolon, tab or bar between the fields."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import TextIO

from connectors.document import Content, Unit
from connectors.errors import DocumentRejected
from connectors.readers import VERSIONS, ReaderOptions, no_picture
from connectors.readers.decoding import find_encoding
from connectors.readers.table_files import TableWriter
from connectors.readers.table_header import Row
from connectors.readers.table_rows import cell_text, sheet_segments
from connectors.readers.tables import find_tables

VERSION = VERSIONS["delimited"]
"""Raised whenever the same file gives other segments; it enters the chunk keys."""

_DELIMITERS = (",", ";", "\t", "|")
_SAMPLE_CHARS = 65_536
_MAX_FIELD_CHARS = 10_000_000


def read(path: Path, media_type: str, media_dir: Path, options: ReaderOptions) -> Content:
    """Return the file's rows; the first is the header where it is all words.

    Raises:
        DocumentRejected: The file has no row, or its first row cannot be read.
    """
    csv.field_size_limit(_MAX_FIELD_CHARS)
    encoding = find_encoding(path)
    with path.open(encoding=encoding, errors="replace", newline="") as file:
        sample = file.read(_SAMPLE_CHARS)
        file.seek(0)
        delimiter = find_delimiter(sample)
        rows, error = _read_rows(file, delimiter, options)
    if not rows:
        if error is not None:
            raise DocumentRejected(error, reason="damaged")
        raise DocumentRejected("the file has no row with a value", reason="empty")
    unit = Unit(name="rows", status="failed" if error else "read", error=error)
    tables = find_tables(rows)
    writer = TableWriter(media_dir)
    if options.tables:
        writer.add("", tables, 0)
    return Content(
        media_type=media_type,
        reader=f"delimited/{VERSION}{options.changes('max_rows')}",
        units=(unit,),
        segments=tuple(sheet_segments("", tables, 0)),
        tables=tuple(writer.files),
        metadata=(("delimiter", repr(delimiter)), ("encoding", encoding), *writer.metadata),
    )


preview = no_picture


def find_delimiter(sample: str) -> str:
    """Return the delimiter that cuts most rows of the sample into the same number of fields.

    `csv.Sniffer` takes letters and digits for delimiters; a file of one column has none, and
    then a comma does no harm.
    """
    return max(_DELIMITERS, key=lambda delimiter: _score(sample, delimiter))


def _score(sample: str, delimiter: str) -> tuple[float, int]:
    """Return the share of rows with the usual number of fields, and that number."""
    # The sample's last row may be torn.
    lines = sample.splitlines(keepends=True)
    whole = "".join(lines[:-1]) if len(lines) > 1 else sample
    try:
        counts = Counter(
            len(row) for row in csv.reader(io.StringIO(whole), delimiter=delimiter) if row
        )
    except csv.Error:
        return (0.0, 0)
    split = {count: times for count, times in counts.items() if count > 1}
    if not split:
        return (0.0, 0)
    usual = max(split, key=lambda count: (split[count], count))
    return (split[usual] / counts.total(), usual)


def _read_rows(
    file: TextIO, delimiter: str, options: ReaderOptions
) -> tuple[list[Row], str | None]:
    """Return the rows that have a value, and what was left out, if anything was."""
    reader = csv.reader(file, delimiter=delimiter)
    rows: list[Row] = []
    try:
        for number, fields in enumerate(reader, start=1):
            if len(rows) == options.max_rows:
                error = f"rows from {number} on left out: reader.max_rows is {options.max_rows}"
                return rows, error
            cells = [cell_text(field) for field in fields]
            if any(cells):
                rows.append(Row(number, cells))
    except csv.Error as exc:
        return rows, f"rows behind line {reader.line_num} cannot be read: {exc}"
    return rows, None
