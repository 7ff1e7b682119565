"""Where a place in PDFium's canvas units lies on the page that a viewer shows."""

from __future__ import annotations

import ctypes

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c

from connectors.readers.pdf_boxes import Box, within_page

_DEVICE_UNITS = 64
"""Device units per point, so that PDFium's whole numbers keep a 64th of a point."""


def to_fractions(page: pdfium.PdfPage, box: Box) -> Box:
    """Return a box in canvas units (y upwards) as fractions of the upright page."""
    return within_page(fractions(page, box))


def fractions(page: pdfium.PdfPage, box: Box) -> Box:
    """Return a box in canvas units as fractions of the upright page, or beyond its borders."""
    # PDFium knows about rotation and crop box.
    width, height = (max(1, round(side * _DEVICE_UNITS)) for side in page.get_size())
    xs, ys = [], []
    for x, y in (box[:2], box[2:]):
        device_x, device_y = ctypes.c_int(), ctypes.c_int()
        pdfium_c.FPDF_PageToDevice(page, 0, 0, width, height, 0, x, y, device_x, device_y)
        xs.append(device_x.value / width)
        ys.append(device_y.value / height)
    return (min(xs), min(ys), max(xs), max(ys))
