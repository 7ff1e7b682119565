"""OCR by the system's tesseract, and text checked against poppler. Needs both Debian packages."""

import shutil
import subprocess

import pytest

from connectors.reader_pool import ReaderPool
from connectors.readers import ReaderOptions

pytestmark = pytest.mark.system


def words(text):
    return {word.strip(".,;:()").lower() for word in text.split() if len(word) > 3}


def test_scan_is_read_by_tesseract_when_the_pipeline_says_so(tmp_path, demo_corpus):
    assert shutil.which("tesseract"), "tesseract is not installed; apt-get install tesseract-ocr"
    scan = demo_corpus / "reports" / "sequencer-brochure-scan.pdf"
    with ReaderPool(1, ReaderOptions(ocr="tesseract")) as readers:
        content = readers.read(scan, scan.name, tmp_path)
    assert "+tesseract-" in content.reader
    text = " ".join(segment.text for segment in content.segments if segment.tier == "ocr")
    assert {"midi", "performance", "musician"} <= words(text)
    assert all(s.span.bbox for s in content.segments if s.tier == "ocr")


def test_text_has_the_words_that_poppler_finds_when_a_pdf_is_read(tmp_path, demo_corpus):
    assert shutil.which("pdftotext"), "pdftotext is not installed; apt-get install poppler-utils"
    report = demo_corpus / "reports" / "airworthiness-proposal.pdf"
    with ReaderPool(1, ReaderOptions(ocr="off")) as readers:
        content = readers.read(report, report.name, tmp_path)
    ours = words(" ".join(segment.text for segment in content.segments))
    theirs = words(
        subprocess.run(
            ["pdftotext", report, "-"], capture_output=True, text=True, check=True
        ).stdout
    )
    assert len(ours & theirs) / len(ours | theirs) > 0.9
