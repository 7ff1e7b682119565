"""Reads PDF: text with boxes by PDFium, scanned pages by OCR, form values by pypdf.

PDFium is not safe in threads: one reader per process, see `connectors.reader_pool`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c

from connectors.document import Content, Media, Segment, Span, Unit
from connectors.errors import DocumentRejected
from connectors.readers import VERSIONS, Password, ReaderOptions
from connectors.readers.media import encode_jpeg, is_blank, write_jpeg
from connectors.readers.ocr import MIN_CONFIDENCE_PAGE, line_segments, ocr_version, read_lines
from connectors.readers.pdf_facts import document_facts
from connectors.readers.pdf_figures import read_figures
from connectors.readers.pdf_form import FORM_ERRORS, read_form
from connectors.readers.pdf_grid import TableSegments
from connectors.readers.pdf_layout import Body, PageText, find_body, page_segments
from connectors.readers.pdf_notes import read_notes
from connectors.readers.pdf_page import has_marks, is_garbled, page_text, picture_share, render
from connectors.readers.pdf_tables import RuledTables

VERSION = VERSIONS["pdf"]
"""Raised whenever the same file gives other segments; it enters the chunk keys."""

_MIN_TEXT_CHARS = 20
"""A page with less text than this is looked at as an image."""
_MAX_STAMP_LINES, _MAX_STAMP_CHARS = 2, 120
"""So little text over a picture of the whole page is a stamp on a scan."""
_SCAN_SHARE = 0.7
"""Share of the page under the picture of a scan."""


@dataclass(slots=True)
class _Page:
    """What became of one page. Segments of text are made at the end, when the body font is known."""

    unit: Unit
    text: PageText | None = None
    scan: list[Segment] = field(default_factory=list)
    notes: list[Segment] = field(default_factory=list)
    media: Media | None = None
    figures: list[Media] = field(default_factory=list)
    num_unread: int = 0
    """Figures without a text layer whose text was not read."""
    used_ocr: bool = False

    @property
    def all_media(self) -> list[Media]:
        """The page's own picture and its figures."""
        return [*([self.media] if self.media is not None else []), *self.figures]


def read(path: Path, media_type: str, media_dir: Path, options: ReaderOptions) -> Content:
    """Return the sentences, headings, table rows, scans and form values of a PDF.

    Raises:
        DocumentRejected: The file is encrypted, damaged, or not one page can be read.
    """
    with _opened(path, options.password) as document:
        count = len(document)
        if count == 0:
            raise DocumentRejected("the PDF has no pages", reason="damaged")
        num_pages = min(count, options.max_pages)
        with RuledTables(path, options) as tables:
            pages = _read_pages(document, num_pages, media_dir, options, tables=tables)
        metadata = document_facts(document, num_pages)
        has_form = document.get_formtype() != pdfium_c.FORMTYPE_NONE
    if all(page.unit.status == "failed" for page in pages):
        raise DocumentRejected(
            f"none of the {count} pages can be read: {pages[0].unit.error}", reason="damaged"
        )
    units = [page.unit for page in pages]
    if count > options.max_pages:
        units.append(
            Unit(
                name=f"pages {options.max_pages + 1}-{count}",
                status="failed",
                error=f"left out: reader.max_pages is {options.max_pages}",
            )
        )
    segments = _by_page(pages)
    if has_form:
        metadata |= _add_form(path, options, segments, units)
    return Content(
        media_type=media_type,
        reader=_reader_name(options, used_ocr=any(page.used_ocr for page in pages)),
        units=tuple(units),
        segments=tuple(segment for number in sorted(segments) for segment in segments[number]),
        media=tuple(media for page in pages for media in page.all_media),
        metadata=tuple(sorted(metadata.items())),
    )


def preview(
    path: Path,
    media_type: str,  # noqa: ARG001
    span: Span,
    max_px: int,
    *,
    password: Password | None = None,
) -> bytes | None:
    """Return a JPEG of the span's page, or of the first page.

    Raises:
        DocumentRejected: The file or the page cannot be opened.
    """
    with _opened(path, password) as document:
        number = span.page or 1
        if document.get_formtype() != pdfium_c.FORMTYPE_NONE:
            # Without it the form's boxes are drawn empty.
            document.init_forms()
        try:
            page = document[number - 1]
            return encode_jpeg(render(page, max_px))
        except (pdfium.PdfiumError, IndexError) as exc:
            raise DocumentRejected(
                f"page {number} cannot be drawn: {exc}", reason="damaged"
            ) from exc


@contextmanager
def _opened(path: Path, password: Password | None) -> Iterator[pdfium.PdfDocument]:
    try:
        document = _open(path, password)
    except pdfium.PdfiumError as exc:
        if _asks_for_password(exc):
            raise DocumentRejected(_locked(password), reason="encrypted") from exc
        raise DocumentRejected(f"PDFium cannot open the file: {exc}", reason="damaged") from exc
    try:
        yield document
    finally:
        document.close()


def _open(path: Path, password: Password | None) -> pdfium.PdfDocument:
    # PDFium keeps the error of an earlier file where it states none for this one; an attempt to
    # open nothing leaves `FPDF_ERR_FORMAT` behind.
    pdfium_c.FPDF_LoadMemDocument(b"", 0, None)
    try:
        # A wrong password would keep out of a file that opens without one.
        return pdfium.PdfDocument(path)
    except pdfium.PdfiumError as exc:
        if password is None or not _asks_for_password(exc):
            raise
    return pdfium.PdfDocument(path, password=password.value)


def _asks_for_password(exc: pdfium.PdfiumError) -> bool:
    code = getattr(exc, "err_code", None)
    return code in {pdfium_c.FPDF_ERR_PASSWORD, pdfium_c.FPDF_ERR_SECURITY}


def _locked(password: Password | None) -> str:
    if password is None:
        return (
            "the PDF is encrypted and asks for a password: name it in reader.passwords, or store the"
            " file without one"
        )
    return f"the PDF is encrypted, and its password is not that of {password.key}; correct it there"


def _read_pages(
    document: pdfium.PdfDocument,
    count: int,
    media_dir: Path,
    options: ReaderOptions,
    *,
    tables: RuledTables,
) -> list[_Page]:
    pages: list[_Page] = []
    num_ocr = num_figures = 0
    for number in range(1, count + 1):
        left = replace(options, max_figures=options.max_figures - num_figures)
        if num_ocr >= options.max_ocr_pages:
            left = replace(left, ocr="off")
        try:
            page = document[number - 1]
        except pdfium.PdfiumError as exc:
            pages.append(_Page(Unit(name=f"page {number}", status="failed", error=str(exc))))
            continue
        try:
            done = _read_page(page, number, media_dir, left, tables=tables)
        except pdfium.PdfiumError as exc:
            done = _Page(Unit(name=f"page {number}", status="failed", error=str(exc)))
        finally:
            page.close()
        num_ocr += done.used_ocr
        num_figures += len(done.figures)
        if left.ocr != options.ocr:
            _name_unread(done, options.max_ocr_pages)
        pages.append(done)
    return pages


def _name_unread(page: _Page, max_ocr_pages: int) -> None:
    """Say what OCR would have read of the page."""
    limit = f"was not read: reader.max_ocr_pages is {max_ocr_pages}"
    if page.media is not None:
        page.unit = Unit(name=page.unit.name, status="failed", error=f"its text {limit}")
    elif page.num_unread:
        errors = [page.unit.error, f"text on {page.num_unread} figures {limit}"]
        page.unit = replace(page.unit, error="; ".join(filter(None, errors)))


def _read_page(
    page: pdfium.PdfPage,
    number: int,
    media_dir: Path,
    options: ReaderOptions,
    *,
    tables: RuledTables,
) -> _Page:
    text = page_text(page, number, tables)
    done = _read_marks(page, text, media_dir, options)
    done.notes.extend(read_notes(page, text))
    if done.notes and done.unit.status == "empty":
        done.unit = replace(done.unit, status="read")
    return done


def _read_marks(
    page: pdfium.PdfPage, text: PageText, media_dir: Path, options: ReaderOptions
) -> _Page:
    """Return the page without its annotations: from its text layer, or from its picture."""
    number, name = text.page, f"page {text.page}"
    num_chars = sum(map(len, text.texts))
    garbled = is_garbled(text)
    if num_chars >= _MIN_TEXT_CHARS and not garbled and not _is_stamped_scan(page, text):
        return _read_figures(page, text, media_dir, options)
    layer = None if garbled or num_chars == 0 else text
    if not has_marks(page, beside_text=layer is not None):
        return _Page(Unit(name=name, status="read" if layer else "empty"), text=layer)
    pixels = render(page, options.raster_long_side_px)
    if is_blank(pixels):
        return _Page(Unit(name=name, status="read" if layer else "empty"), text=layer)
    media = write_jpeg(pixels, media_dir, f"p{number:04d}.jpg")
    lines = read_lines(pixels, options.ocr, MIN_CONFIDENCE_PAGE)
    if sum(len(line.text) for line in lines) >= num_chars:
        # What little text the page has is on its picture too.
        layer = None
    span = Span(page=number)
    image = Segment(kind="image", text="", span=span, tier="none", media=media.name)
    return _Page(
        Unit(name=name, status="read"),
        text=layer,
        scan=[image, *line_segments(lines, span, media.name)],
        media=media,
        used_ocr=options.ocr != "off",
    )


def _read_figures(
    page: pdfium.PdfPage, text: PageText, media_dir: Path, options: ReaderOptions
) -> _Page:
    """Return a page of text with its figures, where they are asked for."""
    errors = [text.error] if text.error else []
    done = _Page(Unit(name=f"page {text.page}", status="read"), text=text)
    if options.pdf_figures:
        found = read_figures(page, text, media_dir, options)
        done.text = replace(text, figures=tuple(found.placed))
        done.figures, done.num_unread = found.media, found.num_unread
        done.used_ocr = found.used_ocr
        if found.num_left_out:
            errors.append(f"{found.num_left_out} figures are left out: see reader.max_figures")
    done.unit = replace(done.unit, error="; ".join(errors) or None)
    return done


def _is_stamped_scan(page: pdfium.PdfPage, text: PageText) -> bool:
    if text.grids or len(text.lines) > _MAX_STAMP_LINES:
        return False
    num_chars = sum(len(line.text) for line in text.lines)
    return num_chars <= _MAX_STAMP_CHARS and picture_share(page) >= _SCAN_SHARE


def _by_page(pages: list[_Page]) -> dict[int, list[Segment]]:
    body: Body = find_body(page.text for page in pages if page.text is not None)
    tables = TableSegments()
    segments: dict[int, list[Segment]] = {}
    for number, page in enumerate(pages, start=1):
        layer = page_segments(page.text, body, tables) if page.text is not None else ()
        segments[number] = [*layer, *page.scan, *page.notes]
    return segments


def _add_form(
    path: Path, options: ReaderOptions, segments: dict[int, list[Segment]], units: list[Unit]
) -> dict[str, str]:
    """Add the form's values behind the text of their pages; return them by name."""
    metadata: dict[str, str] = {}
    try:
        for name, value, page, bbox in read_form(path, options):
            if metadata.get(f"field:{name}") == value:
                continue
            metadata[f"field:{name}"] = value
            span = Span(page=page, bbox=bbox)
            text = f"{name}: {value}"
            segments.setdefault(page, []).append(Segment(kind="paragraph", text=text, span=span))
    except FORM_ERRORS as exc:
        error = f"its values cannot be read: {type(exc).__name__}: {exc}"
        units.append(Unit(name="form", status="failed", error=error))
    return metadata


def _reader_name(options: ReaderOptions, *, used_ocr: bool) -> str:
    minor = ".".join(importlib.metadata.version("pypdfium2").split(".")[:2])
    name = f"pdf/{VERSION}+pdfium-{minor}{options.changes('max_pages')}"
    if options.pdf_tables != "off":
        tool = ".".join(importlib.metadata.version("pdfplumber").split(".")[:2])
        name += f"+pdfplumber-{tool}{options.changes('pdf_tables', 'max_table_pages')}"
    if options.pdf_figures:
        name += options.changes("pdf_figures", "max_figures", "raster_long_side_px")
    if used_ocr:
        name += f"+{ocr_version(options.ocr)}"
        names = (
            ("max_ocr_pages",) if options.pdf_figures else ("raster_long_side_px", "max_ocr_pages")
        )
        name += options.changes(*names)
    return name
