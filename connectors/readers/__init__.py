"""Readers turn one file into its content. Each format has a module, imported when it is needed.

A reader module has two functions, see `Reader`. Readers run in the child processes of
`connectors.reader_pool`: the libraries under them may crash, hang and eat memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol, cast

from connectors.document import Content, Span
from connectors.readers.detect import detect_media_type

__all__ = [
    "READERS",
    "VERSIONS",
    "Password",
    "Reader",
    "ReaderOptions",
    "detect_media_type",
    "load_reader",
    "no_picture",
]

OcrName = Literal["rapidocr", "tesseract", "off"]
PdfTables = Literal["off", "auto"]
SpeechName = Literal["off", "whisper"]

_SHEETS = "connectors.readers.spreadsheet"
_DELIMITED = "connectors.readers.delimited"
_PARQUET = "connectors.readers.parquet"
_VIDEO = "connectors.readers.video"
_IMAGE = "connectors.readers.image"
_TEXT = "connectors.readers.text"
_HYPERTEXT = "connectors.readers.hypertext"

READERS: Mapping[str, str] = MappingProxyType({
    "application/pdf": "connectors.readers.pdf",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": _SHEETS,
    "application/vnd.ms-excel.sheet.macroEnabled.12": _SHEETS,
    "application/vnd.ms-excel.sheet.binary.macroEnabled.12": _SHEETS,
    "application/vnd.ms-excel": _SHEETS,
    "application/vnd.oasis.opendocument.spreadsheet": _SHEETS,
    "text/csv": _DELIMITED,
    "text/tab-separated-values": _DELIMITED,
    "application/vnd.apache.parquet": _PARQUET,
    "video/mp4": _VIDEO,
    "video/quicktime": _VIDEO,
    "video/x-matroska": _VIDEO,
    "video/webm": _VIDEO,
    "video/x-msvideo": _VIDEO,
    "video/mpeg": _VIDEO,
    "image/jpeg": _IMAGE,
    "image/png": _IMAGE,
    "image/webp": _IMAGE,
    "image/tiff": _IMAGE,
    "text/plain": _TEXT,
    "text/markdown": _TEXT,
    "text/html": _HYPERTEXT,
})
"""The module that reads each media type."""

VERSIONS: Mapping[str, int] = MappingProxyType({
    "delimited": 2,
    "hypertext": 1,
    "image": 2,
    "parquet": 1,
    "pdf": 3,
    "spreadsheet": 3,
    "text": 2,
    "video": 3,
})
"""Of each reader module; raised whenever the same file gives other content. With a new one, all
documents are read again, and asked about again where they give other chunks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Password:
    """What opens an encrypted document. The value appears in no message, and not in `repr`."""

    value: str = field(repr=False)
    key: str
    """Where the operator has set it, for an error to name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderOptions:
    """How documents are read. Changing a default changes what readers give out: raise VERSION."""

    ocr: OcrName = "rapidocr"
    """Where text on scans and frames comes from; `off` leaves them to a model that sees images."""
    frame_interval_s: float = 2.0
    """Seconds between sampled video frames; hard cuts are sampled besides."""
    frames_per_minute: int = 30
    """Most frames of one minute of video, cuts first."""
    max_frames: int = 32
    """Most frames of one video, shared out over its length."""
    speech: SpeechName = "off"
    """Whether what is said in a film becomes text."""
    max_speech_s: float = 600.0
    """Most seconds of a film's sound that are heard; what is behind them is named as failed."""
    raster_long_side_px: int = 1568
    """Long side of page rasters and frames: above it a vision model scales down anyway."""
    max_pages: int = 2000
    """Most pages of one PDF; the pages behind them are named as failed."""
    max_ocr_pages: int = 16
    """Most pages of one PDF that OCR reads: a dense page takes 5 to 10 s of one core."""
    pdf_tables: PdfTables = "off"
    """`auto` gives ruled tables of PDFs cell by cell: pages with ruling lines take a tenth of a second."""
    max_table_pages: int = 100
    """Most pages of one PDF that are asked for their tables; the others give lines of text."""
    pdf_figures: bool = False
    """Give pictures and drawings beside the text of a PDF as images with their box."""
    max_figures: int = 64
    """Most figures of one PDF: each is a JPEG that a model which sees images pays for."""
    max_rows: int = 100_000
    """Most rows of one workbook, CSV or Parquet file; the rows behind them are named as failed."""
    tables: bool = True
    """Write the tables of sheets as Parquet files too; of no chunk key, since it changes no text."""
    formulas: bool = False
    """Give formulas of xlsx and xlsm files beside their values."""
    password: Password | None = None
    """Of the document that is being read; of no chunk key, since it changes no content."""

    def changes(self, *names: str) -> str:
        """Return `+name=value` for each of the named options that differs from its default.

        Readers put it into `Content.reader`, since chunk keys must tell such contents apart.
        """
        defaults = {option.name: option.default for option in fields(self)}
        changed = [name for name in names if getattr(self, name) != defaults[name]]
        return "".join(f"+{name}={getattr(self, name)}" for name in changed)


class Reader(Protocol):
    """What a reader module offers."""

    def read(self, path: Path, media_type: str, media_dir: Path, options: ReaderOptions) -> Content:
        """Return what is in the file; page rasters and frames are written into `media_dir`.

        Raises:
            DocumentRejected: Nothing in the file can be read.
        """

    def preview(
        self,
        path: Path,
        media_type: str,
        span: Span,
        max_px: int,
        *,
        password: Password | None = None,
    ) -> bytes | None:
        """Return a JPEG of the page or frame at `span`; None where there is nothing to see.

        Raises:
            DocumentRejected: The file cannot be opened.
        """


def no_picture(
    path: Path,  # noqa: ARG001
    media_type: str,  # noqa: ARG001
    span: Span,  # noqa: ARG001
    max_px: int,  # noqa: ARG001
    *,
    password: Password | None = None,  # noqa: ARG001
) -> bytes | None:
    """Return None: the `preview` of readers whose formats have no picture."""
    return None


def load_reader(media_type: str) -> Reader:
    """Return the reader of a media type of `READERS`."""
    return cast("Reader", importlib.import_module(READERS[media_type]))
