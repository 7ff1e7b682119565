"""Encrypted PDFs: the right password opens them, no message shows one."""

from __future__ import annotations

import pickle

import pypdf
import pytest

from connectors.document import Span
from connectors.errors import DocumentRejected
from connectors.reader_pool import ReaderPool
from connectors.readers import Password, ReaderOptions, pdf
from connectors.readers.child import ReadRequest
from tests.corpora.pages import Page, Text, write_pages

NO_OCR = ReaderOptions(ocr="off")
CANARY = Password(value="canary-2b7c", key="reader.passwords['**/*.pdf'] (variable PDF_PASSWORD)")
WRONG = Password(value="canary-9d1e", key=CANARY.key)
TEXT = "The agreed price is four crates of tea."
CIPHERS = ["RC4-40", "RC4-128", "AES-128", "AES-256"]


def _locked(path, algorithm, user=CANARY.value):
    writer = pypdf.PdfWriter(
        clone_from=write_pages(path / "p.pdf", [Page(texts=[Text(x=80, y=600, text=TEXT)])])
    )
    writer.encrypt(user, "the owner's", algorithm=algorithm)
    writer.write(path / "a.pdf")
    return path / "a.pdf"


@pytest.mark.parametrize("algorithm", CIPHERS)
def test_text_and_picture_are_read_when_the_password_is_right(tmp_path, algorithm):
    path = _locked(tmp_path, algorithm)
    with ReaderPool(1, NO_OCR) as pool:
        content = pool.read(path, "a.pdf", tmp_path, password=CANARY)
        assert pool.preview(path, "a.pdf", Span(page=1), password=CANARY)
    assert [s.text for s in content.segments] == [TEXT]


@pytest.mark.parametrize("algorithm", CIPHERS)
def test_rejection_names_the_key_and_no_password_when_it_is_wrong(tmp_path, algorithm):
    path = _locked(tmp_path, algorithm)
    with ReaderPool(1, NO_OCR) as pool, pytest.raises(DocumentRejected) as caught:
        pool.read(path, "a.pdf", tmp_path, password=WRONG)
    assert caught.value.reason == "encrypted"
    assert "reader.passwords['**/*.pdf']" in str(caught.value)
    assert "PDF_PASSWORD" in str(caught.value)
    assert "canary" not in str(caught.value)
    with pytest.raises(DocumentRejected, match="reader.passwords"):
        pdf.read(path, "application/pdf", tmp_path, NO_OCR)


def test_password_is_not_needed_when_only_the_owner_has_one(tmp_path):
    path = _locked(tmp_path, "AES-256", user="")
    for password in (None, WRONG):
        with ReaderPool(1, NO_OCR) as pool:
            content = pool.read(path, "a.pdf", tmp_path, password=password)
        assert [s.text for s in content.segments] == [TEXT]


def test_content_is_the_same_when_a_password_opened_it(tmp_path):
    path = _locked(tmp_path, "AES-256")
    with ReaderPool(1, NO_OCR) as pool:
        locked = pool.read(path, "a.pdf", tmp_path, password=CANARY)
        plain = pool.read(tmp_path / "p.pdf", "p.pdf", tmp_path, password=CANARY)
    assert (locked.reader, locked.segments) == (plain.reader, plain.segments)


def test_form_values_are_read_when_the_form_is_encrypted(tmp_path, demo_corpus):
    writer = pypdf.PdfWriter(clone_from=demo_corpus / "reports" / "example-form.pdf")
    writer.encrypt(CANARY.value, "the owner's", algorithm="AES-256")
    writer.write(tmp_path / "form.pdf")
    with ReaderPool(1, NO_OCR) as pool:
        content = pool.read(tmp_path / "form.pdf", "form.pdf", tmp_path, password=CANARY)
    assert ("field:First Name", "Alice") in content.metadata


def test_password_shows_in_no_repr_and_reaches_the_child(tmp_path):
    request = ReadRequest(path=tmp_path, name="a.pdf", media_dir=tmp_path, password=CANARY)
    assert "canary" not in repr(request)
    assert pickle.loads(pickle.dumps(request)).password.value == CANARY.value
