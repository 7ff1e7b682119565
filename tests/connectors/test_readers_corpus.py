"""Every cell of every sheet in a folder of real files, against calamine's own values."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path

import openpyxl
import pytest
import python_calamine as calamine

from connectors.document import Content, Segment
from connectors.errors import DocumentRejected
from connectors.readers import ReaderOptions, detect_media_type, load_reader
from connectors.readers.table_rows import cell_text, column_letters

pytestmark = pytest.mark.corpus

EVERYTHING = ReaderOptions(max_rows=2_000_000, tables=False)
Place = tuple[str, int, int]


def _index(letters: str) -> int:
    index = 0
    for letter in letters:
        index = index * 26 + ord(letter) - 64
    return index - 1


def _read(path: Path) -> Content | None:
    try:
        media_type = detect_media_type(path, path.name)
        return load_reader(media_type).read(path, media_type, path.parent, EVERYTHING)
    except DocumentRejected:
        return None


def _row_cells(segments: tuple[Segment, ...]) -> Iterator[tuple[Place, str]]:
    """Yield each cell of the row segments with its place, as the headings and numbers tell it."""
    left = 0
    for segment in segments:
        if segment.kind == "heading":
            left = _index(re.search(r", columns: row, ([A-Z]+)\b", segment.text)[1])
        elif segment.kind == "table":
            number, *cells = next(csv.reader([segment.text]))
            places = [
                (segment.span.sheet, int(number), left + i) for i, cell in enumerate(cells) if cell
            ]
            ends = [f"{column_letters(column)}{number}" for _, _, column in (places[0], places[-1])]
            assert segment.span.cells == ":".join(dict.fromkeys(ends))
            yield from zip(places, filter(None, cells), strict=True)


def _headings(content: Content) -> dict[Place, list[str]]:
    """Return the texts of the headings by each cell that their titles and headers cover."""
    found: dict[Place, list[str]] = {}
    for segment in content.segments:
        if segment.kind == "heading":
            first, _, last = segment.span.cells.partition(":")
            (left, top), (right, bottom) = (
                re.fullmatch(r"([A-Z]+)(\d+)", end).groups() for end in (first, last or first)
            )
            # A header has few rows; a block without one names all of its cells.
            for row in range(int(top), min(int(bottom), int(top) + 20) + 1):
                for column in range(_index(left), _index(right) + 1):
                    found.setdefault((segment.span.sheet, row, column), []).append(segment.text)
    return found


def _check(content: Content, truth: dict[Place, object]) -> int:
    """Compare all cells and return how many there are."""
    told = list(_row_cells(content.segments))
    cells = dict(told)
    assert len(cells) == len(told)
    headings = _headings(content)
    for place, value in truth.items():
        text = cell_text(value)
        if place not in cells:
            assert any(text in heading for heading in headings.get(place, ())), (place, text)
        elif cells[place] != text:
            number = re.sub(r"[^\d.e+-]", "", cells[place])
            scale = 100 if cells[place].endswith("%") else 1
            assert float(number) == pytest.approx(float(value) * scale, rel=1e-12), place
    assert all(cells[place].startswith("#") for place in cells.keys() - truth.keys())
    return len(truth)


def _workbook_truth(path: Path) -> dict[Place, object]:
    workbook = calamine.load_workbook(path)
    return {
        (sheet.name, number, index): value
        for sheet in workbook.sheets_metadata
        if sheet.typ == calamine.SheetTypeEnum.WorkSheet
        for number, row in enumerate(
            workbook.get_sheet_by_name(sheet.name).to_python(skip_empty_area=False), start=1
        )
        for index, value in enumerate(row)
        if cell_text(value)
    }


def _csv_truth(path: Path, content: Content) -> dict[Place, object]:
    stated = dict(content.metadata)
    delimiter = stated["delimiter"][1:-1].encode().decode("unicode_escape")
    with path.open(encoding=stated["encoding"], errors="replace", newline="") as file:
        return {
            ("", number, index): value
            for number, row in enumerate(csv.reader(file, delimiter=delimiter), start=1)
            for index, value in enumerate(row)
            if cell_text(value)
        }


def _corpus() -> list[Path]:
    corpus = Path(os.environ["HEADRACE_CORPUS"])
    return sorted(path for path in (corpus / "sheets").iterdir() if path.is_file())


@pytest.mark.timeout(600)
def test_every_cell_has_its_place_when_sheets_are_real():
    num_cells = num_files = 0
    for path in _corpus():
        content = _read(path)
        if content is None:
            continue
        is_text = content.media_type.startswith("text/")
        num_cells += _check(
            content, _csv_truth(path, content) if is_text else _workbook_truth(path)
        )
        num_files += 1
        assert {unit.status for unit in content.units} <= {"read", "empty"}, path.name
    assert num_files > 20
    assert num_cells > 900_000


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.timeout(600)
def test_errors_are_those_that_openpyxl_sees():
    num_errors = 0
    for path in _corpus():
        content = _read(path) if path.suffix in {".xlsx", ".xlsm"} else None
        if content is None:
            continue
        told = dict(_row_cells(content.segments))
        headings = _headings(content)
        for sheet in openpyxl.load_workbook(path, data_only=True).worksheets:
            for cell in (cell for row in sheet.iter_rows() for cell in row):
                place = (sheet.title, cell.row, cell.column - 1)
                # openpyxl takes a date behind the year 9999 for an error, too.
                if cell.data_type == "e" and told.get(place, "#").startswith("#"):
                    texts = [told[place]] if place in told else headings[place]
                    assert any(str(cell.value) in text for text in texts)
                    num_errors += 1
    assert num_errors > 5
