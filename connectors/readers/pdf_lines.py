"""The lines of a PDF page's text layer with their boxes and fonts.

A page has thousands of characters, and each call of PDFium's costs as much as a line of Python: it is
asked a few times per line, through places for its answers that are made once per page.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c
from numpy.typing import NDArray

from connectors.readers.pdf_boxes import Box
from connectors.readers.pdf_layout import Line, on_one_line
from connectors.readers.pdf_order import Glyph
from connectors.readers.pdf_places import Places

_CARRIAGE_RETURN, _LINE_FEED, _SOFT_HYPHEN = 0x0D, 0x0A, 0xFFFE
_ROW_GAP = 2.0
"""Gap between parts of a line, in font sizes, that a table row has and justified text has not."""
_ROUNDING = 0.1
"""Points by which a gap on the canvas may differ from the same one on the page."""
_BOLD_WEIGHT = 600
_NUM_SAMPLES = 64
"""Pairs of characters of a page that are asked for the gap between them."""
_MAX_MENDED_CHARS = 1000
"""A longer line is no line of text; the time for one grows with its square."""
_MIN_PLACED, _MIN_SPREAD, _SPREAD_GAP = 8, 0.6, 0.01
"""Pairs of characters that tell whether letters are placed one by one, the share of them that must have a
gap, and that gap in font sizes: else widths alone place them, and PDFium finds their blanks."""
_NOT_PARTED = re.compile(r"[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010000-\U0010ffff]")
"""Written from right to left, or two units in the text layer."""

Mend = Callable[[Sequence[Glyph], float], str]
"""Gives the text of a line from its characters and its font size."""


class TextLayer:
    """The text of an open page. Where the page is turned, make another one."""

    def __init__(self, page: pdfium.PdfPage, textpage: pdfium.PdfTextPage) -> None:
        self._places = Places(page)
        self._raw = textpage.raw
        self._count = textpage.count_chars()
        self.units = self._units()
        """The text in UTF-16."""
        whole = self.units.tobytes().decode("utf-16-le", errors="ignore")
        # Slices of the text are those of the units where each character is one unit.
        self._text = whole if len(whole) == len(self.units) else None
        self._sides = [ctypes.c_double() for _ in range(4)]
        self._side_refs = [ctypes.byref(side) for side in self._sides]
        self._matrix, self._rect = pdfium_c.FS_MATRIX(), pdfium_c.FS_RECTF()
        self._matrix_ref, self._rect_ref = ctypes.byref(self._matrix), ctypes.byref(self._rect)

    def lines(self, in_table: NDArray[np.bool_], mend: Mend | None) -> tuple[list[int], list[Line]]:
        """Return the lines outside of tables, and where in the units each begins.

        Args:
            in_table: The units that are in none of the lines.
            mend: Makes the text of lines from the places of their characters.
        """
        units = self.units
        starts, lines = [], []
        is_break = (units == _CARRIAGE_RETURN) | (units == _LINE_FEED) | (units == _SOFT_HYPHEN)
        breaks = np.flatnonzero(is_break | in_table).tolist()
        for before, end in pairwise([-1, *breaks, len(units)]):
            if end - before < 2:
                continue
            line = self._line(before + 1, end, mend)
            if line is not None:
                starts.append(before + 1)
                lines.append(line)
        return starts, lines

    def is_spread(self) -> bool:
        """Say whether the page's letters are placed one by one, with gaps between them."""
        rect = self._rect
        # With as many units as characters, the one is the other.
        text = self._text if len(self.units) == self._count else None
        num_pairs = num_gaps = 0
        for index in range(0, self._count - 1, max(1, self._count // _NUM_SAMPLES)):
            pair = text[index : index + 2] if text else self._char(index) + self._char(index + 1)
            # Of the words; blanks and marks have gaps of their own.
            if not pair.isalnum():
                continue
            pdfium_c.FPDFText_GetLooseCharBox(self._raw, index, self._rect_ref)
            right, bottom, height = rect.right, rect.bottom, rect.top - rect.bottom
            pdfium_c.FPDFText_GetLooseCharBox(self._raw, index + 1, self._rect_ref)
            if height > 0 and abs(rect.bottom - bottom) < 1:
                num_pairs += 1
                num_gaps += abs(rect.left - right) > _SPREAD_GAP * height
        return num_pairs >= _MIN_PLACED and num_gaps > _MIN_SPREAD * num_pairs

    def _units(self) -> NDArray[np.uint16]:
        if self._count <= 0:
            return np.empty(0, dtype=np.uint16)
        # PDFium may put in more units than there are characters in its list; twice is always enough.
        buffer = (ctypes.c_ushort * (2 * self._count + 16))()
        written = pdfium_c.FPDFText_GetText(self._raw, 0, self._count, buffer)
        return np.frombuffer(buffer, dtype=np.uint16)[: max(written - 1, 0)]

    def _char(self, index: int) -> str:
        return chr(pdfium_c.FPDFText_GetUnicode(self._raw, index))

    def _line(self, start: int, end: int, mend: Mend | None) -> Line | None:
        if self._text is not None:
            raw = self._text[start:end]
        else:
            raw = self.units[start:end].tobytes().decode("utf-16-le", errors="ignore")
        text = on_one_line(raw)
        first = pdfium_c.FPDFText_GetCharIndexFromTextIndex(self._raw, start)
        last = pdfium_c.FPDFText_GetCharIndexFromTextIndex(self._raw, end - 1)
        if not text or first < 0 or last < first:
            return None
        size, is_bold = self._font({first, (first + last) // 2, last})
        boxes = self._boxes(first, last)
        box = self._around(boxes)
        height = box[3] - box[1]
        if mend is not None and height < 2 * size and _can_mend(text):
            text = on_one_line(mend(self._glyphs(first, last), size))
        size = size or height
        return Line(
            text=text,
            box=box,
            size=size,
            bold=is_bold,
            is_row=self._has_gap(boxes, _ROW_GAP * size),
            is_hyphenated=end < len(self.units) and int(self.units[end]) == _SOFT_HYPHEN,
        )

    def _boxes(self, first: int, last: int) -> list[Box]:
        """Return the boxes of a run of characters in canvas units."""
        sides, refs = self._sides, self._side_refs
        boxes = []
        for index in range(pdfium_c.FPDFText_CountRects(self._raw, first, last - first + 1)):
            pdfium_c.FPDFText_GetRect(self._raw, index, *refs)
            boxes.append((sides[0].value, sides[1].value, sides[2].value, sides[3].value))
        return boxes

    def _around(self, boxes: Sequence[Box]) -> Box:
        """Return the box around boxes in canvas units, in points on the page."""
        if not boxes:
            return (0.0, 0.0, self._places.width, self._places.height)
        if len(boxes) == 1:
            return self._places.points(boxes[0])
        lefts, tops, rights, bottoms = zip(*boxes, strict=True)
        xs, ys = (*lefts, *rights), (*tops, *bottoms)
        return self._places.points((min(xs), max(ys), max(xs), min(ys)))

    def _has_gap(self, boxes: Sequence[Box], least: float) -> bool:
        """Say whether some gap between boxes is wider than `least` points."""
        if len(boxes) < 2:
            return least < 0
        axis, scale = self._places.axis, self._places.scale
        if _widest_gap(boxes, axis) * scale < least - _ROUNDING:
            return False
        ordered = sorted(map(self._places.points, boxes))
        reach = ordered[0][2]
        for x0, _, x1, _ in ordered[1:]:
            if x0 - reach > least:
                return True
            reach = max(reach, x1)
        return False

    def _font(self, indices: set[int]) -> tuple[float, bool]:
        """Return the largest size of characters on the page, and whether all are bold."""
        largest, is_bold = 0.0, True
        matrix = self._matrix
        for index in indices:
            size = pdfium_c.FPDFText_GetFontSize(self._raw, index)
            if pdfium_c.FPDFText_GetMatrix(self._raw, index, self._matrix_ref):
                size *= math.hypot(matrix.c, matrix.d)
            largest = max(largest, abs(size))
            if is_bold:
                is_bold = pdfium_c.FPDFText_GetFontWeight(self._raw, index) >= _BOLD_WEIGHT
        return largest, is_bold

    def _glyphs(self, first: int, last: int) -> list[Glyph]:
        rect, glyphs = self._rect, []
        for index in range(first, last + 1):
            # The loose box holds the character's own margins, so that a gap is a blank.
            pdfium_c.FPDFText_GetLooseCharBox(self._raw, index, self._rect_ref)
            x0, _, x1, _ = self._places.points((rect.left, rect.top, rect.right, rect.bottom))
            glyphs.append(Glyph(self._char(index), x0, x1))
        return glyphs


def _widest_gap(boxes: Sequence[Box], axis: int) -> float:
    """Return the widest gap between boxes along a side of the canvas, in its units."""
    ordered = sorted([sorted((box[axis], box[axis + 2])) for box in boxes])
    widest, reach = 0.0, ordered[0][1]
    for first, last in ordered:
        widest = max(widest, first - reach)
        reach = max(reach, last)
    return widest


def _can_mend(text: str) -> bool:
    return len(text) < _MAX_MENDED_CHARS and not _NOT_PARTED.search(text)
