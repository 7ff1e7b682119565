"""Rows of sheets back to fields: what the reader wrote is found again, cell by cell."""

from __future__ import annotations

import random

import pytest

from connectors.document import Segment, Span
from connectors.readers.table_fields import Columns, columns_of, fields_text, row_fields
from connectors.readers.table_header import Row
from connectors.readers.table_rows import sheet_segments
from connectors.readers.tables import find_tables


def _segments(rows: list[list[str]], first_column: int = 0) -> list[Segment]:
    found = [Row(number + 1, cells) for number, cells in enumerate(rows) if any(cells)]
    return list(sheet_segments("Data", find_tables(found), first_column))


@pytest.mark.parametrize("first_column", [0, 2, 25, 700])
def test_cells_stand_under_their_columns_when_read_back(first_column):
    rng = random.Random(first_column)
    odd = ["1,234", 'say "no"', "a, B b", "-5", "| x |", "plain", "", "  "]
    names = ["Day", "Amount, net", "B code", "Note", "Day"]
    body = [[str(n), *(rng.choice(odd) for _ in names[1:])] for n in range(1, 30)]
    heading, *rows = _segments([names, *body], first_column)
    columns = columns_of(heading.text)
    assert columns is not None
    assert columns.names[1:4] == ("Amount, net", "B code", "Note")
    # Two columns with one name are told apart by their letters.
    assert columns.names[0] != columns.names[4]
    for cells, row in zip(body, rows, strict=True):
        wanted = [(n, c) for n, c in zip(columns.names, cells, strict=True) if c.strip()]
        assert [*row_fields(columns, row)] == wanted


def test_letters_are_the_names_when_a_table_has_no_header():
    heading, *rows = _segments([["1", "2", "3"], ["4", "5", "6"]], first_column=25)
    columns = columns_of(heading.text)
    assert columns == Columns(first=25, names=("Z", "AA", "AB"))
    assert row_fields(columns, rows[1]) == (("Z", "4"), ("AA", "5"), ("AB", "6"))


@pytest.mark.parametrize(
    "heading", ["", "Results", "Table 2: columns: row", "x, columns: row, of it"]
)
def test_no_columns_are_found_when_a_heading_is_no_tables(heading):
    assert columns_of(heading) is None


@pytest.mark.parametrize(
    ("text", "cells", "is_rest"),
    [
        ("5,a,b", "A5:B5", True),
        # The first piece of a row that was cut.
        ("5,a", "A5:C5", False),
        ("5,a,b,c,d", "A5:D5", False),
        ("a line of a table in a PDF", None, False),
    ],
)
def test_row_has_no_fields_when_it_is_not_whole(text, cells, is_rest):
    columns = Columns(first=0, names=("x", "y", "z"))
    row = Segment(kind="table", text=text, span=Span(sheet="", cells=cells), is_rest=is_rest)
    assert row_fields(columns, row) == ()


def test_long_cells_are_read_back_when_csv_has_a_limit():
    long = "word " * 40_000
    # More than Python's csv module takes by default.
    assert len(long) > 128 * 1024
    heading, row = _segments([["name", "text"], ["a", long.strip()]])
    columns = columns_of(heading.text)
    assert columns is not None
    assert dict(row_fields(columns, row))["text"] == long.strip()


def test_fields_are_one_line_when_shown():
    assert (
        fields_text([("Day", "2026-01-05"), ("Amount", "1,234")])
        == "Day: 2026-01-05 | Amount: 1,234"
    )
