"""Where a place in PDFium's canvas units lies on the page that a viewer shows."""

from __future__ import annotations

import ctypes

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c

from connectors.readers.pdf_boxes import Box

_DEVICE_UNITS = 1_000_000
"""Width and height of the page in the device units that PDFium's whole numbers count."""


class Places:
    """Tells where boxes in canvas units (y upwards) lie on an upright page, as it is turned now."""

    def __init__(self, page: pdfium.PdfPage) -> None:
        self.width, self.height = page.get_size()
        """Of the page in points."""
        # PDFium knows about rotation and crop box. It is asked for three corners, since a call for
        # each box would take a tenth of the time that a page takes.
        side = max(self.width, self.height, 1.0)
        origin, right, up = (_device(page, *corner) for corner in ((0, 0), (side, 0), (0, side)))
        self._origin = origin
        self._right = ((right[0] - origin[0]) / side, (right[1] - origin[1]) / side)
        self._up = ((up[0] - origin[0]) / side, (up[1] - origin[1]) / side)
        x0, y0, x1, y1 = self.points((0, 0, side, 0))
        self.axis = 0 if x1 - x0 > y1 - y0 else 1
        """Side of the canvas that is across on the page: 0 is x, 1 is y."""
        self.scale = max(x1 - x0, y1 - y0) / side
        """Points per unit of the canvas."""

    def fractions(self, box: Box) -> Box:
        """Return a box as fractions of the page, or beyond its borders."""
        left, bottom, right, top = box
        (x, y), (right_x, right_y), (up_x, up_y) = self._origin, self._right, self._up
        x0, y0 = x + left * right_x + bottom * up_x, y + left * right_y + bottom * up_y
        x1, y1 = x + right * right_x + top * up_x, y + right * right_y + top * up_y
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


def _device(page: pdfium.PdfPage, x: float, y: float) -> tuple[float, float]:
    """Return a point of the canvas as fractions of the page."""
    across, down = ctypes.c_int(), ctypes.c_int()
    units = _DEVICE_UNITS
    pdfium_c.FPDF_PageToDevice(page.raw, 0, 0, units, units, 0, x, y, across, down)
    return across.value / units, down.value / units
