"""The cells of ruled tables as pdfplumber finds them. Imported where they are asked for."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pdfplumber
from pdfminer.pdfdocument import PDFPasswordIncorrect
from pdfminer.psexceptions import PSException
from pdfplumber.pdf import PDF
from pdfplumber.utils.exceptions import MalformedPDFException, PdfminerException

from connectors.readers import Password
from connectors.readers.pdf_boxes import Box, TableCells, TablesError, turn_box
from connectors.readers.pdf_form import SLIPS

_MAX_EDGES, _MAX_CORNERS = 4_000, 4_000
"""Most lines each way, and points where they meet: the time grows with the square of these. A page of
50 rows and 20 columns has about 1,000 such points."""
_SNAP = 3.0
"""Points by which pdfplumber takes two lines for one."""
_ERRORS = (
    PdfminerException,
    MalformedPDFException,
    PSException,
    *SLIPS,
    AssertionError,
    EOFError,
    struct.error,
    zlib.error,
)


class PlumbedFile:
    """One file, opened at the first page that is asked about."""

    def __init__(self, path: Path, password: Password | None) -> None:
        self._path = path
        self._password = password
        self._file: IO[bytes] | None = None
        self._pages: Sequence[Any] = ()
        self._error: TablesError | None = None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def cells(self, number: int) -> TableCells:
        """Return the cells of each table of a page, in no order.

        Raises:
            TablesError: pdfplumber cannot read the page, or would take too long.
        """
        if self._file is None:
            self._open()
        if self._error is not None:
            raise self._error
        if number > len(self._pages):
            raise TablesError(f"pdfplumber finds {len(self._pages)} pages in the file")
        try:
            return _find_cells(self._pages[number - 1])
        except _ERRORS as exc:
            raise TablesError(f"pdfplumber cannot read the page: {_said(exc)}") from exc

    def _open(self) -> None:
        try:
            self._file = self._path.open("rb")
            self._pages = _opened(self._file, self._password).pages
        except _ERRORS as exc:
            self._error = TablesError(f"pdfplumber cannot open the file: {_said(exc)}")


def _said(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__


def _opened(file: IO[bytes], password: Password | None) -> PDF:
    try:
        # As in PDFium, a file that opens without a password is opened without it.
        return pdfplumber.open(file)  # type: ignore[arg-type]
    except PdfminerException as exc:
        if password is None or not any(isinstance(arg, PDFPasswordIncorrect) for arg in exc.args):
            raise
    return pdfplumber.open(file, password=password.value)  # type: ignore[arg-type]


def _find_cells(page: Any) -> TableCells:  # noqa: ANN401 - pdfplumber's page
    try:
        _check_size(page)
        return [[_canvas_box(page, cell) for cell in table.cells] for table in page.find_tables()]
    finally:
        # What it has parsed of one page is of no use for the next.
        page.close()


def _check_size(page: Any) -> None:  # noqa: ANN401 - pdfplumber's page
    """Refuse a page where so many lines cross that it would take minutes to try them all.

    Raises:
        TablesError: There are too many.
    """
    sides = ("x0", "x1", "top", "bottom")
    edges: dict[str, set[tuple[int, ...]]] = {"h": set(), "v": set()}
    for edge in page.edges:
        # Sides of slanted shapes have no orientation.
        if edge["orientation"] in edges:
            place = tuple(round(edge[side] / _SNAP) for side in sides)
            edges[edge["orientation"]].add(place)
    if max(map(len, edges.values())) > _MAX_EDGES:
        raise TablesError(f"the page has more than {_MAX_EDGES:,} ruling lines")
    if not all(edges.values()):
        return
    across, down = (np.array(sorted(edges[way])) for way in ("h", "v"))
    x, top, bottom = down[:, 0], down[:, 2], down[:, 3]
    meet = (
        (x >= across[:, :1] - 1)
        & (x <= across[:, 1:2] + 1)
        & (top <= across[:, 2:3] + 1)
        & (bottom >= across[:, 2:3] - 1)
    )
    rows, columns = np.nonzero(meet)
    corners = np.unique(np.stack((across[rows, 2], x[columns])), axis=1)
    if corners.shape[1] > _MAX_CORNERS:
        raise TablesError(f"its ruling lines cross in more than {_MAX_CORNERS:,} points")


def _canvas_box(page: Any, box: Sequence[float]) -> Box:  # noqa: ANN401 - pdfplumber's page
    """Return a box of pdfplumber's, which lies on the upright media box, in canvas units."""
    x0, top, x1, bottom = page.mediabox
    width, height = x1 - x0, bottom - top
    upright = (
        (box[0] - x0) / width,
        (box[1] - top) / height,
        (box[2] - x0) / width,
        (box[3] - top) / height,
    )
    flat = turn_box(upright, -(page.rotation // 90))
    media = page.page_obj.mediabox
    (left, right), (low, high) = sorted((media[0], media[2])), sorted((media[1], media[3]))
    return (
        left + flat[0] * (right - left),
        high - flat[3] * (high - low),
        left + flat[2] * (right - left),
        high - flat[1] * (high - low),
    )
