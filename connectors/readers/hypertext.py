"""Reads HTML: headings, sentences, list items and table rows, with their offsets in the source.

Navigation, scripts, forms and what a page hides are left out. The standard library's parser takes
pages as they are, and gives the place of each tag, from which every sentence's own place follows.
"""

from __future__ import annotations

import bisect
import codecs
import html
import re
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

from connectors.document import Content, Segment, SegmentKind, Span, Unit
from connectors.errors import DocumentRejected
from connectors.readers import VERSIONS, ReaderOptions, no_picture
from connectors.readers.decoding import find_encoding
from connectors.readers.sentences import one_line, split_sentences

VERSION = VERSIONS["hypertext"]
"""Raised whenever the same file gives other segments; it enters the chunk keys."""

_MAX_BYTES = 32 << 20
_HEAD_BYTES = 4096
_DECLARED = re.compile(rb"charset\s*=\s*[\"']?\s*([\w-]+)", re.IGNORECASE)
_CHARSET = re.compile(
    r"(?:windows-|cp|iso-8859-|koi8-|shift_jis|euc-|gb|big5|utf-8)", re.IGNORECASE
)
_SUPERSETS = {
    "iso-8859-1": "cp1252",
    "iso-8859-9": "cp1254",
    "shift_jis": "cp932",
    "euc-kr": "cp949",
    "gb2312": "gb18030",
    "gbk": "gb18030",
}
"""What browsers take for the names on the left, and what pages that declare them are written in."""
_REFERENCE = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]*);?")
_UNSEEN_STYLE = re.compile(r"display\s*:\s*none", re.IGNORECASE)

_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_ASIDE = frozenset({"script", "style", "template"})
"""Left out without breaking the sentence around it."""
_NOISE = _ASIDE | frozenset({
    "nav", "noscript", "svg", "math", "iframe", "object", "canvas", "audio", "video", "select",
    "textarea", "button", "dialog", "menu",
})  # fmt: skip
_BLOCKS = frozenset({
    "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "div",
    "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "head", "header", "hr", "html",
    "legend", "li", "main", "ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead",
    "ul",
})  # fmt: skip
_LAYOUT = _HEADINGS | {"li", "table"}
"""In a cell, one of these shows that the table only arranges the page."""
_UNPAIRED = frozenset({
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track",
    "wbr", "p", "li", "dd", "dt", "td", "th", "tr",
})  # fmt: skip
"""May stand without an end tag, so that nobody can tell where one that is hidden ends."""


class _Piece(NamedTuple):
    """Text as read, and where it stands in the source; longer there if it is a reference."""

    text: str
    start: int
    end: int


def read(path: Path, media_type: str, media_dir: Path, options: ReaderOptions) -> Content:  # noqa: ARG001
    """Return the headings, sentences, list items and table rows of the page.

    A span covers the source from the first to the last character of the text, tags in between
    included.

    Raises:
        DocumentRejected: The file is too large, or the page shows no text.
    """
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise DocumentRejected(
            f"the page has {size:,} bytes; the limit is {_MAX_BYTES:,}: split it",
            reason="too_large",
        )
    encoding = _encoding(path)
    source = path.read_bytes().decode(encoding, errors="replace")
    page = _Page(source)
    units = [Unit(name="text", status="read")]
    error = page.read()
    if error is not None:
        name = f"characters from {page.here():,}"
        units.append(Unit(name=name, status="failed", error=error))
    if not page.segments:
        raise DocumentRejected("the page shows no text", reason="empty")
    stated = {"encoding": encoding, **({"title": page.title} if page.title else {})}
    return Content(
        media_type=media_type,
        reader=f"hypertext/{VERSION}",
        units=tuple(units),
        segments=tuple(page.segments),
        metadata=tuple(sorted(stated.items())),
    )


preview = no_picture


def _encoding(path: Path) -> str:
    """Return what the bytes are; what the page declares counts where they are not UTF."""
    found = find_encoding(path)
    if found != "cp1252":
        return found
    with path.open("rb") as file:
        declared = _DECLARED.search(file.read(_HEAD_BYTES))
    name = declared[1].decode().lower() if declared else ""
    name = _SUPERSETS.get(name, name)
    if not _CHARSET.match(name):
        return found
    try:
        codecs.lookup(name)
    except LookupError:
        return found
    return name


class _Page(HTMLParser):  # noqa: PLR0904 - the events of its parser
    """Makes segments of a page while it is parsed."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.segments: list[Segment] = []
        self.title = ""
        self._source = source
        self._lines = [0, *(match.end() for match in re.finditer("\n", source))]
        self._kind: SegmentKind = "paragraph"
        self._in_title = False
        self._skipped = ""
        """The element that is left out, while inside it."""
        self._depth = 0
        self._begun: int | None = None
        """Where text began that goes on to the next tag."""
        self._pieces: list[_Piece] = []
        self._row: list[list[_Piece]] | None = None
        """The cells of the table row, while inside one."""

    def read(self) -> str | None:
        """Parse the page; return why the rest of it cannot be read, if so."""
        error = None
        try:
            self.feed(self._source)
            self.close()
            self._settle(len(self._source))
        except AssertionError as exc:
            # The parser ends so at a declaration that it does not know.
            error = f"not HTML: {exc}"
            self._settle(self.here())
        self._end_row()
        self._break()
        return error

    def here(self) -> int:
        """Return the offset of what is parsed now."""
        line, column = self.getpos()
        return self._lines[line - 1] + column

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin what the tag begins."""
        self._settle(self.here())
        if self._skipped:
            self._depth += tag == self._skipped
        elif tag in _NOISE or (tag not in _UNPAIRED and _is_unseen(dict(attrs))):
            self._skipped, self._depth = tag, 1
            if tag not in _ASIDE:
                self._break()
        elif tag == "tr":
            self._end_row()
            self._break()
            self._row = []
        elif tag in {"td", "th"} and self._row is not None:
            self._row.append([])
        else:
            self._begin(tag)

    def handle_endtag(self, tag: str) -> None:
        """End what the tag ends."""
        self._settle(self.here())
        if self._skipped:
            self._depth -= tag == self._skipped
            if self._depth == 0:
                self._skipped = ""
        elif tag in {"tr", "table"}:
            self._end_row()
            self._break()
        elif tag in _HEADINGS:
            self._break()
            self._kind = "paragraph"
        elif tag == "title":
            self._in_title = False
        elif tag in _BLOCKS:
            self._break()

    def handle_data(self, data: str) -> None:
        """Note where the text begins; it goes on until the next event."""
        self._settle(self.here())
        if data and not self._skipped:
            self._begun = self.here()

    def handle_comment(self, data: str) -> None:  # noqa: ARG002
        """End the text in front."""
        self._settle(self.here())

    def handle_decl(self, decl: str) -> None:
        """End the text in front."""
        self.handle_comment(decl)

    def handle_pi(self, data: str) -> None:
        """End the text in front."""
        self.handle_comment(data)

    def unknown_decl(self, data: str) -> None:
        """End the text in front."""
        self.handle_comment(data)

    def _begin(self, tag: str) -> None:
        if tag in _LAYOUT:
            self._spill_row()
        if tag == "title" and not self.title:
            self._in_title = True
        elif tag == "br":
            self._add(_Piece(" ", self.here(), self.here()))
        elif tag in _HEADINGS:
            self._break()
            self._kind = "heading"
        elif tag in _BLOCKS or tag in {"td", "th"}:
            self._break()

    def _settle(self, end: int) -> None:
        """Take the text that ends here."""
        if self._begun is None:
            return
        start, self._begun = self._begun, None
        pieces = list(_pieces(self._source, start, end))
        if self._in_title:
            self.title = one_line(self.title + "".join(piece.text for piece in pieces))
            return
        for piece in pieces:
            self._add(piece)

    def _add(self, piece: _Piece) -> None:
        (self._row[-1] if self._row else self._pieces).append(piece)

    def _break(self) -> None:
        """End a sentence; inside a cell only a word."""
        if self._row:
            self._add(_Piece(" ", self.here(), self.here()))
            return
        pieces, self._pieces = self._pieces, []
        self.segments += _segments(self._kind, pieces)

    def _end_row(self) -> None:
        """Make a segment of the row that ends, if it has at least two cells with text."""
        row = self._row or []
        texts = [one_line("".join(piece.text for piece in cell)) for cell in row]
        if sum(map(bool, texts)) < 2:
            self._spill_row()
            return
        self._row = None
        pieces = [piece for cell in row for piece in cell if piece.text.strip()]
        span = _Passage(pieces).span(0, sum(len(piece.text) for piece in pieces))
        text = one_line(f"| {' | '.join(texts)} |")
        self.segments.append(Segment(kind="table", text=text, span=span))

    def _spill_row(self) -> None:
        """Make paragraphs of the cells: the table only arranges them."""
        row, self._row = self._row or [], None
        for cell in row:
            self.segments += _segments("paragraph", cell)


class _Passage:
    """Text put together of pieces, which knows where it stands in the source."""

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self._pieces = pieces
        self._starts = [0]
        for piece in pieces:
            self._starts.append(self._starts[-1] + len(piece.text))
        self.text = "".join(piece.text for piece in pieces)

    def span(self, start: int, end: int) -> Span:
        """Return where the characters from `start` to `end` stand, outer white space left out."""
        part = self.text[start:end]
        start += len(part) - len(part.lstrip())
        end = start + len(part.strip())
        return Span(char_start=self._place(start)[0], char_end=self._place(end - 1)[1])

    def _place(self, at: int) -> tuple[int, int]:
        index = bisect.bisect_right(self._starts, at) - 1
        piece = self._pieces[index]
        if len(piece.text) != piece.end - piece.start:
            return piece.start, piece.end
        place = piece.start + at - self._starts[index]
        return place, place + 1


def _segments(kind: SegmentKind, pieces: Sequence[_Piece]) -> Iterator[Segment]:
    passage = _Passage(pieces)
    whole = [(0, len(passage.text))]
    for start, end in whole if kind == "heading" else split_sentences(passage.text):
        words = one_line(passage.text[start:end])
        if words:
            yield Segment(kind=kind, text=words, span=passage.span(start, end))


def _pieces(source: str, start: int, end: int) -> Iterator[_Piece]:
    """Yield the text between two places, each character reference as a piece of its own."""
    for match in _REFERENCE.finditer(source, start, end):
        if start < match.start():
            yield _Piece(source[start : match.start()], start, match.start())
        yield _Piece(html.unescape(match.group()), match.start(), match.end())
        start = match.end()
    if start < end:
        yield _Piece(source[start:end], start, end)


def _is_unseen(attributes: dict[str, str | None]) -> bool:
    return (
        "hidden" in attributes
        or attributes.get("aria-hidden") == "true"
        or attributes.get("role") == "navigation"
        or _UNSEEN_STYLE.search(attributes.get("style") or "") is not None
    )
