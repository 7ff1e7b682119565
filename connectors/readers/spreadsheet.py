"""Reads workbooks (xlsx, xlsm, xlsb, xls, ods) by python-calamine, which keeps true A1 positions.

What calamine does not tell is looked up in the XML of xlsx and xlsm files, and formulas are read by
openpyxl where they are asked for.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import python_calamine as calamine

from connectors.document import Content, Segment, Span, Unit
from connectors.errors import DocumentRejected
from connectors.readers import VERSIONS, ReaderOptions, no_picture
from connectors.readers.detect import XLSM, XLSX
from connectors.readers.formulas import Formulas, FormulasError
from connectors.readers.table_files import TableWriter
from connectors.readers.table_header import Merge, Row
from connectors.readers.table_rows import Hidden, cell_text, column_index, sheet_segments
from connectors.readers.tables import Marked, find_tables
from connectors.readers.workbook_parts import (
    Comment,
    Listed,
    PartsError,
    SheetMarks,
    WorkbookParts,
)

VERSION = VERSIONS["spreadsheet"]
"""Raised whenever the same file gives other segments; it enters the chunk keys."""

_MAX_CELLS = 20_000_000
"""Most cells of one sheet that are looked at, empty ones too: a wrong range costs a minute."""


_RANGE = re.compile(r"([A-Z]{1,3})(\d{1,7}):([A-Z]{1,3})(\d{1,7})")


class _Workbook(NamedTuple):
    """A workbook as each library sees it; `errors` says what is not open and why."""

    values: Any
    parts: WorkbookParts | None = None
    formulas: Formulas | None = None
    errors: tuple[str, ...] = ()


class _Details(NamedTuple):
    """What is known of a sheet besides its values."""

    marks: SheetMarks
    comments: Sequence[Comment]
    tables: Sequence[Listed]
    formulas: Mapping[int, Mapping[int, str]]
    errors: Sequence[str]


class _Sheet(NamedTuple):
    unit: Unit
    segments: Sequence[Segment] = ()
    num_rows: int = 0


def read(path: Path, media_type: str, media_dir: Path, options: ReaderOptions) -> Content:
    """Return every non-empty row of every sheet, hidden ones too.

    Raises:
        DocumentRejected: The workbook is encrypted or damaged, or no sheet can be read.
    """
    workbook = _open_all(path, media_type, options)
    listed = workbook.values.sheets_metadata
    sheets: list[_Sheet] = []
    left = options.max_rows
    writer = TableWriter(media_dir)
    for metadata in listed:
        sheet = _read_sheet(workbook, metadata, left, options, writer=writer)
        left -= sheet.num_rows
        sheets.append(sheet)
    failed = [sheet.unit for sheet in sheets if sheet.unit.status == "failed"]
    if not any(sheet.segments for sheet in sheets) and failed:
        raise DocumentRejected(f"no sheet can be read: {failed[0].error}", reason="damaged")
    hidden = [metadata.name for metadata in listed if _is_hidden(metadata)]
    libraries = [("calamine", "python-calamine")]
    libraries += [("openpyxl", "openpyxl")] if workbook.formulas else []
    used = "".join(f"+{name}-{_minor_version(package)}" for name, package in libraries)
    return Content(
        media_type=media_type,
        reader=f"spreadsheet/{VERSION}{used}{options.changes('max_rows', 'formulas')}",
        units=tuple(sheet.unit for sheet in sheets),
        segments=tuple(segment for sheet in sheets for segment in sheet.segments),
        tables=tuple(writer.files),
        metadata=(
            *((("hidden_sheets", ", ".join(hidden)),) if hidden else ()),
            *writer.metadata,
        ),
    )


preview = no_picture


def _minor_version(package: str) -> str:
    return ".".join(importlib.metadata.version(package).split(".")[:2])


def _is_hidden(metadata: Any) -> bool:  # noqa: ANN401 - calamine has no types
    return bool(metadata.visible != calamine.SheetVisibleEnum.Visible)


def _open_all(path: Path, media_type: str, options: ReaderOptions) -> _Workbook:
    workbook = _Workbook(_open(path))
    if media_type not in {XLSX, XLSM}:
        return workbook
    try:
        workbook = workbook._replace(parts=WorkbookParts.open(path))
    except PartsError as exc:
        error = f"errors, units, comments, hidden rows and table names are not told: {exc}"
        workbook = workbook._replace(errors=(error,))
    if options.formulas:
        try:
            workbook = workbook._replace(formulas=Formulas.open(path))
        except FormulasError as exc:
            error = f"formulas are left out: {exc}"
            workbook = workbook._replace(errors=(*workbook.errors, error))
    return workbook


def _open(path: Path) -> Any:  # noqa: ANN401 - calamine has no types
    try:
        return calamine.load_workbook(path)
    except calamine.PasswordError as exc:
        raise DocumentRejected(
            "the workbook is encrypted: store it without its password", reason="encrypted"
        ) from exc
    except (calamine.CalamineError, OSError) as exc:
        raise DocumentRejected(f"calamine cannot open it: {exc}", reason="damaged") from exc


def _read_sheet(
    workbook: _Workbook,
    metadata: Any,  # noqa: ANN401 - calamine has no types
    max_rows: int,
    options: ReaderOptions,
    *,
    writer: TableWriter,
) -> _Sheet:
    name = f"sheet {metadata.name!r}"
    if metadata.typ != calamine.SheetTypeEnum.WorkSheet:
        return _Sheet(Unit(name=name, status="empty"))
    try:
        sheet = workbook.values.get_sheet_by_name(metadata.name)
    except calamine.CalamineError as exc:
        return _Sheet(Unit(name=name, status="failed", error=f"calamine: {exc}"))
    details = _find_details(workbook, metadata.name, sheet)
    rows = list(islice(_rows(sheet, details), max_rows + 1)) if sheet.start else []
    errors = [*details.errors]
    if len(rows) > max_rows:
        cut = rows.pop()
        errors.append(f"rows from {cut.number} on left out: reader.max_rows is {options.max_rows}")
    elif sheet.start and sheet.height * sheet.width > _MAX_CELLS:
        error = f"rows behind {rows[-1].number if rows else 0} were not looked at: the used range "
        error += f"has {sheet.height * sheet.width:,} cells, and the limit is {_MAX_CELLS:,}"
        errors.append(error)
    hidden = Hidden(
        _is_hidden(metadata), details.marks.hidden_rows, frozenset(details.marks.hidden_columns)
    )
    left = sheet.start[1] if sheet.start else 0
    tables = find_tables(rows, _merges(sheet, left), _marked(details.tables, left)) if rows else []
    if options.tables:
        writer.add(metadata.name, tables, left, details.formulas)
    segments = [*sheet_segments(metadata.name, tables, left, hidden=hidden)]
    segments += [_comment_segment(metadata.name, comment) for comment in details.comments]
    if errors:
        unit = Unit(name=name, status="failed", error="; ".join(errors))
    else:
        unit = Unit(name=name, status="read" if segments else "empty")
    return _Sheet(unit, segments, len(rows))


def _find_details(workbook: _Workbook, name: str, sheet: Any) -> _Details:  # noqa: ANN401 - calamine has no types
    """Return what the other libraries tell of the sheet."""
    errors = [*workbook.errors]
    marks = SheetMarks({}, {}, [], set())
    comments: list[Comment] = []
    tables: list[Listed] = []
    formulas: dict[int, dict[int, str]] = {}
    if workbook.parts is not None:
        try:
            marks = workbook.parts.marks(name)
            comments = workbook.parts.comments(name)
        except PartsError as exc:
            errors.append(f"errors, units, comments and hidden rows are not told: {exc}")
        try:
            tables = workbook.parts.tables(name)
        except PartsError as exc:
            errors.append(f"table names are not told: {exc}")
    if workbook.formulas is not None and sheet.end is not None:
        try:
            formulas = workbook.formulas.of_sheet(name, sheet.end[0] + 1, sheet.end[1] + 1)
        except FormulasError as exc:
            errors.append(f"formulas are left out: {exc}")
    return _Details(marks, comments, tables, formulas, errors)


def _rows(sheet: Any, details: _Details) -> Iterator[Row]:  # noqa: ANN401 - calamine has no types
    """Yield the rows that have a value, as far as `_MAX_CELLS` reach."""
    last = sheet.start[0] + max(1, _MAX_CELLS // max(1, sheet.width))
    left = sheet.start[1]
    marked = details.marks.errors.keys() | details.marks.units.keys() | details.formulas.keys()
    for number, values in enumerate(islice(sheet.iter_rows(), last), start=1):
        cells = [cell_text(value) for value in values]
        if number in marked:
            _add_marks(cells, values, details, (number, left))
        if any(cells):
            yield Row(number, cells)


def _add_marks(
    cells: list[str], values: Sequence[object], details: _Details, start: tuple[int, int]
) -> None:
    """Put units, errors and formulas into the texts of a row that begins at row and column `start`."""
    number, left = start
    for column, unit in details.marks.units.get(number, {}).items():
        index = column - left
        if 0 <= index < len(cells):
            value = values[index]
            if isinstance(value, int | float) and not isinstance(value, bool):
                cells[index] = _with_unit(value, unit)
    for column, error in details.marks.errors.get(number, {}).items():
        index = column - left
        if 0 <= index < len(cells):
            cells[index] = cells[index] or error
    for column, formula in details.formulas.get(number, {}).items():
        index = column - left
        if 0 <= index < len(cells):
            cells[index] = f"{formula} -> {cells[index]}" if cells[index] else formula


def _with_unit(value: float, unit: str) -> str:
    """Return `12.5%`, `$-3` or `20 CHF`."""
    if unit == "%":
        return f"{cell_text(float(value) * 100)}%"
    text = cell_text(value)
    return f"{text} {unit}" if unit.isalpha() else f"{unit}{text}"


def _merges(sheet: Any, left: int) -> list[Merge]:  # noqa: ANN401 - calamine has no types
    """Return the merged cells; calamine does not know those of ods files."""
    return [
        Merge(start[0] + 1, start[1] - left, end[0] + 1, end[1] - left)
        for start, end in sheet.merged_cell_ranges or ()
        if start[1] >= left
    ]


def _marked(listed: Iterable[Listed], left: int) -> Iterator[Marked]:
    """Yield the marked tables, their columns counted from column `left` of the sheet."""
    for table in listed:
        ends = _RANGE.fullmatch(table.cells)
        if ends is not None:
            first, last = column_index(ends[1]) - left, column_index(ends[3]) - left
            if last >= 0 and first <= last:
                yield Marked(
                    name=table.name,
                    top=int(ends[2]),
                    left=max(0, first),
                    bottom=int(ends[4]),
                    right=last,
                    has_header=table.has_header,
                    num_totals=table.num_totals,
                )


def _comment_segment(sheet: str, comment: Comment) -> Segment:
    author = f" by {comment.author}" if comment.author else ""
    return Segment(
        kind="paragraph",
        text=f"Comment on {comment.cell}{author}: {comment.text}",
        span=Span(sheet=sheet, cells=comment.cell),
    )
