"""Annotations of a PDF page: notes, marked text, links. They are in no text layer."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c

from connectors.document import Segment, Span
from connectors.readers.pdf_boxes import Box, within_page
from connectors.readers.pdf_layout import PageText
from connectors.readers.pdf_places import Places
from connectors.readers.sentences import MAX_SENTENCE_CHARS, split_sentences

_MAX_ANNOTATIONS = 1000
"""Most annotations of one page; a page that people work with has a few dozen."""
_MAX_URI_CHARS = 1000
"""A longer one carries data, not an address."""
_MARKS = {
    pdfium_c.FPDF_ANNOT_HIGHLIGHT: "highlight",
    pdfium_c.FPDF_ANNOT_UNDERLINE: "underline",
    pdfium_c.FPDF_ANNOT_SQUIGGLY: "underline",
    pdfium_c.FPDF_ANNOT_STRIKEOUT: "strike-out",
}
_SILENT = {
    # A pop-up repeats the note that it belongs to; form fields are read by `pdf_form`.
    pdfium_c.FPDF_ANNOT_POPUP,
    pdfium_c.FPDF_ANNOT_WIDGET,
}


def read_notes(page: pdfium.PdfPage, text: PageText) -> Iterator[Segment]:
    """Yield what readers have put on a page and where its links lead, in the order of the file.

    A mark without a note of its own gives the text under it. A link whose address the page shows,
    and one that the page has had already, are left out.

    Args:
        page: The page.
        text: Its text layer.
    """
    count = min(pdfium_c.FPDFPage_GetAnnotCount(page), _MAX_ANNOTATIONS)
    if count <= 0:
        return
    places = Places(page)
    shown = "".join(text.texts).replace(" ", "")
    seen: set[str] = set()
    for index in range(count):
        with _annotation(page, index) as annotation:
            if annotation is None:
                continue
            said = _said(page, annotation, shown)
            if not said or (said.startswith("link: ") and said in seen):
                continue
            seen.add(said)
            span = Span(page=text.page, bbox=_place(places, annotation))
        parts = [(0, len(said))] if len(said) <= MAX_SENTENCE_CHARS else split_sentences(said)
        for start, end in parts:
            yield Segment(kind="paragraph", text=said[start:end], span=span)


@contextmanager
def _annotation(page: pdfium.PdfPage, index: int) -> Iterator[Any]:
    """Lend an annotation; None where it is damaged or hidden."""
    annotation = pdfium_c.FPDFPage_GetAnnot(page, index)
    if not annotation:
        yield None
        return
    try:
        hidden = pdfium_c.FPDFAnnot_GetFlags(annotation) & pdfium_c.FPDF_ANNOT_FLAG_HIDDEN
        yield None if hidden else annotation
    finally:
        pdfium_c.FPDFPage_CloseAnnot(annotation)


def _said(page: pdfium.PdfPage, annotation: Any, shown: str) -> str:  # noqa: ANN401 - a C pointer
    kind = pdfium_c.FPDFAnnot_GetSubtype(annotation)
    if kind in _SILENT:
        return ""
    if kind == pdfium_c.FPDF_ANNOT_LINK:
        uri = _uri(page, annotation)
        bare = uri.removeprefix("mailto:").partition("://")[2] or uri.removeprefix("mailto:")
        return "" if not uri or bare.rstrip("/").replace(" ", "") in shown else f"link: {uri}"
    contents = _contents(annotation)
    if contents:
        return f"note: {contents}"
    marked = _marked_text(page, annotation) if kind in _MARKS else ""
    return f"{_MARKS[kind]}: {marked}" if marked else ""


def _contents(annotation: Any) -> str:  # noqa: ANN401 - a C pointer
    size = pdfium_c.FPDFAnnot_GetStringValue(annotation, b"Contents", None, 0)
    if size <= 2:
        return ""
    buffer = (ctypes.c_ushort * (size // 2))()
    pdfium_c.FPDFAnnot_GetStringValue(annotation, b"Contents", buffer, size)
    text = bytes(buffer)[: size - 2].decode("utf-16-le", errors="ignore")
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _uri(page: pdfium.PdfPage, annotation: Any) -> str:  # noqa: ANN401 - a C pointer
    link = pdfium_c.FPDFAnnot_GetLink(annotation)
    action = pdfium_c.FPDFLink_GetAction(link) if link else None
    if not action:
        return ""
    size = pdfium_c.FPDFAction_GetURIPath(page.pdf, action, None, 0)
    if not 1 < size <= _MAX_URI_CHARS:
        return ""
    buffer = ctypes.create_string_buffer(size)
    pdfium_c.FPDFAction_GetURIPath(page.pdf, action, buffer, size)
    return " ".join(buffer.value.decode("utf-8", errors="replace").split())


def _marked_text(page: pdfium.PdfPage, annotation: Any) -> str:  # noqa: ANN401 - a C pointer
    quad = pdfium_c.FS_QUADPOINTSF()
    textpage = page.get_textpage()
    try:
        texts = []
        for index in range(pdfium_c.FPDFAnnot_CountAttachmentPoints(annotation)):
            if not pdfium_c.FPDFAnnot_GetAttachmentPoints(annotation, index, quad):
                continue
            xs, ys = (quad.x1, quad.x2, quad.x3, quad.x4), (quad.y1, quad.y2, quad.y3, quad.y4)
            texts.append(textpage.get_text_bounded(min(xs), min(ys), max(xs), max(ys)))
    finally:
        textpage.close()
    joined = "".join(char if char.isprintable() else " " for char in " ".join(texts))
    return " ".join(joined.split())


def _place(places: Places, annotation: Any) -> Box | None:  # noqa: ANN401 - a C pointer
    rect = pdfium_c.FS_RECTF()
    if not pdfium_c.FPDFAnnot_GetRect(annotation, rect):
        return None
    return within_page(places.fractions((rect.left, rect.top, rect.right, rect.bottom)))
