"""Reads workbooks (xlsx, xlsm, xlsb, xls, ods) by python-calamine, which keeps true A1 positions."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import python_calamine as calamine

from connectors.document import Content, Segment, Span, Unit
from connectors.errors import DocumentRejected
from connectors.readers import Password, ReaderOptions
from connectors.readers.table_rows import Row, cell_text, sheet_segments

VERSION = 1
"""Raised whenever the same file gives other segments; it enters the chunk keys."""

_MAX_CELLS = 20_000_000
"""Most cells of one sheet that are looked at, empty ones too: a wrong range costs a minute."""


class _Sheet(NamedTuple):
    unit: Unit
    segments: Sequence[Segment]
    num_rows: int


def read(path: Path, media_type: str, media_dir: Path, options: ReaderOptions) -> Content:  # noqa: ARG001
    """Return every non-empty row of every sheet, hidden ones too.

    Raises:
        DocumentRejected: The workbook is encrypted or damaged, or no sheet can be read.
    """
    workbook = _open(path)
    sheets: list[_Sheet] = []
    left = options.max_rows
    for metadata in workbook.sheets_metadata:
        sheet = _read_sheet(workbook, metadata, left, options)
        left -= sheet.num_rows
        sheets.append(sheet)
    failed = [sheet.unit for sheet in sheets if sheet.unit.status == "failed"]
    if not any(sheet.segments for sheet in sheets) and failed:
        raise DocumentRejected(f"no sheet can be read: {failed[0].error}", reason="damaged")
    visible = calamine.SheetVisibleEnum.Visible
    hidden = [sheet.name for sheet in workbook.sheets_metadata if sheet.visible != visible]
    minor = ".".join(importlib.metadata.version("python-calamine").split(".")[:2])
    return Content(
        media_type=media_type,
        reader=f"spreadsheet/{VERSION}+calamine-{minor}{options.changes('max_rows')}",
        units=tuple(sheet.unit for sheet in sheets),
        segments=tuple(segment for sheet in sheets for segment in sheet.segments),
        metadata=(("hidden_sheets", ", ".join(hidden)),) if hidden else (),
    )


def preview(
    path: Path,  # noqa: ARG001
    media_type: str,  # noqa: ARG001
    span: Span,  # noqa: ARG001
    max_px: int,  # noqa: ARG001
    *,
    password: Password | None = None,  # noqa: ARG001
) -> bytes | None:
    """Return None: a sheet has no picture."""
    return None


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
    workbook: Any,  # noqa: ANN401 - calamine has no types
    metadata: Any,  # noqa: ANN401 - calamine has no types
    max_rows: int,
    options: ReaderOptions,
) -> _Sheet:
    name = f"sheet {metadata.name!r}"
    if metadata.typ != calamine.SheetTypeEnum.WorkSheet:
        return _Sheet(Unit(name=name, status="empty"), (), 0)
    try:
        sheet = workbook.get_sheet_by_name(metadata.name)
    except calamine.CalamineError as exc:
        return _Sheet(Unit(name=name, status="failed", error=f"calamine: {exc}"), (), 0)
    if sheet.start is None:
        return _Sheet(Unit(name=name, status="empty"), (), 0)
    rows = list(islice(_rows(sheet), max_rows + 1))
    if not rows:
        return _Sheet(Unit(name=name, status="empty"), (), 0)
    unit = Unit(name=name, status="read")
    if len(rows) > max_rows:
        cut = rows.pop()
        error = f"rows from {cut.number} on left out: reader.max_rows is {options.max_rows}"
        unit = Unit(name=name, status="failed", error=error)
    elif sheet.height * sheet.width > _MAX_CELLS:
        error = f"rows behind {rows[-1].number} were not looked at: the used range has "
        error += f"{sheet.height * sheet.width:,} cells, and the limit is {_MAX_CELLS:,}"
        unit = Unit(name=name, status="failed", error=error)
    return _Sheet(unit, tuple(sheet_segments(metadata.name, rows, sheet.start[1])), len(rows))


def _rows(sheet: Any) -> Iterator[Row]:  # noqa: ANN401 - calamine has no types
    """Yield the rows that have a value, as far as `_MAX_CELLS` reach."""
    last = sheet.start[0] + max(1, _MAX_CELLS // max(1, sheet.width))
    for number, values in enumerate(islice(sheet.iter_rows(), last), start=1):
        cells = [cell_text(value) for value in values]
        if any(cells):
            yield Row(number, cells)
