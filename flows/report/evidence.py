"""What stands around a cited line, and the picture of its page or frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from connectors.document import Span
from connectors.errors import DocumentRejected, StorageError
from connectors.sinks.parquet import span_from_row
from connectors.storage import fetch
from flows.report.data import Citation, SheetRow
from flows.run.bench import Room

MAX_PREVIEWS = 160
"""Pictures in one report; at about 20 kB each they stay below 4 MB."""

_CONTEXT = 2

Row = Mapping[str, Any]


class Pictures:
    """Previews of cited pages and frames, made on demand from the source, up to a limit."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.jpegs: dict[str, bytes] = {}
        self._file = room.scratch / "preview"
        self._path, self._key = "", ""

    def key(self, document: Row, span: Span) -> str | None:
        """Return the key of the picture of `span`, or None where there is none to be had."""
        if span.page is None and span.t0 is None:
            return None
        place = f"p{span.page}" if span.page is not None else f"t{span.t0:.2f}"
        key = f"{str(document['document_key'])[:16]}-{place}"
        if key in self.jpegs:
            return key
        if len(self.jpegs) >= MAX_PREVIEWS:
            return None
        jpeg = self._render(document, span)
        if jpeg is None:
            return None
        self.jpegs[key] = jpeg
        return key

    def _render(self, document: Row, span: Span) -> bytes | None:
        path = str(document["path"])
        try:
            if self._fetch(path) != document["document_key"]:
                # Changed since it was read: the page may be another one by now.
                return None
            jpeg: bytes | None = self._room.readers.preview(
                self._file,
                Path(path).name,
                span,
                password=self._room.passwords.find(path),
            )
        except (DocumentRejected, StorageError):
            # Gone or locked by now; the quote and its place are still shown.
            return None
        return jpeg

    def _fetch(self, path: str) -> str:
        """Copy the source object unless it lies there, and return its hash.

        Documents come one after the other.
        """
        if path != self._path:
            self._path = ""
            self._key = fetch(self._room.source.stream(path), self._file)
            self._path = path
        return self._key


class Context:
    """The segments of one document around a quoted one."""

    def __init__(self, segments: Sequence[Row]) -> None:
        self._shown = [segment for segment in segments if segment["text"]]
        self._index = {
            (str(segment["text"]), span_from_row(segment["span"])): number
            for number, segment in enumerate(self._shown)
        }

    def cite(self, row: Row, document: Row, pictures: Pictures) -> Citation:
        """Return a citation with what stands around it; `document` has its path and key."""
        span, quote = span_from_row(row["span"]), str(row["quote"])
        number = self._index.get((quote, span))
        before: Sequence[Row] = ()
        after: Sequence[Row] = ()
        if number is not None:
            before = self._shown[max(0, number - _CONTEXT) : number]
            after = self._shown[number + 1 : number + 1 + _CONTEXT]
        return Citation(
            quote=quote,
            span=span,
            tier=str(row["tier"]),
            before=tuple(str(segment["text"]) for segment in before),
            after=tuple(str(segment["text"]) for segment in after),
            preview=pictures.key(document, span),
            path=str(document["path"]),
            rows=_sheet_rows(before, quote, span, after),
        )


def _sheet_rows(
    before: Sequence[Row], quote: str, span: Span, after: Sequence[Row]
) -> tuple[SheetRow, ...]:
    if span.sheet is None:
        return ()
    cited = SheetRow(cells=span.cells or "", text=quote, is_cited=True)
    return (*_neighbours(before, span), cited, *_neighbours(after, span))


def _neighbours(segments: Sequence[Row], span: Span) -> list[SheetRow]:
    return [
        SheetRow(cells=segment["span"]["cells"] or "", text=str(segment["text"]), is_cited=False)
        for segment in segments
        if segment["span"]["sheet"] == span.sheet
    ]
