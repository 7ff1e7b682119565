"""Tells what a file is from its bytes. The name only breaks ties: CSV is text, a torn zip is a zip."""

from __future__ import annotations

import mmap
import re
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from connectors.errors import DocumentRejected

_HEAD_BYTES = 65_536

XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
XLSM = "application/vnd.ms-excel.sheet.macroEnabled.12"
XLSB = "application/vnd.ms-excel.sheet.binary.macroEnabled.12"
XLS = "application/vnd.ms-excel"
ODS = "application/vnd.oasis.opendocument.spreadsheet"
PARQUET = "application/vnd.apache.parquet"

_TEXT_SUFFIXES = {
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".html": "text/html",
    ".htm": "text/html",
    ".xhtml": "text/html",
}
_BINARY_SUFFIXES = {
    ".pdf": "application/pdf",
    ".xlsx": XLSX,
    ".xlsm": XLSM,
    ".xlsb": XLSB,
    ".xls": XLS,
    ".ods": ODS,
    ".parquet": PARQUET,
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".mkv": "video/x-matroska",
    ".webm": "video/webm",
    ".avi": "video/x-msvideo",
    ".mpg": "video/mpeg",
    ".mpeg": "video/mpeg",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
}
# Formats that are text by their bytes, but whose text is markup for a program, not for a reader.
_PROGRAM_TEXT = (b"{\\rtf", b"%!PS")
# Possessive: comments could be grouped in ever so many ways.
_HTML = re.compile(
    r"(?:\s++|\ufeff|<\?[^>]*+>|(?><!--.*?-->))*+<(?:!doctype\s+html|html|head|body)\b",
    re.IGNORECASE | re.DOTALL,
)
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# Tab, line feed, vertical tab, form feed, carriage return, and the escape of terminal logs.
_TEXT_CONTROLS = frozenset(b"\t\n\x0b\x0c\r\x1b")


def detect_media_type(path: Path, name: str) -> str:
    """Return the media type of a file, one of `connectors.readers.READERS`.

    Args:
        path: The file; its first 64 KiB decide, and the directory of a container.
        name: The name of the object in its corpus.

    Raises:
        DocumentRejected: The file is empty, encrypted, of no type that Headrace reads, or plain
            text under the name of a binary format.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise DocumentRejected(f"{name!r} has 0 bytes", reason="empty")
    for probe in (_magic, _iso_media, _riff):
        media_type = probe(head)
        if media_type is not None:
            return media_type
    suffix = PurePosixPath(name.lower()).suffix
    return _container(path, head, name) or _by_name(head, name, suffix)


def _magic(head: bytes) -> str | None:
    # A PDF may start with up to 1,024 bytes of something else.
    if b"%PDF-" in head[:1024]:
        return "application/pdf"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "video/webm" if b"webm" in head[:4096] else "video/x-matroska"
    starts = {
        b"\xff\xd8\xff": "image/jpeg",
        b"\x89PNG\r\n\x1a\n": "image/png",
        b"II*\x00": "image/tiff",
        b"MM\x00*": "image/tiff",
        b"PAR1": PARQUET,
        # With an encrypted footer.
        b"PARE": PARQUET,
        b"\x00\x00\x01\xba": "video/mpeg",
        b"\x00\x00\x01\xb3": "video/mpeg",
    }
    return next((kind for start, kind in starts.items() if head.startswith(start)), None)


def _iso_media(head: bytes) -> str | None:
    """Tell an MP4 from a QuickTime file; still images in the same container are neither."""
    box, brand = head[4:8], head[8:12]
    if box == b"ftyp":
        if brand in {b"heic", b"heix", b"mif1", b"msf1", b"avif", b"avis"}:
            return None
        return "video/quicktime" if brand == b"qt  " else "video/mp4"
    return "video/quicktime" if box in {b"moov", b"mdat", b"wide"} else None


def _riff(head: bytes) -> str | None:
    if head[:4] != b"RIFF":
        return None
    return {b"AVI ": "video/x-msvideo", b"WEBP": "image/webp"}.get(head[8:12])


def _container(path: Path, head: bytes, name: str) -> str | None:
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_type(path, name)
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return _ole_type(path, name)
    return None


def _zip_type(path: Path, name: str) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
            types = _member(archive, members, "[Content_Types].xml")
            mimetype = _member(archive, members, "mimetype")
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError) as exc:
        raise DocumentRejected(
            f"{name!r} is a zip container that cannot be opened: {exc}", reason="damaged"
        ) from exc
    kinds: tuple[tuple[str, Callable[[], bool]], ...] = (
        (XLSB, lambda: "xl/workbook.bin" in members),
        (XLSM, lambda: "xl/workbook.xml" in members and b"macroEnabled" in types),
        (XLSX, lambda: "xl/workbook.xml" in members),
        (ODS, lambda: mimetype.startswith(ODS.encode())),
        # Some writers store the workbook under another name; the content types still say so.
        (XLSX, lambda: b"spreadsheetml.sheet.main+xml" in types),
    )
    for media_type, fits in kinds:
        if fits():
            return media_type
    raise _unknown(name, "a zip container that holds no workbook")


def _member(archive: zipfile.ZipFile, members: set[str], name: str) -> bytes:
    if name not in members:
        return b""
    with archive.open(name) as member:
        return member.read(_HEAD_BYTES)


def _ole_type(path: Path, name: str) -> str:
    # Stream names of the compound file's directory, which may lie anywhere in the file.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find("EncryptedPackage".encode("utf-16-le")) >= 0:
            raise DocumentRejected(
                f"{name!r} is an encrypted Office file: save it without its password",
                reason="encrypted",
            )
        if any(data.find(stream.encode("utf-16-le")) >= 0 for stream in ("Workbook", "Book\0")):
            return XLS
    raise _unknown(name, "an Office file that holds no workbook")


def _by_name(head: bytes, name: str, suffix: str) -> str:
    if _is_text(head) and not head.startswith(_PROGRAM_TEXT):
        if suffix in _BINARY_SUFFIXES:
            raise DocumentRejected(
                f"{name!r} holds plain text, not {_BINARY_SUFFIXES[suffix]}: "
                "perhaps a pointer or an error page was stored in its place",
                reason="damaged",
            )
        return "text/html" if _is_html(head) else _TEXT_SUFFIXES.get(suffix, "text/plain")
    # The start of the file is not what its name says: its reader finds out what is left of it.
    if suffix in _BINARY_SUFFIXES:
        return _BINARY_SUFFIXES[suffix]
    raise _unknown(name, f"bytes that start with {head[:8].hex(' ')}")


def _is_text(head: bytes) -> bool:
    if head.startswith(_UTF16_MARKS):
        return True
    return not any(byte < 32 and byte not in _TEXT_CONTROLS for byte in head)


def _is_html(head: bytes) -> bool:
    encoding = "utf-16" if head.startswith(_UTF16_MARKS) else "utf-8"
    return _HTML.match(head.decode(encoding, errors="replace")) is not None


def _unknown(name: str, found: str) -> DocumentRejected:
    return DocumentRejected(
        f"{name!r} is {found}; Headrace reads PDF, workbooks, CSV, Parquet, video, images, text, "
        "Markdown, HTML",
        reason="unknown_type",
    )
