"""Ruled tables of PDFs against drawn ones: cells to the letter, the box of each row around its text."""

from __future__ import annotations

import csv

import pypdf
import pytest

from connectors.readers import Password, ReaderOptions, pdf
from tests.corpora.pages import Page, Text, write_pages

AUTO = ReaderOptions(ocr="off", pdf_tables="auto")
LEFT, TOP, STEP = 80, 700, 24
COLUMNS = (80, 240, 380, 520)
ROWS = [("Port", "Tons, net", "State"), ("North", "12.5", "open"), ("South", "1,250", "shut")]
HEADING = 'Table, columns: Port,"Tons, net",State'


def _read(path, pages, options=AUTO):
    return pdf.read(write_pages(path / "a.pdf", pages), "application/pdf", path, options)


def _texts(rows, top=TOP):
    """The cells' texts, row by row; None where a cell belongs to the one on its left."""
    return [
        [
            Text(x=x + 6, y=top - STEP * n - 16, text=cell)
            for x, cell in zip(COLUMNS, row, strict=False)
            if cell
        ]
        for n, row in enumerate(rows)
    ]


def _rules(rows, top=TOP):
    """Lines around each cell."""
    bottom = top - STEP * len(rows)
    lines = [f"80 {top - STEP * n} m 520 {top - STEP * n} l S\n" for n in range(len(rows) + 1)]
    for n, row in enumerate(rows):
        lines += [
            f"{x} {top - STEP * n} m {x} {top - STEP * (n + 1)} l S\n"
            for x, cell in zip(COLUMNS, (*row, ""), strict=True)
            if cell is not None
        ]
    assert bottom > 0
    return "".join(lines)


def _flat(rows):
    return [text for row in rows for text in row]


def _cells(segment):
    return next(csv.reader([segment.text]))


def _assert_around(segment, page, texts, row=(80, 0, 520, STEP)):
    """The segment's box holds the middle of each of the texts, and no more than its row."""
    x0, y0, x1, y1 = segment.span.bbox
    for text in texts:
        left, top, right, bottom = page.place(text.box())
        assert x0 <= (left + right) / 2 <= x1, text
        assert y0 <= (top + bottom) / 2 <= y1, text
    left, top, right, bottom = page.place(row)
    sides = sorted((x1 - x0, y1 - y0))
    assert sides == pytest.approx(sorted((right - left, bottom - top)), abs=0.005)


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
@pytest.mark.parametrize(
    ("media", "crop"),
    [((0, 0, 600, 800), None), ((0, 0, 600, 800), (60, 90, 560, 740)), ((-50, 10, 620, 900), None)],
    ids=["plain", "cropped", "moved"],
)
def test_cells_are_exact_when_a_ruled_table_is_turned_cropped_or_moved(
    tmp_path, rotate, media, crop
):
    texts = _texts(ROWS)
    page = Page(texts=_flat(texts), media=media, crop=crop, rotate=rotate, extra=_rules(ROWS))
    heading, *rows = _read(tmp_path, [page]).segments
    assert (heading.kind, heading.text) == ("heading", HEADING)
    assert [(row.kind, tuple(_cells(row))) for row in rows] == [("table", row) for row in ROWS[1:]]
    for segment, drawn in zip((heading, *rows), texts, strict=True):
        _assert_around(segment, page, drawn)


def test_rows_are_lines_of_text_when_tables_are_not_asked_for(tmp_path):
    page = Page(texts=_flat(_texts(ROWS)), extra=_rules(ROWS))
    content = _read(tmp_path, [page], ReaderOptions(ocr="off"))
    assert [s.text for s in content.segments] == [" ".join(row) for row in ROWS]
    assert "pdfplumber" not in content.reader
    assert "+pdfplumber-0.11+pdf_tables=auto" in _read(tmp_path, [page]).reader


@pytest.mark.parametrize("degrees", [90, 270])
def test_rows_run_as_the_text_does_when_a_table_lies_sideways(tmp_path, degrees):
    # The plain table with each point (x, y) moved to (y, 600 - x), or to (800 - y, x).
    def turned(x, y):
        return (800 - y, x) if degrees == 90 else (y, 600 - x)

    texts = [
        Text(x=x, y=y, text=text.text, degrees=degrees)
        for text in _flat(_texts(ROWS))
        for x, y in (turned(text.x, text.y),)
    ]
    rules = ""
    for line in _rules(ROWS).splitlines():
        x0, y0, _, x1, y1, *_ = line.split()
        start, end = turned(int(x0), int(y0)), turned(int(x1), int(y1))
        rules += f"{start[0]} {start[1]} m {end[0]} {end[1]} l S\n"
    page = Page(texts=texts, media=(0, 0, 800, 600), extra=rules)
    heading, *rows = _read(tmp_path, [page]).segments
    assert heading.text == HEADING
    assert [tuple(_cells(row)) for row in rows] == ROWS[1:]
    for row, drawn in zip(rows, (texts[3:6], texts[6:9]), strict=True):
        _assert_around(row, page, drawn, row=(0, 80, STEP, 520))


def test_names_are_joined_when_a_header_spans_columns(tmp_path):
    rows = [("Port", "Load", None), ("Name", "Tons", "Crates"), ("North", "12.5", "40")]
    page = Page(texts=_flat(_texts(rows)), extra=_rules(rows))
    heading, row = _read(tmp_path, [page]).segments
    assert heading.text == "Table, columns: Port / Name,Load / Tons,Load / Crates"
    assert row.text == "North,12.5,40"


def test_title_is_told_when_one_cell_spans_the_table(tmp_path):
    rows = [("Ports in May", None, None), *ROWS]
    page = Page(texts=_flat(_texts(rows)), extra=_rules(rows))
    heading, *_ = _read(tmp_path, [page]).segments
    assert heading.text == HEADING.replace("Table,", "Table, title: Ports in May,")


def test_value_stands_in_its_first_column_when_a_cell_of_the_body_is_joined(tmp_path):
    rows = [*ROWS, ("East", "closed for repair", None), ("West", "3.5", "open")]
    page = Page(texts=_flat(_texts(rows)), extra=_rules(rows))
    segments = _read(tmp_path, [page]).segments
    assert [s.text for s in segments[-2:]] == ["East,closed for repair", "West,3.5,open"]


def test_text_beside_above_and_below_is_kept_once_when_a_table_stands_in_it(tmp_path):
    narrow = [row[:2] for row in ROWS]
    rules = "".join(f"80 {TOP - STEP * n} m 380 {TOP - STEP * n} l S\n" for n in range(4))
    rules += "".join(f"{x} {TOP} m {x} {TOP - 3 * STEP} l S\n" for x in COLUMNS[:3])
    texts = [
        Text(x=80, y=750, text="The ports of the bay are these."),
        # Each in line with a row of the table.
        *(
            text
            for n, row in enumerate(_texts(narrow))
            for text in (*row, Text(x=400, y=TOP - STEP * n - 16, text=f"beside {n} it", size=10))
        ),
        Text(x=80, y=560, text="So much for them in this year."),
    ]
    content = _read(tmp_path, [Page(texts=texts, extra=rules)])
    found = [s.text for s in content.segments]
    assert found[:2] == [texts[0].text, 'Table, columns: Port,"Tons, net"']
    assert found[2:4] == ["North,12.5", 'South,"1,250"']
    assert found[-1] == texts[-1].text
    assert " ".join(found[4:-1]) == "beside 0 it beside 1 it beside 2 it"


@pytest.mark.parametrize("is_repeated", [True, False])
def test_nothing_is_given_twice_when_a_table_goes_on_on_the_next_page(tmp_path, is_repeated):
    first = [ROWS[0], *((f"Port {n}", str(n), "open") for n in range(20))]
    rest = [*([ROWS[0]] if is_repeated else []), *((f"Port {n}", str(n), "shut") for n in (20, 21))]
    pages = [
        Page(
            texts=[*_flat(_texts(rows)), Text(x=280, y=40, text=f"page {number} of 2")],
            extra=_rules(rows),
        )
        for number, rows in enumerate((first, rest), start=1)
    ]
    segments = _read(tmp_path, pages).segments
    assert [s.text for s in segments if s.kind == "heading"] == [HEADING]
    rows = [(s.span.page, *_cells(s)) for s in segments if s.kind == "table"]
    assert rows == [
        *((1, f"Port {n}", str(n), "open") for n in range(20)),
        *((2, f"Port {n}", str(n), "shut") for n in (20, 21)),
    ]


def test_another_table_has_its_own_heading_when_it_follows_on_the_next_page(tmp_path):
    other = [("Ship", "Crew", "Flag"), ("Aurora", "12", "NO")]
    pages = [Page(texts=_flat(_texts(rows)), extra=_rules(rows)) for rows in (ROWS, other)]
    segments = _read(tmp_path, pages).segments
    headings = [s.text for s in segments if s.kind == "heading"]
    assert headings == [HEADING, "Table, columns: Ship,Crew,Flag"]


def test_text_is_no_table_when_a_frame_is_around_it(tmp_path):
    text = Text(x=90, y=650, text="This text stands in a frame of two parts.")
    rules = "80 600 440 100 re S\n80 640 440 60 re S\n"
    (segment,) = _read(tmp_path, [Page(texts=[text], extra=rules)]).segments
    assert (segment.kind, segment.text) == ("paragraph", text.text)


def test_rows_stay_lines_when_rules_part_only_groups_of_them(tmp_path):
    rows = [(f"Port {n}", f"{n}.5", f"{n}7") for n in range(6)]
    rules = "".join(f"80 {TOP - STEP * 3 * n} m 520 {TOP - STEP * 3 * n} l S\n" for n in range(3))
    rules += "".join(f"{x} {TOP} m {x} {TOP - 6 * STEP} l S\n" for x in COLUMNS)
    segments = _read(tmp_path, [Page(texts=_flat(_texts(rows)), extra=rules)]).segments
    assert [s.text for s in segments] == [" ".join(row) for row in rows]


def test_pages_behind_the_limit_are_named_when_many_have_tables(tmp_path):
    prose = Page(texts=[Text(x=80, y=600, text="No table stands on this page at all.")])
    table = Page(texts=_flat(_texts(ROWS)), extra=_rules(ROWS))
    options = ReaderOptions(ocr="off", pdf_tables="auto", max_table_pages=1)
    content = _read(tmp_path, [prose, table, prose, table], options)
    assert [unit.status for unit in content.units] == ["read"] * 4
    assert [unit.error is None for unit in content.units] == [True, True, True, False]
    assert "reader.max_table_pages is 1" in content.units[3].error
    assert [s.text for s in content.segments if s.span.page == 4] == [" ".join(r) for r in ROWS]


def test_text_is_given_when_pdfplumber_gives_up(tmp_path):
    # Crossing lines by the thousand would take it minutes.
    rules = "".join(f"80 {n} m 520 {n} l S\n{n} 80 m {n} 520 l S\n" for n in range(80, 520, 5))
    text = Text(x=80, y=600, text="The paper has a grid of lines on it.")
    content = _read(tmp_path, [Page(texts=[text], extra=rules)])
    assert [s.text for s in content.segments] == [text.text]
    (unit,) = content.units
    assert (unit.status, "cross in more than" in unit.error) == ("read", True)


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-256"])
def test_tables_are_read_when_the_file_is_encrypted(tmp_path, algorithm):
    page = Page(texts=_flat(_texts(ROWS)), extra=_rules(ROWS))
    writer = pypdf.PdfWriter(clone_from=write_pages(tmp_path / "plain.pdf", [page]))
    writer.encrypt("canary-4e1c", "the owner's", algorithm=algorithm)
    writer.write(tmp_path / "a.pdf")
    password = Password(value="canary-4e1c", key="reader.passwords['**']")
    options = ReaderOptions(ocr="off", pdf_tables="auto", password=password)
    segments = pdf.read(tmp_path / "a.pdf", "application/pdf", tmp_path, options).segments
    assert [s.text for s in segments] == [HEADING, "North,12.5,open", 'South,"1,250",shut']


def test_page_is_not_taken_for_a_scan_when_all_its_text_is_in_a_table(tmp_path):
    page = Page(texts=_flat(_texts(ROWS)), extra=_rules(ROWS))
    content = _read(tmp_path, [page])
    assert not content.media
