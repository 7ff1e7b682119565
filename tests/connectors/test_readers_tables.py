"""Workbooks and CSV files: every row with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from connectors.errors import DocumentRejected
from connectors.readers import ReaderOptions, delimited, detect_media_type, spreadsheet
from connectors.readers.table_rows import column_letters
from tests.corpora.make import write_xlsx

CORPORA = Path(__file__).parent.parent / "corpora"


def _sheets(path: Path, **options: int):
    media_type = detect_media_type(path, path.name)
    return spreadsheet.read(path, media_type, path.parent, ReaderOptions(tables=False, **options))


def _csv(tmp_path: Path, data: bytes, **options: int):
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    return delimited.read(path, "text/csv", tmp_path, ReaderOptions(**options))


def test_rows_have_true_positions_when_the_table_starts_off_the_corner(tmp_path):
    cells = {"C3": "Name", "D3": "Tons", "C4": "Barley", "D4": 1180.0, "C7": "Wheat", "D7": 1420.5}
    content = _sheets(write_xlsx(tmp_path / "a.xlsx", {"Cargo": cells}))
    assert [(s.kind, s.span.cells, s.text) for s in content.segments] == [
        ("heading", "C3:D3", "Sheet Cargo!C3:D7, columns: row, C Name, D Tons"),
        ("table", "C4:D4", "4,Barley,1180"),
        ("table", "C7:D7", "7,Wheat,1420.5"),
    ]
    assert {s.span.sheet for s in content.segments} == {"Cargo"}


def test_all_sheets_are_read_and_hidden_ones_named(tmp_path):
    sheets = {"One": {"A1": "x", "A2": 1}, "Two": {}, "Three": {"B2": True}}
    content = _sheets(write_xlsx(tmp_path / "a.xlsx", sheets, hidden="Three"))
    assert [(u.name, u.status) for u in content.units] == [
        ("sheet 'One'", "read"),
        ("sheet 'Two'", "empty"),
        ("sheet 'Three'", "read"),
    ]
    assert content.segments[-1].text == "2,TRUE"
    assert content.metadata == (("hidden_sheets", "Three"),)


def test_rows_behind_the_limit_are_named_when_the_sheet_is_long(tmp_path):
    cells = {f"A{number}": number for number in range(1, 31)}
    content = _sheets(write_xlsx(tmp_path / "a.xlsx", {"S": cells}), max_rows=10)
    assert len([s for s in content.segments if s.kind == "table"]) == 10
    assert content.units[0].status == "failed"
    assert "rows from 11 on" in content.units[0].error


def test_inflated_range_costs_no_segments(tmp_path):
    content = _sheets(write_xlsx(tmp_path / "a.xlsx", {"S": {"A1": "a", "C60000": "z"}}))
    assert [s.span.cells for s in content.segments if s.kind == "table"] == ["A1", "C60000"]


def test_dates_are_iso_when_the_workbook_counts_from_1904():
    texts = [s.text for s in _sheets(CORPORA / "date_1904.xlsx").segments]
    assert any("2021-01-01" in text for text in texts)


@pytest.mark.parametrize("name", ["issue_594_dos.ods", "issue252.xlsx"])
def test_workbook_is_rejected_when_it_is_a_bomb(name):
    with pytest.raises(DocumentRejected) as caught:
        _sheets(CORPORA / name)
    assert caught.value.reason == "damaged"


def test_other_formats_are_read():
    assert "2,Ab" in [s.text for s in _sheets(CORPORA / "issue_182.xlsb").segments]
    assert _sheets(CORPORA / "merged_cells.ods").segments


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiter_is_found(tmp_path, delimiter):
    lines = [("name", "place"), ("Ann, Bo", "1.5"), ("Cy; Di", "2,5"), ("plain", "3")]
    rows = "".join(delimiter.join(f'"{cell}"' for cell in line) + "\n" for line in lines)
    content = _csv(tmp_path, rows.encode())
    assert content.segments[0].text == "Table A1:B4, columns: row, A name, B place"
    assert content.segments[1].text == '2,"Ann, Bo",1.5'
    assert [s.span.cells for s in content.segments] == ["A1:B1", "A2:B2", "A3:B3", "A4:B4"]


def test_one_column_is_accepted(tmp_path):
    content = _csv(tmp_path, b"100\n200\n300\n")
    assert [s.text for s in content.segments] == [
        "Table A1:A3, columns: row, A",
        "1,100",
        "2,200",
        "3,300",
    ]


def test_encoding_is_found(tmp_path):
    assert "Zürich" in _csv(tmp_path, "a,b\nZürich,1\n".encode("cp1252")).segments[1].text
    assert "Zürich" in _csv(tmp_path, "a,b\nZürich,1\n".encode("utf-8-sig")).segments[1].text
    assert "Zürich" in _csv(tmp_path, "a,b\nZürich,1\n".encode("utf-16")).segments[1].text


def test_csv_rows_behind_the_limit_are_named(tmp_path):
    content = _csv(tmp_path, b"a,b\n" * 20, max_rows=5)
    assert content.units[0].status == "failed"
    assert "rows from 6 on" in content.units[0].error


def test_csv_is_rejected_as_empty_when_it_has_no_value(tmp_path):
    with pytest.raises(DocumentRejected) as caught:
        _csv(tmp_path, b"\n\n,,\n")
    assert caught.value.reason == "empty"


@pytest.mark.parametrize(
    ("index", "letters"), [(0, "A"), (25, "Z"), (26, "AA"), (701, "ZZ"), (702, "AAA")]
)
def test_column_letters(index, letters):
    assert column_letters(index) == letters
