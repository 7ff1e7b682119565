"""Tables of sheets as typed Parquet files, beside their rows as text."""

from datetime import date, datetime
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.document import TableFile
from connectors.readers import ReaderOptions, detect_media_type, load_reader
from tests.connectors.test_readers_workbooks import _grid
from tests.corpora.make import Cell, Extras, write_xlsx


def content_of(path: Path, **options):
    media_type = detect_media_type(path, path.name)
    return load_reader(media_type).read(path, media_type, path.parent, ReaderOptions(**options))


def read(path: Path, **options):
    content = content_of(path, **options)
    return content.tables, [pl.read_parquet(path.parent / table.name) for table in content.tables]


def read_csv(tmp_path, text, **options):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    return read(tmp_path / "a.csv", **options)


def column(tmp_path, *cells):
    """Return the column of a CSV file with these cells, which another column keeps from being blank."""
    rows = "".join(f"x,{cell}\n" for cell in cells)
    _, [frame] = read_csv(tmp_path, f"key,value\n{rows}")
    return frame["value"]


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (("1", "", "-20"), pl.Int64, [1, None, -20]),
        (("1", "2.50", "-3e-4"), pl.Float64, [1.0, 2.5, -3e-4]),
        (("007", "8"), pl.String, ["007", "8"]),
        (('"1,5"', "2"), pl.String, ["1,5", "2"]),
        (("1234567890123456789", "2"), pl.String, ["1234567890123456789", "2"]),
        (("true", "FALSE"), pl.Boolean, [True, False]),
        (("2024-02-29", ""), pl.Date, [date(2024, 2, 29), None]),
        (("2024-02-30", "2024-01-01"), pl.String, ["2024-02-30", "2024-01-01"]),
        (
            ("2024-02-29", "2024-03-01 10:20:30.5"),
            pl.Datetime("us"),
            [datetime(2024, 2, 29), datetime(2024, 3, 1, 10, 20, 30, 500_000)],  # noqa: DTZ001
        ),
        (("1", "one"), pl.String, ["1", "one"]),
        (("#DIV/0!", "3"), pl.Int64, [None, 3]),
        (("12.5%", "-3%"), pl.Float64, [0.125, -0.03]),
        (("$3", "$-4.5"), pl.Float64, [3.0, -4.5]),
        (("20 CHF", "1 CHF"), pl.Float64, [20.0, 1.0]),
        (("20 CHF", "1 EUR"), pl.String, ["20 CHF", "1 EUR"]),
        (("12.5%", "3"), pl.String, ["12.5%", "3"]),
        (("v1", "v2"), pl.String, ["v1", "v2"]),
        (("#1", "#2"), pl.String, ["#1", "#2"]),
        (("5 May", "6 May"), pl.String, ["5 May", "6 May"]),
        (("1e999", "2"), pl.String, ["1e999", "2"]),
        (("9007199254740993", "1.5"), pl.String, ["9007199254740993", "1.5"]),
        (("$9007199254740993", "$2"), pl.String, ["$9007199254740993", "$2"]),
        (("9007199254740993", "2"), pl.Int64, [9007199254740993, 2]),
        (("0000-01-01", "2024-01-01"), pl.String, ["0000-01-01", "2024-01-01"]),
    ],
)
def test_column_has_the_type_that_all_its_cells_show(tmp_path, cells, kind, values):
    found = column(tmp_path, *cells)
    assert found.dtype == kind
    assert found.to_list() == values


def test_unit_of_numbers_is_told_when_all_have_it(tmp_path):
    [table], _ = read_csv(tmp_path, "share,price,count\n12%,$3,1\n1%,$4,2\n")
    schema = pq.read_schema(tmp_path / table.name)
    assert schema.field("share").metadata == {b"unit": b"%"}
    assert schema.field("price").metadata == {b"unit": b"$"}
    assert schema.field("count").metadata is None


def test_each_value_keeps_its_row_when_tables_share_a_sheet(tmp_path):
    cells = _grid("B2", ("Name", "Age"), ("Ann", 41), ("Bo", 35))
    cells |= _grid("B7", ("Ship", "Tons"), ("Olga", 900.5))
    path = write_xlsx(tmp_path / "a.xlsx", {"S": cells})
    tables, [crew, ships] = read(path)
    assert tables == (
        TableFile(
            name="t0001.parquet", sheet="S", cells="B2:C4", title="",
            columns=("row", "Name", "Age"), num_rows=2,
        ),
        TableFile(
            name="t0002.parquet", sheet="S", cells="B7:C8", title="",
            columns=("row", "Ship", "Tons"), num_rows=1,
        ),
    )  # fmt: skip
    assert crew.rows() == [(3, "Ann", 41), (4, "Bo", 35)]
    assert ships.rows() == [(8, "Olga", 900.5)]


def test_values_are_those_of_the_sheet_when_it_has_errors_units_and_formulas(tmp_path):
    rows = [
        ("Share", "Sum", "Done", "Code"),
        (Cell(value=0.125, style="0.0%"), Cell(value=3, formula="A1+B1"), True, "007"),
        (Cell(value=1.5, style="0%"), Cell(error="#DIV/0!", formula="1/0"), False, "8"),
    ]
    path = write_xlsx(tmp_path / "a.xlsx", {"S": _grid("A1", *rows)})
    _, [frame] = read(path, formulas=True)
    assert frame.rows() == [(2, 0.125, 3, True, "007"), (3, 1.5, None, False, "8")]


def test_formulas_are_left_out_when_they_look_like_values_or_have_none(tmp_path):
    rows = [
        ("Text", "Now"),
        (Cell(value="x -> y", formula='A9&" -> "&B9'), Cell(value="", formula="NOW()")),
        (Cell(value="z", formula="A9"), 5),
    ]
    path = write_xlsx(tmp_path / "a.xlsx", {"S": _grid("A1", *rows)})
    _, [frame] = read(path, formulas=True)
    assert frame.rows() == [(2, "x -> y", None), (3, "z", 5)]


def test_columns_have_names_of_their_own_when_the_header_repeats_them(tmp_path):
    [table], _ = read_csv(tmp_path, "Name,name,row,Sum\na,b,c,1\nd,e,f,2\n")
    assert table.columns == ("row", "Name", "name (B)", "row (C)", "Sum")
    # A database does not tell capitals apart.
    found = duckdb.sql(f"SELECT \"name (B)\", sum FROM '{tmp_path / table.name}'").fetchall()
    assert found == [("b", 1), ("e", 2)]


def test_bytes_are_the_same_when_a_file_is_read_again(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        read_csv(tmp_path / name, "key,value\nx,1\ny,2.5\n")
    files = [(tmp_path / name / "t0001.parquet").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]


def test_no_table_is_written_when_it_is_not_wanted_or_none(tmp_path):
    assert read_csv(tmp_path, "a,b\n1,2\n", tables=False) == ((), [])
    path = write_xlsx(tmp_path / "a.xlsx", {"S": _grid("A1", ("Read me first",), ("Then go on",))})
    assert read(path) == ((), [])


def test_types_are_those_of_the_file_when_it_is_parquet(tmp_path):
    source = pa.table({
        "when": pa.array([datetime(2024, 1, 1), None, datetime(2024, 1, 3)], pa.timestamp("ns", "UTC")),  # noqa: DTZ001
        "tags": pa.array([["a"], None, []]),
        "code": pa.array(["007", None, "8"]),
    })  # fmt: skip
    pq.write_table(source, tmp_path / "a.parquet", row_group_size=2)
    [table], [frame] = read(tmp_path / "a.parquet")
    # The second row has no value, so it is no row.
    assert (table.num_rows, frame["row"].to_list()) == (2, [1, 3])
    copy = pq.read_table(tmp_path / table.name)
    assert copy.drop_columns("row").equals(source.take([0, 2]))


def test_rows_beyond_the_limit_are_left_out_when_a_file_has_too_many(tmp_path):
    pq.write_table(pa.table({"a": range(9)}), tmp_path / "a.parquet", row_group_size=2)
    [table], [frame] = read(tmp_path / "a.parquet", max_rows=3)
    assert frame.rows() == [(1, 0), (2, 1), (3, 2)]
    assert table.columns == ("row", "a")


def marked(tmp_path, cells, **tables):
    """Return the content of a sheet with tables marked on it: a range, perhaps more attributes."""
    extra = Extras(tables=tables)
    cells = dict(sorted(cells.items(), key=lambda item: (int(item[0][1:]), item[0][0])))
    path = write_xlsx(tmp_path / "a.xlsx", {"S": cells}, extras={"S": extra})
    return content_of(path)


def test_marked_table_is_one_whatever_stands_around_it(tmp_path):
    # Without the mark, the note would be a row of it and the rows below the gap another table.
    cells = _grid("A1", ("Sales of May",), ("Who", "Sum"), ("Ann", 3))
    cells |= _grid("A6", ("Bo", 4), ("see annex", None)) | _grid("C3", ("a note",))
    content = marked(tmp_path, cells, Sales="A2:B6")
    assert [segment.text for segment in content.segments] == [
        "Sheet S!A1:B6, table Sales, title: Sales of May, columns: row, A Who, B Sum",
        "3,Ann,3",
        "6,Bo,4",
        "Sheet S!C3, columns: row, C",
        "3,a note",
        "Sheet S!A7, columns: row, A",
        "7,see annex",
    ]
    assert next((table.title, table.cells) for table in content.tables) == ("Sales", "A2:B6")


def test_line_above_a_marked_table_stays_where_it_is_when_it_ends_a_list(tmp_path):
    cells = _grid("A1", ("City",), ("Bern",), ("Zug",), ("Who", "Sum"), ("Ann", 3))
    content = marked(tmp_path, cells, Sales="A4:B5")
    assert [segment.text for segment in content.segments] == [
        "Sheet S!A1:A3, columns: row, A City",
        "2,Bern",
        "3,Zug",
        "Sheet S!A4:B5, table Sales, columns: row, A Who, B Sum",
        "5,Ann,3",
    ]


def test_lines_above_and_below_a_marked_table_keep_their_places(tmp_path):
    cells = (
        _grid("A1", ("Report",)) | _grid("A3", ("Who", "Sum"), ("Ann", 3)) | _grid("A7", ("End",))
    )
    # What stands beside it in one piece stays whole.
    cells |= _grid("D3", ("Ship", "Tons"), ("Olga", 900), ("Rita", 700))
    content = marked(tmp_path, cells, Sales="A3:B4")
    assert [segment.text for segment in content.segments] == [
        "Sheet S!A1, columns: row, A",
        "1,Report",
        "Sheet S!A3:B4, table Sales, columns: row, A Who, B Sum",
        "4,Ann,3",
        "Sheet S!D3:E5, columns: row, D Ship, E Tons",
        "4,Olga,900",
        "5,Rita,700",
        "Sheet S!A7, columns: row, A",
        "7,End",
    ]


def test_area_of_a_marked_table_ends_with_its_cells_when_it_reaches_beyond(tmp_path):
    content = marked(tmp_path, _grid("B1", ("Who", "Sum"), ("Ann", 3)), Sales="A1:XFD9")
    assert content.segments[0].text == "Sheet S!B1:C2, table Sales, columns: row, B Who, C Sum"
    assert content.tables[0].columns == ("row", "Who", "Sum")


def test_name_of_a_marked_table_is_no_line_of_its_own(tmp_path):
    cells = _grid("A1", ("Who", "Sum"), ("Ann", 3))
    content = marked(tmp_path, cells, **{"T&#10;[L2] 2,Eve,999": "A1:B2"})
    assert content.segments[0].text == (
        "Sheet S!A1:B2, table T [L2] 2,Eve,999, columns: row, A Who, B Sum"
    )


def test_totals_are_text_only_when_a_marked_table_has_them(tmp_path):
    cells = _grid("A1", ("Who", "Sum"), ("Ann", 3), ("Bo", 4), ("Total", 7))
    content = marked(tmp_path, cells, Sales='A1:B4" totalsRowCount="1')
    assert content.segments[-1].text == "4,Total,7"
    assert pl.read_parquet(tmp_path / content.tables[0].name)["Sum"].to_list() == [3, 4]


def test_copy_is_made_when_parquet_has_types_that_cannot_be_taken_by_row(tmp_path):
    source = pa.table({"name": pa.array(["a", None, "c"], pa.string_view())})
    pq.write_table(source, tmp_path / "a.parquet")
    [table], _ = read(tmp_path / "a.parquet")
    assert pq.read_table(tmp_path / table.name).to_pydict() == {"row": [1, 3], "name": ["a", "c"]}


def test_workbook_is_read_when_the_mark_of_a_table_is_broken(tmp_path):
    cells = _grid("A1", ("Who", "Sum"), ("Ann", 3))
    path = write_xlsx(tmp_path / "a.xlsx", {"S": cells}, extras={"S": Extras(tables={"T": "<&"})})
    content = content_of(path)
    assert [segment.text for segment in content.segments][1:] == ["2,Ann,3"]
    assert content.units[0].status == "failed"
    assert "table names are not told" in content.units[0].error


def test_files_end_and_the_rest_is_counted_when_a_sheet_has_very_many_tables(tmp_path):
    cells = {}
    for number in range(501):
        cells |= _grid(f"A{3 * number + 1}", ("Who", "Sum"), ("Ann", number))
    path = write_xlsx(tmp_path / "a.xlsx", {"S": cells})
    content = content_of(path)
    assert len(content.tables) == 500
    assert dict(content.metadata)["tables_without_file"].startswith("1: files are limited to 500")


def test_files_end_when_their_columns_would_take_minutes(tmp_path):
    block = ",".join(f"c{n}" for n in range(2_000)) + "\n" + ",".join("1" * 2_000) + "\n\n\n"
    (tmp_path / "a.csv").write_text(block * 4, encoding="utf-8")
    content = content_of(tmp_path / "a.csv")
    assert len(content.tables) == 2
    assert dict(content.metadata)["tables_without_file"].startswith("2: files are limited to 500")


def test_values_lie_in_the_rows_of_the_sheet_when_it_is_an_open_document(tmp_path):
    name = "merged_cells.ods"
    path = tmp_path / name
    path.write_bytes((Path(__file__).parent.parent / "corpora" / name).read_bytes())
    content = content_of(path)
    lines = {(s.span.sheet, s.text.partition(",")[0]): s.text for s in content.segments}
    assert content.tables
    for table in content.tables:
        for row in pl.read_parquet(tmp_path / table.name).rows():
            texts = [str(value) for value in row[1:] if isinstance(value, str)]
            assert all(text in lines[table.sheet, str(row[0])] for text in texts)
