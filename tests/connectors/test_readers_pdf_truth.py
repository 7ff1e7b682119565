"""PDF against generated files: text to the letter, boxes within 1 % of the page."""

from __future__ import annotations

import json

import pypdf
import pytest
from pypdf.annotations import FreeText, Highlight, Link
from pypdf.annotations import Text as Note
from pypdf.generic import ArrayObject, FloatObject

from connectors.readers import ReaderOptions, pdf
from connectors.readers.pdf_layout import Line, PageText
from connectors.readers.pdf_page import is_garbled
from tests.corpora.pages import Page, Text, write_pages

NO_OCR = ReaderOptions(ocr="off")
ONE_PERCENT = 0.01
CORNERS = [
    Text(x=120, y=640, text="Top left: the harbour opens at six."),
    Text(x=120, y=420, text="Middle: 1,204 crates of tea (net)."),
    Text(x=200, y=180, text="Bottom: signed by A. Brown.", size=9),
]
OFFSET = (-50, 100, 550, 900)
CROP = (60, 90, 560, 740)


def _read(path, pages):
    return pdf.read(write_pages(path / "a.pdf", pages), "application/pdf", path, NO_OCR)


def _moved(texts, dx, dy):
    return [
        Text(x=t.x + dx, y=t.y + dy, text=t.text, size=t.size, degrees=t.degrees) for t in texts
    ]


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
@pytest.mark.parametrize(
    ("media", "crop"),
    [
        ((0, 0, 600, 800), None),
        (OFFSET, None),
        ((0, 0, 600, 800), CROP),
        ((0, 0, 800, 800), (60, 90, 760, 740)),
    ],
    ids=["plain", "offset", "cropped", "wide"],
)
def test_text_and_boxes_are_true_when_the_page_is_turned_cropped_or_moved(
    tmp_path, rotate, media, crop
):
    texts = _moved(CORNERS, media[0], media[1])
    page = Page(texts=texts, media=media, crop=crop, rotate=rotate)
    segments = _read(tmp_path, [page]).segments
    assert sorted(s.text for s in segments) == sorted(t.text for t in texts)
    found = {s.text: s.span.bbox for s in segments}
    for text in texts:
        assert found[text.text] == pytest.approx(page.place(text.box()), abs=ONE_PERCENT), text.text


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_sentence_is_joined_over_lines_when_page_or_text_are_turned(tmp_path, rotate, degrees):
    # Where lines start, and the step from one line to the next, for text turned by `degrees`.
    x, y, dx, dy = {
        0: (100, 600, 0, -15),
        90: (200, 150, 15, 0),
        180: (500, 300, 0, 15),
        270: (400, 700, -15, 0),
    }[degrees]
    lines = ["The crane stopped at noon because", "a fuse in its second motor had", "blown."]
    texts = [
        Text(x=x + dx * n, y=y + dy * n, text=line, degrees=degrees) for n, line in enumerate(lines)
    ]
    page = Page(texts=texts, rotate=rotate)
    (segment,) = _read(tmp_path, [page]).segments
    assert segment.text == " ".join(lines)
    boxes = [page.place(text.box()) for text in texts]
    around = (
        min(box[0] for box in boxes),
        min(box[1] for box in boxes),
        max(box[2] for box in boxes),
        max(box[3] for box in boxes),
    )
    assert segment.span.bbox == pytest.approx(around, abs=ONE_PERCENT)


@pytest.mark.parametrize("num_columns", [2, 3])
@pytest.mark.parametrize("rotate", [0, 90])
def test_columns_are_read_one_after_the_other(tmp_path, num_columns, rotate):
    width = 500 // num_columns
    texts, expected = [], []
    for column in range(num_columns):
        words = [f"Column {column} has", f"item {column} of a", "list, and it", "ends here."]
        texts += [
            Text(x=60 + column * width, y=700 - 14 * row, text=line, size=10)
            for row, line in enumerate(words)
        ]
        expected.append(" ".join(words))
    segments = _read(tmp_path, [Page(texts=texts, rotate=rotate)]).segments
    assert [s.text for s in segments] == expected


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_rows_stay_whole_when_a_ruled_table_is_turned(tmp_path, rotate):
    rows = [("Port", "Tons", "State"), ("North", "12.5", "open"), ("South", "7.25", "shut")]
    texts = [
        Text(x=80 + 160 * column, y=600 - 24 * row, text=cell)
        for row, cells in enumerate(rows)
        for column, cell in enumerate(cells)
    ]
    rules = "".join(f"70 {618 - 24 * n} m 540 {618 - 24 * n} l S\n" for n in range(4))
    page = Page(texts=texts, rotate=rotate, extra=rules)
    segments = _read(tmp_path, [page]).segments
    assert [(s.kind, s.text) for s in segments] == [("table", " ".join(row)) for row in rows]
    for row, segment in enumerate(segments):
        first, last = texts[3 * row].box(), texts[3 * row + 2].box()
        around = (first[0], first[1], last[2], first[3])
        assert segment.span.bbox == pytest.approx(page.place(around), abs=ONE_PERCENT)


def test_word_is_whole_when_a_hyphen_breaks_it_at_the_end_of_a_line(tmp_path):
    texts = [
        Text(x=80, y=600, text="The pressure on the iso-"),
        Text(x=80, y=586, text="surface falls to 3 %."),
    ]
    (segment,) = _read(tmp_path, [Page(texts=texts)]).segments
    assert segment.text == "The pressure on the isosurface falls to 3 %."


@pytest.mark.parametrize("rotate", [0, 90])
def test_words_are_parted_when_letters_are_placed_one_by_one(tmp_path, rotate):
    # Blanks of 0.08 em, where PDFium sees none; letters reach 0.04 em into each other.
    words = ["Boric", "acid", "is", "used", "in", "glass"]
    placed = " -80 ".join(" 40 ".join(f"({char})" for char in word) for word in words)
    extra = f"BT /F1 12 Tf 1 0 0 1 80 600 Tm [{placed}] TJ ET\n"
    (segment,) = _read(tmp_path, [Page(texts=[], extra=extra, rotate=rotate)]).segments
    assert segment.text == " ".join(words)


def test_characters_beyond_ascii_are_kept(tmp_path):
    text = "Zürich – 5 € für „Tee“, naïve façade."
    (segment,) = _read(tmp_path, [Page(texts=[Text(x=80, y=600, text=text)])]).segments
    assert segment.text == text


def test_no_control_reaches_the_text_when_lines_end(tmp_path):
    texts = [Text(x=80, y=700 - 14 * n, text=f"Line {n} of a long para-graph") for n in range(20)]
    content = _read(tmp_path, [Page(texts=texts)])
    text = "".join(s.text for s in content.segments)
    assert not [char for char in text if not char.isprintable() or char == "\ufffe"]


@pytest.mark.parametrize("num_pages", [1, 7, 60])
def test_every_page_has_its_text_and_its_status(tmp_path, num_pages):
    pages = [
        Page(
            texts=[Text(x=80, y=600, text=f"This is page number {n} of the file.")],
            rotate=90 * (n % 4),
        )
        for n in range(1, num_pages + 1)
    ]
    content = _read(tmp_path, pages)
    assert [(u.name, u.status) for u in content.units] == [
        (f"page {n}", "read") for n in range(1, num_pages + 1)
    ]
    assert [(s.span.page, s.text) for s in content.segments] == [
        (n, f"This is page number {n} of the file.") for n in range(1, num_pages + 1)
    ]


def _annotated(path, rotate):
    texts = [
        Text(x=80, y=600, text="The tide turns at four in the morning."),
        Text(x=80, y=560, text="See our own page about it."),
    ]
    page = Page(texts=texts, rotate=rotate)
    writer = pypdf.PdfWriter(clone_from=write_pages(path / "plain.pdf", [page]))
    marked = texts[0].box()
    corners = (
        marked[0],
        marked[3],
        marked[2],
        marked[3],
        marked[0],
        marked[1],
        marked[2],
        marked[1],
    )
    quads = ArrayObject(FloatObject(value) for value in corners)
    place = (300, 300, 340, 340)
    for annotation in (
        Note(rect=place, text="Ask the pilot\r\nabout this."),
        FreeText(text="Too early!", rect=place),
        Highlight(rect=marked, quad_points=quads),
        Link(rect=texts[1].box(), url="https://tides.example/today"),
    ):
        writer.add_annotation(0, annotation)
    writer.write(path / "noted.pdf")
    return (
        path / "noted.pdf",
        page,
        {
            "note: Ask the pilot about this.": place,
            "note: Too early!": place,
            "highlight: The tide turns at four in the morning.": marked,
            "link: https://tides.example/today": texts[1].box(),
        },
    )


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_annotations_are_segments_behind_the_text(tmp_path, rotate):
    path, page, expected = _annotated(tmp_path, rotate)
    segments = pdf.read(path, "application/pdf", tmp_path, NO_OCR).segments
    assert [s.text for s in segments[2:]] == list(expected)
    for segment in segments[2:]:
        place = page.place(expected[segment.text])
        assert segment.span.bbox == pytest.approx(place, abs=ONE_PERCENT)
        assert (segment.kind, segment.span.page) == ("paragraph", 1)


def test_link_is_left_out_when_the_page_shows_its_address(tmp_path):
    text = Text(x=80, y=600, text="Read tides.example/today before you sail.")
    writer = pypdf.PdfWriter(clone_from=write_pages(tmp_path / "plain.pdf", [Page(texts=[text])]))
    writer.add_annotation(0, Link(rect=text.box(), url="https://tides.example/today"))
    writer.write(tmp_path / "a.pdf")
    content = pdf.read(tmp_path / "a.pdf", "application/pdf", tmp_path, NO_OCR)
    assert [s.text for s in content.segments] == [text.text]


def test_outline_labels_and_attachments_are_metadata(tmp_path):
    pages = [Page(texts=[Text(x=80, y=600, text=f"Text of sheet {n}, in full.")]) for n in range(4)]
    writer = pypdf.PdfWriter(clone_from=write_pages(tmp_path / "plain.pdf", pages))
    writer.set_page_label(0, 1, style="/r")
    writer.set_page_label(2, 3, style="/D", prefix="A-")
    part = writer.add_outline_item(title="Part One", page_number=2)
    writer.add_outline_item(title="A section", page_number=3, parent=part)
    writer.add_attachment("figures.csv", b"a,b\n")
    writer.write(tmp_path / "a.pdf")
    content = pdf.read(tmp_path / "a.pdf", "application/pdf", tmp_path, NO_OCR)
    stated = {name: value for name, value in content.metadata if value.startswith("[")}
    assert {name: json.loads(value) for name, value in stated.items()} == {
        "outline": [[1, "Part One", 3], [2, "A section", 4]],
        "page_labels": ["i", "ii", "A-1", "A-2"],
        "attachments": ["figures.csv"],
    }


def test_no_list_is_stated_when_the_file_has_none(tmp_path):
    content = _read(tmp_path, [Page(texts=CORNERS)])
    assert content.metadata == ()


PICTURE = "q 600 0 0 800 0 0 cm BI /W 2 /H 2 /BPC 8 /CS /G ID \x20\x60\x40\x7e EI Q\n"


def test_scan_is_looked_at_when_a_stamp_is_its_only_text(tmp_path):
    stamp = Text(x=80, y=760, text="Received by the registry, 4 May 2024")
    content = _read(tmp_path, [Page(texts=[stamp], extra=PICTURE)])
    assert [(s.kind, s.text) for s in content.segments] == [
        ("paragraph", stamp.text),
        ("image", ""),
    ]
    assert len(content.media) == 1


def test_text_is_enough_when_a_picture_lies_behind_a_page_of_it(tmp_path):
    texts = [Text(x=80, y=700 - 15 * n, text=f"Line {n} of the slide's text.") for n in range(3)]
    content = _read(tmp_path, [Page(texts=texts, extra=PICTURE)])
    assert not content.media


@pytest.mark.parametrize(("num_controls", "garbled"), [(0, False), (3, False), (400, True)])
def test_layer_is_garbled_when_much_of_it_is_no_character(num_controls, garbled):
    line = Line(
        text="(-.45) " * 10, box=(0, 0, 9, 9), size=9, bold=False, is_row=False, is_hyphenated=False
    )
    text = PageText(page=1, width=600, height=800, lines=(line,), num_controls=num_controls)
    assert is_garbled(text) is garbled
