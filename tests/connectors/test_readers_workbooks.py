"""Workbooks with several tables, merged headers, errors, units, hidden parts and comments."""

from __future__ import annotations

from pathlib import Path

import pytest

from connectors.chunker import ChunkRule, chunk_document
from connectors.readers import ReaderOptions, delimited, detect_media_type, spreadsheet
from tests.connectors.test_chunker import WordCounter
from tests.corpora.make import Cell, Extras, write_xlsx


def _grid(start: str, *rows: tuple[object, ...]) -> dict[str, object]:
    """Return cells by their names, the first of them at `start`; None is no cell."""
    column, number = ord(start[0]), int(start[1:])
    return {
        f"{chr(column + right)}{number + down}": value
        for down, row in enumerate(rows)
        for right, value in enumerate(row)
        if value is not None
    }


def _read(tmp_path: Path, *grids: dict[str, object], extra: Extras | None = None, **options: bool):
    cells = {name: value for grid in grids for name, value in grid.items()}
    # A workbook is written row by row, from left to right.
    cells = dict(sorted(cells.items(), key=lambda item: (int(item[0][1:]), item[0][0])))
    path = write_xlsx(tmp_path / "a.xlsx", {"S": cells}, extras={"S": extra or Extras()})
    media_type = detect_media_type(path, path.name)
    return spreadsheet.read(path, media_type, tmp_path, ReaderOptions(**options))


def _told(content) -> list[tuple[str, str]]:
    return [(segment.span.cells, segment.text) for segment in content.segments]


CREW = _grid("A1", ("Name", "Age"), ("Ann", 41), ("Bo", 35))


def test_tables_are_told_apart_when_a_row_is_blank_between_them(tmp_path):
    content = _read(tmp_path, CREW, _grid("A5", ("Ship", "Tons"), ("Olga", 900)))
    assert _told(content) == [
        ("A1:B1", "Sheet S!A1:B3, columns: row, A Name, B Age"),
        ("A2:B2", "2,Ann,41"),
        ("A3:B3", "3,Bo,35"),
        ("A5:B5", "Sheet S!A5:B6, columns: row, A Ship, B Tons"),
        ("A6:B6", "6,Olga,900"),
    ]


@pytest.mark.parametrize("height", [1, 3])
def test_tables_are_told_apart_when_they_stand_side_by_side(tmp_path, height):
    ships = [("Olga", 900), ("Rita", 700), ("Vera", 20)][:height]
    content = _read(tmp_path, CREW, _grid("D1", ("Ship", "Tons"), *ships))
    told = _told(content)
    assert told[:3] == [
        ("A1:B1", "Sheet S!A1:B3, columns: row, A Name, B Age"),
        ("A2:B2", "2,Ann,41"),
        ("A3:B3", "3,Bo,35"),
    ]
    assert told[3] == ("D1:E1", f"Sheet S!D1:E{1 + height}, columns: row, D Ship, E Tons")
    assert told[4] == ("D2:E2", "2,Olga,900")
    assert len(told) == 4 + height


def test_table_stays_whole_when_a_blank_column_only_sets_figures_apart(tmp_path):
    rows = [
        ("Item", "Unit", None, "First", "Second"),
        ("Oil", "t", None, 1, 2),
        ("Gas", "t", None, 3, 4),
    ]
    content = _read(tmp_path, _grid("A1", *rows))
    assert [s.text for s in content.segments] == [
        "Sheet S!A1:E3, columns: row, A Item, B Unit, C, D First, E Second",
        "2,Oil,t,,1,2",
        "3,Gas,t,,3,4",
    ]


def test_table_goes_on_when_a_blank_row_is_inside(tmp_path):
    content = _read(tmp_path, CREW, _grid("A5", ("Cy", 28), ("Di", 50)))
    assert [s.kind for s in content.segments] == ["heading"] + ["table"] * 4
    assert content.segments[0].text == "Sheet S!A1:B6, columns: row, A Name, B Age"


def test_text_table_goes_on_when_a_blank_row_is_inside(tmp_path):
    first = _grid("A1", ("Name", "Port"), ("Ann", "Rostock"))
    content = _read(tmp_path, first, _grid("A4", ("Bo", "Kiel"), ("Cy", "Wismar")))
    assert [s.text for s in content.segments] == [
        "Sheet S!A1:B5, columns: row, A Name, B Port",
        "2,Ann,Rostock",
        "4,Bo,Kiel",
        "5,Cy,Wismar",
    ]


def test_line_above_a_table_is_its_title(tmp_path):
    first = _grid("A1", ("Crew of 1932",), (), ("Name", "Age"), ("Ann", 41))
    second = _grid("A6", ("Ships",), ("Ship", "Tons"), ("Olga", 900))
    content = _read(tmp_path, first, second)
    assert _told(content) == [
        ("A1:B3", "Sheet S!A1:B4, title: Crew of 1932, columns: row, A Name, B Age"),
        ("A4:B4", "4,Ann,41"),
        ("A6:B7", "Sheet S!A6:B8, title: Ships, columns: row, A Ship, B Tons"),
        ("A8:B8", "8,Olga,900"),
    ]


def test_lone_line_is_the_title_of_the_nearer_table(tmp_path):
    line = {"A5": "Ships"}
    content = _read(tmp_path, CREW, line, _grid("A7", ("Ship", "Tons"), ("Olga", 900)))
    assert content.segments[3].text == "Sheet S!A5:B8, title: Ships, columns: row, A Ship, B Tons"
    content = _read(tmp_path, CREW, line, _grid("A8", ("Ship", "Tons"), ("Olga", 900)))
    assert content.segments[3].text == "5,Ships"


def test_header_stands_alone_when_a_blank_row_is_below_it(tmp_path):
    content = _read(tmp_path, _grid("A1", ("Name", "Age"), (), ("Ann", 41), ("Bo", 35)))
    assert content.segments[0].text == "Sheet S!A1:B4, columns: row, A Name, B Age"


def test_years_are_names_when_other_numbers_stand_below(tmp_path):
    content = _read(tmp_path, _grid("A1", ("Item", 2022, 2023), ("Oil", 7.5, 8)))
    assert content.segments[0].text == "Sheet S!A1:C2, columns: row, A Item, B 2022, C 2023"
    content = _read(tmp_path, _grid("A1", ("Ann", 2001), ("Bo", 2004)))
    assert content.segments[0].text == "Sheet S!A1:B2, columns: row, A to B"


def test_merged_header_is_one_name_per_column(tmp_path):
    rows = [
        ("Region", "Revenue", None, "Costs", None),
        (None, 2022, 2023, 2022, 2023),
        ("North", 5, 6, 3, 4),
        ("South", 7, 8, 5, 6),
    ]
    merges = ("A1:A2", "B1:C1", "D1:E1", "A3:A4")
    content = _read(tmp_path, _grid("A1", *rows), extra=Extras(merges=merges))
    assert _told(content) == [
        (
            "A1:E2",
            "Sheet S!A1:E4, columns: row, A Region, B Revenue / 2022, C Revenue / 2023, "
            "D Costs / 2022, E Costs / 2023",
        ),
        ("A3:E3", "3,North,5,6,3,4"),
        ("A4:E4", "4,South,7,8,5,6"),
    ]


def test_title_and_group_are_told_apart_when_both_are_merged(tmp_path):
    rows = [("Report",), (None, "Revenue", None), ("Region", "Old", "New"), ("North", 5, 6)]
    extra = Extras(merges=("A1:C1", "B2:C2"))
    content = _read(tmp_path, _grid("B3", *rows), extra=Extras(merges=("B3:D3", "C4:D4")))
    assert content.segments[0].text == (
        "Sheet S!B3:D6, title: Report, columns: row, B Region, C Revenue / Old, D Revenue / New"
    )
    assert _read(tmp_path, _grid("A1", *rows), extra=extra).segments[0].span.cells == "A1:C3"


def test_merged_cells_below_the_header_keep_their_place(tmp_path):
    rows = [("Region", "City", "Tons"), ("North", "Kiel", 5), (None, "Husum", 6), ("none", None, 7)]
    extra = Extras(merges=("A2:A3", "A4:B4"))
    content = _read(tmp_path, _grid("A1", *rows), extra=extra)
    assert _told(content)[1:] == [
        ("A2:C2", "2,North,Kiel,5"),
        ("B3:C3", "3,,Husum,6"),
        ("A4:C4", "4,none,,7"),
    ]


def test_errors_are_told_when_cells_have_no_value(tmp_path):
    rows = [
        ("Item", "Ratio"),
        ("Oil", Cell(error="#DIV/0!", formula="1/0")),
        ("Gas", Cell(error="#N/A")),
        (Cell(error="#REF!"),),
    ]
    content = _read(tmp_path, _grid("A1", *rows))
    assert [s.text for s in content.segments[1:]] == ["2,Oil,#DIV/0!", "3,Gas,#N/A", "4,#REF!"]
    assert content.units[0].status == "read"


def test_numbers_keep_their_unit_when_the_format_has_one(tmp_path):
    cells = [
        Cell(value=0.125, style="0.0%"),
        Cell(value=0.07, style='0%;[Red]"-"0%'),
        Cell(value=12.5, style="[$€-407] #,##0.00"),
        Cell(value=-3, style='"$"#,##0.00_);("$"#,##0.00)'),
        Cell(value=20, style='#,##0 "CHF"'),
        Cell(value=5, style='0 "% of all"'),
        Cell(value=44197, style="[$-409]yyyy-mm-dd"),
    ]
    content = _read(tmp_path, _grid("A1", tuple(cells)))
    assert content.segments[1].text == "1,12.5%,7%,€12.5,$-3,20 CHF,5,2021-01-01"


def test_dates_are_iso_when_they_count_from_1904(tmp_path):
    cells = {
        "A1": "Day",
        "A2": Cell(value=42735, style="yyyy-mm-dd"),
        "A3": Cell(value=42735.75, style="yyyy-mm-dd hh:mm"),
    }
    for from_1904, days in (
        (True, ["2,2021-01-01", "3,2021-01-01 18:00:00"]),
        (False, ["2,2016-12-31", "3,2016-12-31 18:00:00"]),
    ):
        path = write_xlsx(tmp_path / "a.xlsx", {"S": cells}, from_1904=from_1904)
        media_type = detect_media_type(path, "a.xlsx")
        content = spreadsheet.read(path, media_type, tmp_path, ReaderOptions())
        assert [s.text for s in content.segments[1:]] == days


def test_hidden_parts_are_marked(tmp_path):
    rows = [("Name", "Salary", "Port"), *((f"n{i}", i, "Kiel") for i in range(2, 8))]
    extra = Extras(hidden_rows=(3, 4, 6), hidden_columns=(2,))
    content = _read(tmp_path, _grid("A1", *rows), extra=extra)
    assert content.segments[0].text == (
        "Sheet S!A1:C7, hidden rows 3-4 6, columns: row, A Name, B Salary (hidden), C Port"
    )
    path = write_xlsx(tmp_path / "b.xlsx", {"S": {"A1": "x"}, "T": {"A1": "y"}}, hidden="T")
    content = spreadsheet.read(path, detect_media_type(path, "b.xlsx"), tmp_path, ReaderOptions())
    assert content.segments[2].text == "Hidden sheet T!A1, columns: row, A"


def test_comments_follow_the_rows(tmp_path):
    extra = Extras(comments={"B2": "Guessed,\nask Bo", "C9": "empty cell"})
    content = _read(tmp_path, CREW, extra=extra)
    assert [(s.kind, s.span.cells, s.text) for s in content.segments[3:]] == [
        ("paragraph", "B2", "Comment on B2 by Ann: Guessed, ask Bo"),
        ("paragraph", "C9", "Comment on C9 by Ann: empty cell"),
    ]


def test_inflated_range_is_not_believed(tmp_path):
    content = _read(tmp_path, CREW, extra=Extras(dimension="A1:XFD1048576"))
    assert content.segments[0].text == "Sheet S!A1:B3, columns: row, A Name, B Age"
    assert len(content.segments) == 3


def test_formulas_are_given_when_asked_for(tmp_path):
    rows = [
        ("Sum", "Old"),
        (Cell(value=3, formula="A1+B1"), 4),
        (Cell(error="#DIV/0!", formula="1/0"),),
    ]
    extra = Extras(dimension="A1:XFD1048576")
    content = _read(tmp_path, _grid("A1", *rows), extra=extra, formulas=True)
    assert [s.text for s in content.segments[1:]] == ["2,=A1+B1 -> 3,4", "3,=1/0 -> #DIV/0!"]
    assert content.reader.endswith("+openpyxl-3.1+formulas=True")


def test_each_row_is_read_once_when_a_sheet_has_100_000(tmp_path):
    cells = {"A1": "Number", "B1": "Square"}
    for number in range(2, 100_001):
        cells[f"A{number}"], cells[f"B{number}"] = number, number * number
    path = write_xlsx(tmp_path / "a.xlsx", {"S": cells})
    content = spreadsheet.read(path, detect_media_type(path, "a.xlsx"), tmp_path, ReaderOptions())
    assert content.units[0].status == "read"
    assert content.segments[0].text == "Sheet S!A1:B100000, columns: row, A Number, B Square"
    assert [(s.span.cells, s.text) for s in content.segments[1:]] == [
        (f"A{n}:B{n}", f"{n},{n},{format(float(n * n), '.15g')}") for n in range(2, 100_001)
    ]


def test_chunks_begin_with_the_heading_of_their_own_table(tmp_path):
    ships = [(f"ship {number}", number) for number in range(40)]
    first = _grid("A1", ("Name", "Age"), *((f"crew {number}", number) for number in range(40)))
    content = _read(tmp_path, first, _grid("A44", ("Ship", "Tons"), *ships))
    rule = ChunkRule(max_tokens=64, counter=WordCounter(), name="words")
    chunks = chunk_document("doc", content, rule)
    assert len(chunks) > 4
    for chunk in chunks:
        assert chunk.segments[0].kind == "heading"
        for segment in chunk.segments:
            if segment.kind == "heading":
                heading = segment.text
            else:
                assert ("A Ship" if "ship" in segment.text else "A Name") in heading


def test_csv_tables_are_told_apart(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("Crew\nname,age\nAnn,41\n\nship,tons\nOlga,900\n")
    content = delimited.read(path, "text/csv", tmp_path, ReaderOptions())
    assert [s.text for s in content.segments] == [
        "Table A1:B3, title: Crew, columns: row, A name, B age",
        "3,Ann,41",
        "Table A5:B6, columns: row, A ship, B tons",
        "6,Olga,900",
    ]
