"""Boxes on a PDF page: x0, y0, x1, y1 with the origin at the top left where nothing else is said."""

from __future__ import annotations

from collections.abc import Sequence

Box = tuple[float, float, float, float]
TableCells = Sequence[Sequence[Box]]
"""The cells of each table of a page in canvas units: left, bottom, right, top."""


def turn_box(box: Box, quarters: int) -> Box:
    """Return a box in fractions of a page after quarter turns of the page, clockwise."""
    x0, y0, x1, y1 = box
    for _ in range(quarters % 4):
        x0, y0, x1, y1 = 1 - y1, x0, 1 - y0, x1
    return (x0, y0, x1, y1)


def within_page(box: Box) -> Box:
    """Return a box in fractions of a page, cut off at the page's border and rounded."""
    x0, y0, x1, y1 = box
    if x0 < 0.0 or y0 < 0.0 or x1 > 1.0 or y1 > 1.0 or x0 > x1 or y0 > y1:
        x0, y0, x1, y1 = (min(1.0, max(0.0, side)) for side in box)
    return (round(x0, 4), round(y0, 4), round(x1, 4), round(y1, 4))


class TablesError(Exception):
    """The page's tables cannot be found; its text can be read all the same."""
