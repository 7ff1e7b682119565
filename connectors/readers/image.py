"""Reads still images: the picture itself, scaled for a model, and the text on it."""

from __future__ import annotations

from pathlib import Path

import cv2

from connectors.document import Content, Segment, Span, Unit
from connectors.errors import DocumentRejected
from connectors.readers import VERSIONS, Password, ReaderOptions
from connectors.readers.media import Pixels, as_pixels, encode_jpeg, fit, is_blank, write_jpeg
from connectors.readers.ocr import MIN_CONFIDENCE_PAGE, line_segments, ocr_version, read_lines

VERSION = VERSIONS["image"]
"""Raised whenever the same file gives other segments; it enters the chunk keys."""

_MAX_PAGES = 256


def read(path: Path, media_type: str, media_dir: Path, options: ReaderOptions) -> Content:
    """Return one image segment per page, each with the lines of text read off it.

    Only TIFF has more than one page.

    Raises:
        DocumentRejected: The image cannot be decoded.
    """
    units, segments, media = [], [], []
    num_pages = _num_pages(path, media_type)
    for number in range(1, min(num_pages, _MAX_PAGES) + 1):
        pixels = _decode(path, number)
        name = f"page {number}"
        if pixels is None:
            units.append(Unit(name=name, status="failed", error="it cannot be decoded"))
            continue
        pixels = fit(pixels, options.raster_long_side_px)
        if is_blank(pixels):
            units.append(Unit(name=name, status="empty"))
            continue
        picture = write_jpeg(pixels, media_dir, f"p{number:04d}.jpg")
        span = Span(page=number)
        lines = read_lines(pixels, options.ocr, MIN_CONFIDENCE_PAGE)
        segments.append(Segment(kind="image", text="", span=span, tier="none", media=picture.name))
        segments.extend(line_segments(lines, span, picture.name))
        media.append(picture)
        units.append(Unit(name=name, status="read"))
    if num_pages > _MAX_PAGES:
        error = f"left out: an image file is read up to page {_MAX_PAGES}"
        units.append(Unit(name=f"pages {_MAX_PAGES + 1}-{num_pages}", status="failed", error=error))
    if all(unit.status == "failed" for unit in units):
        raise DocumentRejected(f"the {media_type} cannot be decoded", reason="damaged")
    reader = f"image/{VERSION}{options.changes('raster_long_side_px')}"
    if options.ocr != "off":
        reader += f"+{ocr_version(options.ocr)}"
    return Content(
        media_type=media_type,
        reader=reader,
        units=tuple(units),
        segments=tuple(segments),
        media=tuple(media),
    )


def preview(
    path: Path,
    media_type: str,
    span: Span,
    max_px: int,
    *,
    password: Password | None = None,  # noqa: ARG001
) -> bytes | None:
    """Return the image as a JPEG of at most `max_px`.

    Raises:
        DocumentRejected: The image cannot be decoded.
    """
    pixels = _decode(path, span.page or 1)
    if pixels is None:
        raise DocumentRejected(f"the {media_type} cannot be decoded", reason="damaged")
    return encode_jpeg(fit(pixels, max_px))


def _num_pages(path: Path, media_type: str) -> int:
    if media_type != "image/tiff":
        return 1
    try:
        return max(1, int(cv2.imcount(str(path))))
    except cv2.error:
        return 1


def _decode(path: Path, page: int) -> Pixels | None:
    """Return the upright image (EXIF orientation honoured), or None."""
    try:
        if page == 1:
            array = cv2.imread(str(path), cv2.IMREAD_COLOR)
        else:
            _, pages = cv2.imreadmulti(str(path), page - 1, 1, flags=cv2.IMREAD_COLOR)
            array = pages[0] if pages else None
    except cv2.error:
        # Among others: more pixels than OpenCV decodes (2^30), a guard against bombs.
        return None
    return None if array is None else as_pixels(array)
