"""Where a place in PDFium's canvas units lies on the page that a viewer shows."""

from __future__ import annotations

import ctypes

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c

from connectors.readers.pdf_boxes import Box, within_page

_DEVICE_UNITS = 64
"""Device units per point, so that PDFium's whole numbers keep a 64th of a point."""
_LONG = 10_000
"""Units of the canvas that tell its scale."""


class Places:
    """Tells where boxes in canvas units (y upwards) lie on an upright page, as it is turned now."""

    def __init__(self, page: pdfium.PdfPage) -> None:
        self.width, self.height = page.get_size()
        """Of the page in points."""
        self._raw = page.raw
        self._units = [max(1, round(side * _DEVICE_UNITS)) for side in (self.width, self.height)]
        self._x, self._y = ctypes.c_int(), ctypes.c_int()
        self._refs = (ctypes.byref(self._x), ctypes.byref(self._y))
        x0, y0, x1, y1 = self.points((0, 0, _LONG, 0))
        self.axis = 0 if x1 - x0 > y1 - y0 else 1
        """Side of the canvas that is across on the page: 0 is x, 1 is y."""
        self.scale = max(x1 - x0, y1 - y0) / _LONG
        """Points per unit of the canvas."""

    def fractions(self, box: Box) -> Box:
        """Return a box as fractions of the page, or beyond its borders."""
        (width, height), (x, y), raw = self._units, self._refs, self._raw
        # PDFium knows about rotation and crop box.
        pdfium_c.FPDF_PageToDevice(raw, 0, 0, width, height, 0, box[0], box[1], x, y)
        x0, y0 = self._x.value / width, self._y.value / height
        pdfium_c.FPDF_PageToDevice(raw, 0, 0, width, height, 0, box[2], box[3], x, y)
        x1, y1 = self._x.value / width, self._y.value / height
        return (
            x0 if x0 < x1 else x1,
            y0 if y0 < y1 else y1,
            x1 if x0 < x1 else x0,
            y1 if y0 < y1 else y0,
        )

    def points(self, box: Box) -> Box:
        """Return a box in points on the page."""
        x0, y0, x1, y1 = self.fractions(box)
        return (x0 * self.width, y0 * self.height, x1 * self.width, y1 * self.height)


def to_fractions(page: pdfium.PdfPage, box: Box) -> Box:
    """Return a box in canvas units as fractions of the upright page, cut off at its border."""
    return within_page(Places(page).fractions(box))
