"""PDF against files whose text and boxes are known."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from connectors.document import Span
from connectors.errors import DocumentRejected
from connectors.readers import ReaderOptions, pdf
from tests.corpora.make import text_operator, write_pdf

CORPORA = Path(__file__).parent.parent / "corpora"
PDF = "application/pdf"
NO_OCR = ReaderOptions(ocr="off")
PROSE = (
    text_operator(60, 700, "A heading of the page", size=20)
    + text_operator(60, 660, "The first sentence ends here. The second one goes on")
    + text_operator(60, 645, "over two lines of text, as Dr. Brown said.")
    + text_operator(60, 600, "A new paragraph stands apart from the first.")
)


def _read(path: Path, media_dir: Path, options: ReaderOptions = NO_OCR):
    return pdf.read(path, PDF, media_dir, options)


def test_sentences_have_their_page_and_box(tmp_path):
    content = _read(write_pdf(tmp_path / "a.pdf", [PROSE, PROSE]), tmp_path)
    assert [(s.kind, s.text) for s in content.segments[:4]] == [
        ("heading", "A heading of the page"),
        ("paragraph", "The first sentence ends here."),
        ("paragraph", "The second one goes on over two lines of text, as Dr. Brown said."),
        ("paragraph", "A new paragraph stands apart from the first."),
    ]
    assert [s.span.page for s in content.segments] == [1] * 4 + [2] * 4
    x0, y0, x1, y1 = content.segments[1].span.bbox
    # Baseline at 660 of 800 points from below; capitals of 12 points are 8.6 high.
    assert x0 == pytest.approx(60 / 600, abs=0.003)
    assert (y0, y1) == (pytest.approx(131 / 800, abs=0.005), pytest.approx(143 / 800, abs=0.005))
    assert x1 > 0.5
    assert [u.status for u in content.units] == ["read", "read"]


@pytest.mark.parametrize("rotate", [90, 180, 270])
def test_boxes_lie_on_the_upright_page_when_it_is_rotated(tmp_path, rotate):
    flat, turned = (
        next(
            segment.span.bbox
            for segment in _read(
                write_pdf(tmp_path / "a.pdf", [PROSE], rotate=turn), tmp_path
            ).segments
            if segment.kind == "heading"
        )
        for turn in (0, rotate)
    )
    x0, y0, x1, y1 = flat
    expected = {
        90: (1 - y1, x0, 1 - y0, x1),
        180: (1 - x1, 1 - y1, 1 - x0, 1 - y0),
        270: (y0, 1 - x1, y1, 1 - x0),
    }[rotate]
    assert turned == pytest.approx(expected, abs=0.002)


def test_lines_are_joined_when_the_page_is_landscape_by_rotation(tmp_path):
    lines = ["This sentence is drawn sideways and", "turned upright by the page."]
    content = "".join(
        f"BT /F1 12 Tf 0 1 -1 0 {200 + 15 * number} 100 Tm ({line}) Tj ET\n"
        for number, line in enumerate(lines)
    )
    (segment,) = _read(write_pdf(tmp_path / "a.pdf", [content], rotate=90), tmp_path).segments
    assert segment.text == " ".join(lines)
    x0, y0, x1, y1 = segment.span.bbox
    assert x1 - x0 > y1 - y0


def test_box_covers_the_ink_of_the_rendered_page(tmp_path):
    path = write_pdf(
        tmp_path / "a.pdf", [text_operator(200, 300, "Only this line of text is here")]
    )
    span = _read(path, tmp_path).segments[0].span
    image = cv2.imdecode(
        np.frombuffer(pdf.preview(path, PDF, span, 800), np.uint8), cv2.IMREAD_GRAYSCALE
    )
    rows, columns = np.nonzero(image < 128)
    height, width = image.shape
    ink = (columns.min() / width, rows.min() / height, columns.max() / width, rows.max() / height)
    assert span.bbox == pytest.approx(ink, abs=0.006)


def test_row_stays_whole_when_its_cells_are_far_apart(tmp_path):
    rows = [("North", "12.5", "ok"), ("South", "7.25", "late")]
    content = "".join(
        text_operator(x, 600 - 20 * y, cell)
        for y, row in enumerate(rows)
        for x, cell in zip((60, 250, 420), row, strict=True)
    )
    segments = _read(write_pdf(tmp_path / "a.pdf", [content]), tmp_path).segments
    assert [(s.kind, s.text) for s in segments] == [
        ("table", "North 12.5 ok"),
        ("table", "South 7.25 late"),
    ]


def test_metadata_and_form_values_are_read(tmp_path, demo_corpus):
    path = write_pdf(tmp_path / "a.pdf", [PROSE], info={"Title": "The Title", "Author": "Someone"})
    assert _read(path, tmp_path).metadata == (("author", "Someone"), ("title", "The Title"))
    form = _read(demo_corpus / "reports" / "example-form.pdf", tmp_path)
    assert ("field:First Name", "Alice") in form.metadata
    value = next(s for s in form.segments if s.text == "First Name: Alice")
    assert value.span.page == 1
    assert 0 < value.span.bbox[0] < value.span.bbox[2] < 1


def test_scan_becomes_an_image_when_ocr_is_off(tmp_path, demo_corpus):
    path = demo_corpus / "reports" / "sequencer-brochure-scan.pdf"
    content = _read(path, tmp_path)
    (segment,) = content.segments
    (media,) = content.media
    assert (segment.kind, segment.tier, segment.media) == ("image", "none", "p0001.jpg")
    assert cv2.imread(str(tmp_path / "p0001.jpg")).shape[:2] == (media.height_px, media.width_px)
    assert max(media.width_px, media.height_px) == 1568
    assert "rapidocr" not in content.reader


def test_text_is_read_off_the_picture_when_the_layer_is_garbled_or_curves(tmp_path):
    options = ReaderOptions()
    curves = pdf.read(CORPORA / "vector.pdf", PDF, tmp_path, options)
    text = " ".join(s.text for s in curves.segments if s.tier == "ocr")
    assert "This is text that should be used" in text
    assert all(s.span.bbox and s.media == "p0001.jpg" for s in curves.segments if s.tier == "ocr")
    assert "+rapidocr-3." in curves.reader
    garbled = pdf.read(CORPORA / "truetype_font_nomapping.pdf", PDF, tmp_path, options)
    assert garbled.segments[0].kind == "image"
    assert not any(s.tier == "native" for s in garbled.segments)


def test_scans_behind_the_limit_are_named_when_there_are_many(tmp_path):
    curve = "10 w 100 100 m 500 700 l S"
    options = ReaderOptions(max_ocr_pages=1)
    content = pdf.read(write_pdf(tmp_path / "a.pdf", [curve] * 3), PDF, tmp_path, options)
    assert [u.status for u in content.units] == ["read", "failed", "failed"]
    assert "max_ocr_pages" in content.units[1].error
    assert len(content.media) == 3


def test_pages_behind_the_limit_are_named_when_the_document_is_long(tmp_path):
    path = write_pdf(tmp_path / "a.pdf", [PROSE] * 5)
    content = _read(path, tmp_path, ReaderOptions(ocr="off", max_pages=2))
    assert content.units[-1].name == "pages 3-5"
    assert content.units[-1].status == "failed"
    assert {s.span.page for s in content.segments} == {1, 2}


def test_page_is_empty_when_nothing_is_on_it(tmp_path):
    content = _read(write_pdf(tmp_path / "a.pdf", ["", PROSE]), tmp_path)
    assert [u.status for u in content.units] == ["empty", "read"]


def test_pages_that_load_are_kept_when_others_do_not(tmp_path):
    path = write_pdf(tmp_path / "a.pdf", [PROSE, PROSE])
    # The second page's object is torn out; the file still opens.
    path.write_bytes(
        path.read_bytes().replace(b"\n7 0 obj\n<< /Type /Page ", b"\n7 0 obj\n<  x       ")
    )
    content = _read(path, tmp_path)
    assert {s.span.page for s in content.segments} == {1}
    assert [u.status for u in content.units] == ["read", "failed"]
    assert content.units[1].name == "page 2"
    assert content.units[1].error


@pytest.mark.parametrize("name", ["invalid.pdf", "fuzz-16214.pdf"])
def test_file_is_rejected_as_damaged_when_an_encrypted_one_came_before(tmp_path, demo_corpus, name):
    reasons = []
    for path in (demo_corpus / "reports" / "locked.pdf", CORPORA / name):
        with pytest.raises(DocumentRejected) as caught:
            _read(path, tmp_path)
        reasons.append(caught.value.reason)
    assert reasons == ["encrypted", "damaged"]


def test_preview_is_rejected_when_the_page_does_not_exist(tmp_path):
    path = write_pdf(tmp_path / "a.pdf", [PROSE])
    with pytest.raises(DocumentRejected):
        pdf.preview(path, PDF, Span(page=9), 200)
