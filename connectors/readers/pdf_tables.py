"""Finds the cells of ruled tables by pdfplumber, on pages where PDFium sees enough ruling lines.

pdfplumber reads 9 pages a second, PDFium hundreds: so it is asked only where a table can be, and
only where the cells are. Their text comes from PDFium, like all other text, see `pdf_cells`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c

from connectors.readers import ReaderOptions
from connectors.readers.pdf_boxes import TableCells, TablesError
from connectors.readers.pdf_objects import drawn_objects

if TYPE_CHECKING:
    from connectors.readers.pdf_plumber import PlumbedFile

_MIN_RULES = 3
"""Lines each way that a table of two rows and two columns has."""
_THIN, _LONG = 3.0, 8.0
"""Points: a rule is at most so thick, and at least so long."""
_RECTANGLE_SEGMENTS = 6
_MAX_OBJECTS = 20_000
"""Most objects of a page that pdfplumber is given, lines and runs of text: about 5 s."""


class _Rules(NamedTuple):
    across: int
    down: int
    num_objects: int


@dataclass(slots=True)
class RuledTables:
    """The tables of one file. It is opened by pdfplumber at the first page that may have one."""

    path: Path
    options: ReaderOptions
    num_asked: int = 0
    """Pages that pdfplumber was asked about."""
    _file: PlumbedFile | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def cells(self, page: pdfium.PdfPage, number: int) -> TableCells:
        """Return the cells of each table of a page, in no order; none where there are no rules.

        Args:
            page: The page, open in PDFium.
            number: Its number, from 1.

        Raises:
            TablesError: They cannot be told, or that would take too long; the message says why.
        """
        if self.options.pdf_tables == "off":
            return ()
        rules = _rules(page)
        if min(rules.across, rules.down) < _MIN_RULES:
            return ()
        if self.num_asked >= self.options.max_table_pages:
            raise TablesError(f"reader.max_table_pages is {self.options.max_table_pages}")
        if rules.num_objects > _MAX_OBJECTS:
            raise TablesError(
                f"it has {rules.num_objects:,} objects; the limit is {_MAX_OBJECTS:,}"
            )
        self.num_asked += 1
        # Only where a table can be: the import costs a fifth of a second.
        from connectors.readers.pdf_plumber import PlumbedFile  # noqa: PLC0415

        if self._file is None:
            self._file = PlumbedFile(self.path, self.options.password)
        return self._file.cells(number)


def _rules(page: pdfium.PdfPage) -> _Rules:
    """Return how many lines across and down the page has, about, and its number of objects."""
    across = down = num_objects = 0
    for drawn in drawn_objects(page):
        num_objects += 1
        if drawn.kind != pdfium_c.FPDF_PAGEOBJ_PATH or drawn.box is None:
            continue
        left, bottom, right, top = drawn.box
        is_wide, is_high = right - left >= _LONG, top - bottom >= _LONG
        if is_wide and is_high:
            # A box, or a whole grid in one path.
            is_box = drawn.num_segments <= _RECTANGLE_SEGMENTS
            sides = 2 if is_box else drawn.num_segments // 2
            across, down = across + sides, down + sides
        else:
            across += is_wide and top - bottom <= _THIN
            down += is_high and right - left <= _THIN
    return _Rules(across, down, num_objects)
