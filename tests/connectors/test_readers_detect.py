"""The type of a file is found by its content."""

from __future__ import annotations

import inspect
import zipfile
from pathlib import Path

import pytest

from connectors.errors import DocumentRejected
from connectors.readers import READERS, Reader, ReaderOptions, detect_media_type, load_reader
from tests.corpora.make import write_pdf, write_xlsx

CORPORA = Path(__file__).parent.parent / "corpora"


def _rejection(path: Path, name: str) -> DocumentRejected:
    with pytest.raises(DocumentRejected) as caught:
        detect_media_type(path, name)
    return caught.value


def test_content_decides_when_the_name_lies(tmp_path):
    pdf = write_pdf(tmp_path / "a", ["BT ET"])
    sheet = write_xlsx(tmp_path / "b", {"S": {"A1": 1}})
    assert detect_media_type(pdf, "photo.jpg") == "application/pdf"
    assert detect_media_type(sheet, "sheet.csv").endswith("spreadsheetml.sheet")
    assert detect_media_type(CORPORA / "video_90.mov", "x") == "video/quicktime"
    assert detect_media_type(CORPORA / "counter.mp4", "x.txt") == "video/mp4"
    assert detect_media_type(CORPORA / "issue_182.xlsb", "x").endswith("binary.macroEnabled.12")
    assert detect_media_type(CORPORA / "merged_cells.ods", "x").endswith("opendocument.spreadsheet")


def test_name_breaks_the_tie_when_the_content_is_text(tmp_path):
    file = tmp_path / "f"
    file.write_text("a,b\n1,2\n")
    assert detect_media_type(file, "x.csv") == "text/csv"
    assert detect_media_type(file, "x.TSV") == "text/tab-separated-values"
    assert detect_media_type(file, "x.md") == "text/markdown"
    assert detect_media_type(file, "README") == "text/plain"


@pytest.mark.parametrize(
    ("data", "name", "reason"),
    [
        (b"", "a.pdf", "empty"),
        (b"\x00\x01\x02\x03", "a.bin", "unknown_type"),
        (b"\x7fELF\x02\x01\x01\x00", "program", "unknown_type"),
        (b"version https://git-lfs.github.com/spec/v1\n", "film.mp4", "damaged"),
        (b"PK\x03\x04torn", "book.xlsx", "damaged"),
        (b"{\\rtf1 hello}", "letter.rtf", "unknown_type"),
    ],
)
def test_file_is_rejected_with_a_reason_when_it_cannot_be_read(tmp_path, data, name, reason):
    file = tmp_path / "f"
    file.write_bytes(data)
    rejection = _rejection(file, name)
    assert rejection.reason == reason
    assert name in str(rejection)


def test_zip_is_rejected_when_it_holds_no_workbook(tmp_path):
    file = tmp_path / "f.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    assert _rejection(file, "f.docx").reason == "unknown_type"


def test_workbook_is_rejected_as_encrypted_when_it_has_a_password():
    assert _rejection(CORPORA / "pass_protected.xlsx", "x.xlsx").reason == "encrypted"


def test_every_media_type_has_a_reader_that_loads():
    for media_type in READERS:
        reader = load_reader(media_type)
        assert callable(reader.read)
        assert callable(reader.preview)


def test_reader_name_tells_options_apart_when_they_differ_from_the_default():
    options = ReaderOptions(max_rows=7)
    assert options.changes("max_rows", "max_pages") == "+max_rows=7"
    assert ReaderOptions().changes("max_rows", "max_pages") == ""


@pytest.mark.parametrize("media_type", READERS)
def test_reader_takes_what_every_reader_takes_when_it_is_called(media_type):
    module = load_reader(media_type)
    for name in ("read", "preview"):
        expected = [*inspect.signature(getattr(Reader, name)).parameters][1:]
        assert [*inspect.signature(getattr(module, name)).parameters] == expected
