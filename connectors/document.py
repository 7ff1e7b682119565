"""The values that carry a source object through the house: source -> document -> chunk.

All are frozen and picklable; they hold text and references, never bytes or clients, so that they
can cross a process border. Readers make documents, the chunker makes chunks, the sink writes both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

SegmentKind = Literal["heading", "paragraph", "table", "image"]
TextTier = Literal["native", "ocr", "subtitle", "speech", "none"]
UnitStatus = Literal["read", "empty", "failed"]
DocumentStatus = Literal["read", "partial", "rejected"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Where a segment came from. One family of fields is set: page, sheet, time or characters."""

    page: int | None = None
    """Page number in the PDF, from 1. An image file is page 1."""
    bbox: tuple[float, float, float, float] | None = None
    """x0, y0, x1, y1 as fractions of the upright page, origin at the top left."""
    sheet: str | None = None
    """Name of the worksheet; empty for a CSV file, which has one nameless sheet."""
    cells: str | None = None
    """A1 range in the sheet, such as `A5:F5`."""
    t0: float | None = None
    """Start in seconds of the container's own clock (presentation time stamps)."""
    t1: float | None = None
    """End in seconds; of a frame the time until which the film shows the same, as far as is known."""
    char_start: int | None = None
    """Offset of the first character in the decoded text of the file."""
    char_end: int | None = None
    """Offset behind the last character."""


def clock(seconds: float) -> str:
    """Return a time in a film as `m:ss.s`."""
    tenths = round(abs(seconds) * 10)
    minutes, rest = divmod(tenths, 600)
    sign = "-" if seconds < 0 and tenths else ""
    return f"{sign}{minutes}:{rest / 10:04.1f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """The smallest unit a model can cite: a heading, a sentence, a table row, an image."""

    kind: SegmentKind
    text: str
    """One line of text, without line breaks; empty for an image that has no text tier."""
    span: Span
    tier: TextTier = "native"
    """How the text was won; `none` for an image segment, whose text is in the segments after it."""
    media: str | None = None
    """Name of the JPEG in the document's media folder, for an image or the text read off it."""
    is_rest: bool = False
    """Whether it goes on with a segment that was cut, since it alone exceeded the budget."""
    label: str = ""
    """Name a model can quote, unique in a chunk; given by the chunker."""

    def with_label(self, label: str) -> Segment:
        """Return the segment under its label. Spelled out: `replace` takes three times as long."""
        return Segment(
            kind=self.kind,
            text=self.text,
            span=self.span,
            tier=self.tier,
            media=self.media,
            is_rest=self.is_rest,
            label=label,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One page, sheet or run of frames and what became of it; no unit of a file goes unnamed."""

    name: str
    status: UnitStatus
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """One JPEG made by a reader: a page raster or a video frame."""

    name: str
    width_px: int
    height_px: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFile:
    """One table as a typed Parquet file made by a reader, beside its rows as text."""

    name: str
    """File in the document's media folder."""
    sheet: str
    """Empty for a CSV or Parquet file."""
    cells: str
    """A1 range with the header; empty for a Parquet file."""
    title: str
    """The name its author gave it, or what stands above it."""
    columns: tuple[str, ...]
    """Names in order; the first, `row`, is the row's number on the sheet or in the file."""
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRef:
    """One object in storage, as it was listed."""

    uri: str
    path: str
    """Path relative to the source prefix, with forward slashes."""
    size_bytes: int
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a reader got out of one file."""

    media_type: str
    reader: str
    """Name and version of the reader with what its output depends on, such as `pdf/1+rapidocr`."""
    units: tuple[Unit, ...]
    segments: tuple[Segment, ...]
    media: tuple[Media, ...] = ()
    tables: tuple[TableFile, ...] = ()
    """In the media folder too."""
    metadata: tuple[tuple[str, str], ...] = ()
    """Names and values as the file states them (title, author, form fields), sorted by name."""

    def __reduce__(self) -> tuple[object, ...]:
        # As rows of plain values: by itself each of a hundred thousand segments would cost the
        # process that gets them 15 microseconds more, with the lock that all its threads wait for.
        return (
            _content,
            (
                [
                    (s.kind, s.text, s.tier, s.media, s.is_rest, s.label, _place(s.span))
                    for s in self.segments
                ],
                {
                    "media_type": self.media_type,
                    "reader": self.reader,
                    "units": self.units,
                    "media": self.media,
                    "tables": self.tables,
                    "metadata": self.metadata,
                },
            ),
        )


def _place(span: Span) -> tuple[Any, ...]:
    return (
        span.page,
        span.bbox,
        span.sheet,
        span.cells,
        span.t0,
        span.t1,
        span.char_start,
        span.char_end,
    )


def _span(place: tuple[Any, ...]) -> Span:
    page, bbox, sheet, cells, t0, t1, start, end = place
    return Span(
        page=page, bbox=bbox, sheet=sheet, cells=cells, t0=t0, t1=t1, char_start=start, char_end=end
    )


def _content(segments: list[tuple[Any, ...]], rest: dict[str, Any]) -> Content:
    return Content(
        segments=tuple(
            Segment(
                kind=kind,
                text=text,
                span=_span(place),
                tier=tier,
                media=media,
                is_rest=is_rest,
                label=label,
            )
            for kind, text, tier, media, is_rest, label, place in segments
        ),
        **rest,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One source object after reading: its content, or the reason why there is none."""

    source: SourceRef
    document_key: str
    """SHA-256 of the bytes; of the ETag and size where the object could not be fetched."""
    status: DocumentStatus
    content: Content | None
    error_class: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A run of a document's segments that fits the model's context."""

    chunk_key: str
    document_key: str
    ordinal: int
    """Position in the document, from 0."""
    segments: tuple[Segment, ...]
    num_tokens: int
    """Tokens of the chunk as it is sent, labels included, in the profile's tokenizer."""
