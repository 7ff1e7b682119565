"""Figures of PDFs against drawn ones: their place in the text, their box, their JPEG."""

from __future__ import annotations

import cv2
import pytest

from connectors.readers import ReaderOptions, pdf
from tests.corpora.pages import Page, Text, write_pages

ASKED = ReaderOptions(ocr="off", pdf_figures=True)
ABOVE = Text(x=80, y=700, text="The harbour as it was in May.")
BELOW = Text(x=80, y=300, text="The harbour as it is today, in June.")
PLACE = (150, 400, 450, 600)


def _picture(x0, y0, x1, y1):
    """Operators of an image of four grey pixels."""
    data = "BI /W 2 /H 2 /BPC 8 /CS /G ID \x20\x60\x40\x7e EI"
    return f"q {x1 - x0} 0 0 {y1 - y0} {x0} {y0} cm {data} Q\n"


def _read(path, pages, options=ASKED):
    return pdf.read(write_pages(path / "a.pdf", pages), "application/pdf", path, options)


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
@pytest.mark.parametrize("crop", [None, (60, 90, 560, 740)], ids=["plain", "cropped"])
def test_picture_stands_between_its_paragraphs(tmp_path, rotate, crop):
    page = Page(texts=[ABOVE, BELOW], crop=crop, rotate=rotate, extra=_picture(*PLACE))
    content = _read(tmp_path, [page])
    above, image, below = content.segments
    assert (above.text, below.text) == (ABOVE.text, BELOW.text)
    assert (image.kind, image.tier, image.text, image.span.page) == ("image", "none", "", 1)
    assert image.span.bbox == pytest.approx(page.place(PLACE), abs=0.005)
    (media,) = content.media
    assert media.name == image.media
    pixels = cv2.imread(str(tmp_path / media.name))
    assert pixels.shape[:2] == (media.height_px, media.width_px)
    # Cut out of a raster twice as fine as the page's own, and not larger than that.
    longest = 1568 * 2 * 300 / max((600, 800) if crop is None else (500, 650))
    assert max(media.width_px, media.height_px) == pytest.approx(min(1568, longest), rel=0.02)
    is_on_its_side = rotate in {90, 270}
    sides = (
        (media.height_px, media.width_px) if is_on_its_side else (media.width_px, media.height_px)
    )
    assert sides[0] / sides[1] == pytest.approx(300 / 200, rel=0.02)


def test_picture_is_left_out_when_figures_are_not_asked_for(tmp_path):
    page = Page(texts=[ABOVE, BELOW], extra=_picture(*PLACE))
    content = _read(tmp_path, [page], ReaderOptions(ocr="off"))
    assert [s.text for s in content.segments] == [ABOVE.text, BELOW.text]
    assert not content.media
    assert content.reader + "+pdf_figures=True" == _read(tmp_path, [page]).reader


def test_tiles_are_one_figure_when_they_touch(tmp_path):
    tiles = "".join(_picture(x, y, x + 100, y + 100) for x in (150, 250, 350) for y in (400, 500))
    page = Page(texts=[ABOVE, BELOW], extra=tiles)
    _, image, _ = _read(tmp_path, [page]).segments
    assert image.span.bbox == pytest.approx(page.place(PLACE), abs=0.005)


def test_two_figures_stand_in_order_when_there_is_text_between(tmp_path):
    between = Text(x=80, y=500, text="And from the other side of it.")
    pictures = _picture(150, 320, 450, 480) + _picture(150, 520, 450, 680)
    page = Page(texts=[ABOVE, between, BELOW], extra=pictures)
    segments = _read(tmp_path, [page]).segments
    assert [s.text or "image" for s in segments] == [
        ABOVE.text, "image", between.text, "image", BELOW.text,
    ]  # fmt: skip
    assert segments[1].span.bbox[1] < segments[3].span.bbox[1]
    assert segments[1].media != segments[3].media


@pytest.mark.parametrize(
    "place", [(0, 0, 600, 800), (0, 0, 600, 700), (20, 20, 60, 60)], ids=["all", "most", "icon"]
)
def test_picture_is_no_figure_when_it_is_a_background_or_an_icon(tmp_path, place):
    # With less text, a page under a picture is a scan.
    more = Text(x=80, y=500, text="Seen from the pier, on a calm day, with a boat.")
    texts = [ABOVE, more, BELOW]
    content = _read(tmp_path, [Page(texts=texts, extra=_picture(*place))])
    assert [s.text for s in content.segments] == [text.text for text in texts]


def test_drawing_is_a_figure_and_ruling_lines_are_none(tmp_path):
    steps = " ".join(f"{150 + 6 * n} {420 + 35 * (n % 5)} l" for n in range(1, 51))
    page = Page(texts=[ABOVE, BELOW], extra=f"150 420 m {steps} S\n")
    _, image, _ = _read(tmp_path, [page]).segments
    assert image.span.bbox == pytest.approx(page.place((150, 420, 450, 560)), abs=0.02)
    rules = "".join(f"150 {400 + 5 * n} m 450 {400 + 5 * n} l S\n" for n in range(40))
    ruled = Page(texts=[ABOVE, BELOW], extra=rules + "150 400 300 200 re S\n" * 20)
    assert [s.kind for s in _read(tmp_path, [ruled]).segments] == ["paragraph", "paragraph"]


def test_figures_behind_the_limit_are_counted(tmp_path):
    page = Page(texts=[ABOVE, BELOW], extra=_picture(*PLACE))
    options = ReaderOptions(ocr="off", pdf_figures=True, max_figures=1)
    content = _read(tmp_path, [page, page], options)
    assert len(content.media) == 1
    assert [unit.status for unit in content.units] == ["read", "read"]
    assert content.units[0].error is None
    assert "1 figures are left out: see reader.max_figures" in content.units[1].error


def _lettered(texts):
    """The operators of text drawn as lines, which no text layer has."""
    strokes = {
        "H": [(0, 0, 0, 6), (4, 0, 4, 6), (0, 3, 4, 3)],
        "E": [(0, 0, 0, 6), (0, 0, 4, 0), (0, 3, 3, 3), (0, 6, 4, 6)],
        "L": [(0, 0, 0, 6), (0, 0, 4, 0)],
        "T": [(2, 0, 2, 6), (0, 6, 4, 6)],
    }
    lines = "4 w\n"
    for at, letter in enumerate(texts):
        for x0, y0, x1, y1 in strokes[letter]:
            x, y = 170 + 46 * at, 470
            lines += f"{x + 7 * x0} {y + 7 * y0} m {x + 7 * x1} {y + 7 * y1} l S\n"
    return lines


def test_text_on_a_figure_is_read_by_ocr_when_the_page_has_it_not_as_text(tmp_path):
    picture = "q 300 0 0 200 150 400 cm BI /W 2 /H 2 /BPC 8 /CS /G ID \x7e\x7e\x7e\x7e EI Q\n"
    page = Page(texts=[ABOVE, BELOW], extra=picture + _lettered("THELL"))
    options = ReaderOptions(pdf_figures=True)
    above, image, *read_off, below = _read(tmp_path, [page], options).segments
    assert (above.text, below.text) == (ABOVE.text, BELOW.text)
    (line,) = read_off
    assert (line.tier, line.media) == ("ocr", image.media)
    assert "T" in line.text.upper()
    x0, y0, x1, y1 = line.span.bbox
    left, top, right, bottom = page.place((160, 460, 400, 520))
    assert left - 0.02 <= x0 < x1 <= right + 0.02
    assert top - 0.02 <= y0 < y1 <= bottom + 0.02


def test_text_on_a_figure_is_not_read_twice_when_the_page_has_it_as_text(tmp_path):
    label = Text(x=200, y=500, text="North pier", size=20)
    page = Page(texts=[ABOVE, label, BELOW], extra=_picture(*PLACE))
    content = _read(tmp_path, [page], ReaderOptions(pdf_figures=True))
    assert [s.tier for s in content.segments if s.kind != "image"] == ["native"] * 3
    assert "rapidocr" not in content.reader


def test_unread_figures_are_named_when_ocr_is_used_up(tmp_path):
    page = Page(texts=[ABOVE, BELOW], extra=_picture(*PLACE))
    options = ReaderOptions(pdf_figures=True, max_ocr_pages=0)
    (unit,) = _read(tmp_path, [page], options).units
    assert (unit.status, unit.error) == (
        "read",
        "text on 1 figures was not read: reader.max_ocr_pages is 0",
    )
