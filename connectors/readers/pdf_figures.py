"""Finds pictures and drawings on a PDF page with text, and cuts them out of its raster."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c

from connectors.document import Media, Segment, Span
from connectors.readers import ReaderOptions
from connectors.readers.media import Pixels, fit, is_blank, write_jpeg
from connectors.readers.ocr import MIN_CONFIDENCE_PAGE, OcrLine, line_segments, read_lines
from connectors.readers.pdf_boxes import Box, turn_box, within_page
from connectors.readers.pdf_layout import Figure, PageText
from connectors.readers.pdf_objects import Drawn, drawn_objects
from connectors.readers.pdf_page import render
from connectors.readers.pdf_places import Places

_MIN_SHARE, _MAX_SHARE = 0.03, 0.8
"""Share of the page that a figure takes: less is an icon, more is the background."""
_RASTER = 300
"""Parts of the page's sides: what touches in this raster is one figure, as tiles of a picture do."""
_MIN_SEGMENTS = 40
"""Lines and curves that make a drawing a figure; those of rules and boxes do not count."""
_RECTANGLE_SEGMENTS = 6
_THIN = 3.0
"""Points: a rule is at most so thick."""
_BEYOND = 0.1
"""Part of the page's side by which a drawing may reach beyond the page."""
_MAX_OBJECTS = 50_000
"""Objects of a page that are looked at: about 1 s."""
_ZOOM = 2
"""Figures are cut out of a raster of so many times the long side that a page's own has."""


@dataclass(slots=True)
class Figures:
    """The figures of one page and what could not be told of them."""

    placed: list[Figure]
    media: list[Media]
    num_left_out: int = 0
    num_unread: int = 0
    """Figures that the text layer has no text in, and OCR was not asked about."""
    used_ocr: bool = False


def read_figures(
    page: pdfium.PdfPage, text: PageText, media_dir: Path, options: ReaderOptions
) -> Figures:
    """Return the figures of a page with a text layer; their JPEGs go into `media_dir`.

    Args:
        page: The page.
        text: Its text layer.
        media_dir: An existing folder.
        options: Its `max_figures` is what is left for this page.

    Raises:
        pdfium.PdfiumError: The page cannot be drawn.
        StorageError: The folder cannot be written.
    """
    boxes = _find(page)
    found = Figures([], [], num_left_out=max(0, len(boxes) - options.max_figures))
    boxes = boxes[: options.max_figures]
    if not boxes:
        return found
    pixels = render(page, _ZOOM * options.raster_long_side_px)
    for box in boxes:
        cut = fit(_cut(pixels, box), options.raster_long_side_px)
        if is_blank(cut):
            continue
        media = write_jpeg(cut, media_dir, f"p{text.page:04d}-f{len(found.media) + 1}.jpg")
        found.media.append(media)
        span = Span(page=text.page, bbox=within_page(box))
        segments = [Segment(kind="image", text="", span=span, tier="none", media=media.name)]
        if not _has_text(text, box):
            found.num_unread += options.ocr == "off"
            found.used_ocr |= options.ocr != "off"
            lines = read_lines(cut, options.ocr, MIN_CONFIDENCE_PAGE)
            segments += line_segments([_on_page(line, box) for line in lines], span, media.name)
        found.placed.append(Figure(num_before=_num_before(text, box), segments=tuple(segments)))
    found.placed.sort(key=lambda figure: figure.num_before)
    return found


def _find(page: pdfium.PdfPage) -> list[Box]:
    """Return boxes as fractions of the upright page, from top to bottom."""
    covered = np.zeros((_RASTER + 1, _RASTER + 1), dtype=np.uint8)
    weights: list[tuple[int, int, int]] = []
    places = Places(page)
    for number, drawn in enumerate(drawn_objects(page)):
        if number == _MAX_OBJECTS:
            break
        weight = _weight(drawn)
        if drawn.box is None or not weight:
            continue
        whole = places.fractions(drawn.box)
        if drawn.num_segments and (min(whole) < -_BEYOND or max(whole) > 1 + _BEYOND):
            # Only what a clip leaves of it is seen, and where that is the object does not say.
            continue
        x0, y0, x1, y1 = within_page(whole)
        if max(x1 - x0, y1 - y0) == 0 or (x1 - x0) * (y1 - y0) > _MAX_SHARE:
            continue
        left, top = math.floor(x0 * _RASTER), math.floor(y0 * _RASTER)
        covered[top : math.ceil(y1 * _RASTER) + 1, left : math.ceil(x1 * _RASTER) + 1] = 1
        weights.append((top, left, weight))
    if not weights:
        return []
    count, labels, stats, _ = cv2.connectedComponentsWithStats(covered, connectivity=8)
    totals = [0] * count
    for top, left, weight in weights:
        totals[labels[top, left]] += weight
    boxes = []
    for (left, top, width, height, _), total in zip(stats[1:].tolist(), totals[1:], strict=True):
        # A raster cell more than what is drawn, on the right and below.
        box = (left, top, left + width - 1, top + height - 1)
        share = (width - 1) * (height - 1) / _RASTER**2
        if total >= _MIN_SEGMENTS and _MIN_SHARE <= share <= _MAX_SHARE:
            boxes.append(within_page(tuple(side / _RASTER for side in box)))
    return sorted(boxes, key=lambda box: (box[1], box[0]))


def _weight(drawn: Drawn) -> int:
    """Return what an object counts for in a figure: a picture is one, many lines make one."""
    if drawn.kind == pdfium_c.FPDF_PAGEOBJ_IMAGE:
        return _MIN_SEGMENTS
    if drawn.box is None:
        return 0
    left, bottom, right, top = drawn.box
    is_rule = min(right - left, top - bottom) <= _THIN and drawn.num_segments <= _RECTANGLE_SEGMENTS
    # Boxes are drawn around tables and text.
    return 0 if is_rule or drawn.num_segments == _RECTANGLE_SEGMENTS - 1 else drawn.num_segments


def _cut(pixels: Pixels, box: Box) -> Pixels:
    height, width = pixels.shape[:2]
    left, right = math.floor(box[0] * width), math.ceil(box[2] * width)
    top, bottom = math.floor(box[1] * height), math.ceil(box[3] * height)
    return np.ascontiguousarray(pixels[top:bottom, left:right])


def _has_text(text: PageText, box: Box) -> bool:
    middles = [_middle(line.box, text) for line in text.lines]
    return any(box[0] < x < box[2] and box[1] < y < box[3] for x, y in middles)


def _middle(box: Box, text: PageText) -> tuple[float, float]:
    """Return the middle of a box on the turned page, as fractions of the upright one."""
    x, y = (box[0] + box[2]) / 2 / text.width, (box[1] + box[3]) / 2 / text.height
    x, y, _, _ = turn_box((x, y, x, y), -text.turn)
    return x, y


def _on_page(line: OcrLine, box: Box) -> OcrLine:
    width, height = box[2] - box[0], box[3] - box[1]
    x0, y0, x1, y1 = line.bbox
    inside = (
        box[0] + x0 * width,
        box[1] + y0 * height,
        box[0] + x1 * width,
        box[1] + y1 * height,
    )
    return replace(line, bbox=within_page(inside))


def _num_before(text: PageText, box: Box) -> int:
    """Return the number of lines in front of a figure: up to the nearest one above it.

    Where none is above it, it comes before the nearest one below.
    """
    x0, y0, x1, y1 = turn_box(box, text.turn)
    left, right, top, bottom = x0 * text.width, x1 * text.width, y0 * text.height, y1 * text.height
    middle = (top + bottom) / 2
    beside = [
        (number, line)
        for number, line in enumerate(text.lines)
        if line.box[0] < right and line.box[2] > left
    ]
    above = [(-line.middle, -number) for number, line in beside if line.middle < middle]
    if above:
        return 1 - min(above)[1]
    below = [(line.middle, number) for number, line in beside]
    return min(below)[1] if below else len(text.lines)
