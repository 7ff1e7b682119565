"""What is drawn on a PDF page, object by object, also inside of forms."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c

from connectors.readers.pdf_boxes import Box

_MAX_DEPTH = 4
_Matrix = tuple[float, float, float, float, float, float]
_IDENTITY: _Matrix = (1, 0, 0, 1, 0, 0)


class Drawn(NamedTuple):
    """One object: text, path, image or shading."""

    kind: int
    box: Box | None
    """In canvas units: left, bottom, right, top; of paths and images only."""
    num_segments: int
    """Lines and curves of a path."""


def drawn_objects(page: pdfium.PdfPage) -> Iterator[Drawn]:
    """Yield the objects in the order they are drawn in."""
    yield from _objects(
        page, pdfium_c.FPDFPage_CountObjects, pdfium_c.FPDFPage_GetObject, (_IDENTITY, 0)
    )


def _objects(
    parent: Any,  # noqa: ANN401 - a page or a C pointer
    count: Callable[[Any], int],
    get: Callable[[Any, int], Any],
    within: tuple[_Matrix, int],
) -> Iterator[Drawn]:
    matrix, depth = within
    for index in range(max(0, count(parent))):
        drawn = get(parent, index)
        kind = pdfium_c.FPDFPageObj_GetType(drawn)
        if kind == pdfium_c.FPDF_PAGEOBJ_FORM and depth < _MAX_DEPTH:
            yield from _objects(
                drawn,
                pdfium_c.FPDFFormObj_CountObjects,
                pdfium_c.FPDFFormObj_GetObject,
                (_times(_own_matrix(drawn), matrix), depth + 1),
            )
        elif kind == pdfium_c.FPDF_PAGEOBJ_PATH:
            yield Drawn(kind, _box(drawn, matrix), pdfium_c.FPDFPath_CountSegments(drawn))
        else:
            is_image = kind == pdfium_c.FPDF_PAGEOBJ_IMAGE
            yield Drawn(kind, _box(drawn, matrix) if is_image else None, 0)


def _own_matrix(form: Any) -> _Matrix:  # noqa: ANN401 - a C pointer
    own = pdfium_c.FS_MATRIX()
    if not pdfium_c.FPDFPageObj_GetMatrix(form, own):
        return _IDENTITY
    return (own.a, own.b, own.c, own.d, own.e, own.f)


def _times(first: _Matrix, then: _Matrix) -> _Matrix:
    a, b, c, d, e, f = first
    a2, b2, c2, d2, e2, f2 = then
    return (
        a * a2 + b * c2,
        a * b2 + b * d2,
        c * a2 + d * c2,
        c * b2 + d * d2,
        e * a2 + f * c2 + e2,
        e * b2 + f * d2 + f2,
    )


def _box(drawn: Any, matrix: _Matrix) -> Box | None:  # noqa: ANN401 - a C pointer
    left, bottom, right, top = (ctypes.c_float() for _ in range(4))
    if not pdfium_c.FPDFPageObj_GetBounds(drawn, left, bottom, right, top):
        return None
    a, b, c, d, e, f = matrix
    corners = [(x, y) for x in (left.value, right.value) for y in (bottom.value, top.value)]
    xs = [a * x + c * y + e for x, y in corners]
    ys = [b * x + d * y + f for x, y in corners]
    return (min(xs), min(ys), max(xs), max(ys))
