"""The pool survives what its children do not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from connectors.document import Span
from connectors.errors import ConnectorError, DocumentRejected, StorageError
from connectors.reader_pool import ReaderPool
from connectors.readers import ReaderOptions
from tests.corpora.make import text_operator, write_pdf

CORPORA = Path(__file__).parent.parent / "corpora"
REPOSITORY = Path(__file__).resolve().parent.parent.parent
NO_OCR = ReaderOptions(ocr="off")
LINE = text_operator(60, 700, "A sentence on page one of a small document.")


def _children(pid: int | None = None) -> set[int]:
    """Return the reader processes under a process."""
    # By parent, not by /proc/PID/task/TID/children: a thread may end between listing and reading.
    parent = str(pid or os.getpid())
    found = {int(path.name) for path in Path("/proc").glob("[0-9]*") if _parent(path) == parent}
    return {child for child in found if b"readers.child" in _command(child)}


def _parent(process):
    try:
        status = (process / "status").read_text()
    except OSError:
        return None
    return re.search(r"^PPid:\s+(\d+)$", status, re.MULTILINE).group(1)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _wait_until(condition, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def small(tmp_path):
    return write_pdf(tmp_path / "small.pdf", [LINE])


@pytest.fixture
def scan(demo_corpus):
    """A file that keeps a reader busy for seconds."""
    return demo_corpus / "reports" / "sequencer-brochure-scan.pdf"


def test_many_threads_share_the_children(tmp_path, small):
    notes = tmp_path / "a.md"
    notes.write_text("# Title\n\nA sentence.\n")
    with ReaderPool(2, NO_OCR) as pool, ThreadPoolExecutor(4) as threads:
        files = [small, notes] * 6
        contents = list(threads.map(lambda file: pool.read(file, file.name, tmp_path), files))
        assert len(_children()) <= 2
    assert {c.media_type for c in contents} == {"application/pdf", "text/markdown"}
    assert contents[0].segments == contents[2].segments


def test_child_outlives_the_thread_that_called_first(tmp_path, small):
    with ReaderPool(1, NO_OCR) as pool:
        thread = threading.Thread(target=pool.read, args=(small, "a.pdf", tmp_path))
        thread.start()
        thread.join()
        (before,) = _children()
        time.sleep(0.2)
        pool.read(small, "a.pdf", tmp_path)
        assert _children() == {before}


def test_rejection_of_the_reader_arrives_with_its_reason(tmp_path, demo_corpus):
    with ReaderPool(1, NO_OCR) as pool:
        for name, reason in [("locked.pdf", "encrypted"), ("torn-download.pdf", "damaged")]:
            with pytest.raises(DocumentRejected) as caught:
                pool.read(demo_corpus / "reports" / name, name, tmp_path)
            assert caught.value.reason == reason


def test_reader_is_killed_when_it_takes_too_long(tmp_path, small, scan):
    with ReaderPool(1, ReaderOptions(), timeout_s=0.5) as pool:
        began = time.monotonic()
        with pytest.raises(DocumentRejected) as caught:
            pool.read(scan, "scan.pdf", tmp_path)
        assert time.monotonic() - began < 3
        assert caught.value.reason == "timeout"
        assert not _children()
    with ReaderPool(1, NO_OCR) as pool:
        assert pool.read(small, "a.pdf", tmp_path).segments


def test_reader_is_killed_when_it_takes_too_much_memory(tmp_path, scan, small):
    with ReaderPool(1, ReaderOptions(), memory_bytes=200 << 20) as pool:
        with pytest.raises(DocumentRejected) as caught:
            pool.read(scan, "scan.pdf", tmp_path)
        assert caught.value.reason == "memory"
        assert "200 MiB" in str(caught.value)
        assert pool.read(small, "a.pdf", tmp_path).segments


def test_next_file_gets_a_new_child_when_one_crashes(tmp_path, scan, small):
    with ReaderPool(1, ReaderOptions()) as pool, ThreadPoolExecutor(1) as thread:
        reading = thread.submit(pool.read, scan, "scan.pdf", tmp_path)
        _wait_until(lambda: bool(list(tmp_path.glob("p0001.jpg"))))
        (child,) = _children()
        os.kill(child, signal.SIGSEGV)
        with pytest.raises(DocumentRejected) as caught:
            reading.result()
        assert caught.value.reason == "crashed"
        assert "SIGSEGV" in str(caught.value)
        assert pool.read(small, "a.pdf", tmp_path).segments
        assert _children() != {child}


def test_child_is_replaced_when_it_died_between_two_files(tmp_path, small):
    with ReaderPool(1, NO_OCR) as pool:
        pool.read(small, "a.pdf", tmp_path)
        (child,) = _children()
        os.kill(child, signal.SIGKILL)
        _wait_until(lambda: not _command(child))
        assert pool.read(small, "a.pdf", tmp_path).segments


def test_ctrl_c_is_left_to_the_parent(tmp_path, small):
    with ReaderPool(1, NO_OCR) as pool:
        pool.read(small, "a.pdf", tmp_path)
        (child,) = _children()
        assert os.getpgid(child) != os.getpgid(0)
        os.kill(child, signal.SIGINT)
        time.sleep(0.2)
        pool.read(small, "a.pdf", tmp_path)
        assert _children() == {child}


def test_close_ends_calls_under_way_and_leaves_no_process(tmp_path, scan):
    pool = ReaderPool(1, ReaderOptions())
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(pool.read, scan, "scan.pdf", tmp_path) for _ in range(2)]
        _wait_until(lambda: bool(_children()))
        pool.close()
        for call in calls:
            error = call.exception(timeout=10)
            # A rejection would be written into the lake.
            assert isinstance(error, ConnectorError)
            assert not isinstance(error, DocumentRejected)
    assert not _children()
    with pytest.raises(ConnectorError):
        pool.read(scan, "scan.pdf", tmp_path)


def test_children_die_and_stay_silent_when_the_parent_is_killed(tmp_path, scan):
    script = (
        "import sys; from pathlib import Path; from connectors.readers import ReaderOptions; "
        "from connectors.reader_pool import ReaderPool; "
        "ReaderPool(1, ReaderOptions()).read(Path(sys.argv[1]), 'a.pdf', Path(sys.argv[2]))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(scan), str(tmp_path)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    _wait_until(lambda: bool(list(tmp_path.glob("p0001.jpg"))))
    (child,) = _children(parent.pid)
    # Long enough for the OCR engine to load and to write what it likes.
    time.sleep(1.5)
    parent.kill()
    output, _ = parent.communicate(timeout=10)
    assert output == b""
    _wait_until(lambda: not _command(child))


def test_preview_is_a_jpeg_for_pages_and_none_for_tables(tmp_path, small):
    table = tmp_path / "a.csv"
    table.write_text("a,b\n1,2\n")
    with ReaderPool(1, NO_OCR) as pool:
        jpeg = pool.preview(small, "a.pdf", Span(page=1), max_px=200)
        assert jpeg is not None
        assert jpeg.startswith(b"\xff\xd8")
        assert pool.preview(table, "a.csv", Span(sheet="", cells="A1:B1")) is None


def test_storage_error_arrives_when_pictures_cannot_be_written(scan):
    with ReaderPool(1, NO_OCR) as pool, pytest.raises(StorageError) as caught:
        pool.read(scan, "scan.pdf", Path("/proc/nowhere"))
    assert "p0001.jpg" in str(caught.value)


def test_missing_program_is_named_when_the_pool_is_made(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConnectorError, match="apt install tesseract-ocr"):
        ReaderPool(1, ReaderOptions(ocr="tesseract"))


def test_sample_corpus_is_read_but_for_the_two_files_that_must_be_turned_down(
    tmp_path, demo_corpus
):
    outcomes = {}
    with ReaderPool(2, NO_OCR) as pool:
        for file in sorted(demo_corpus.rglob("*.*")):
            try:
                content = pool.read(file, file.name, tmp_path)
                outcomes[file.name] = {u.status for u in content.units}
            except DocumentRejected as exc:
                outcomes[file.name] = {exc.reason}
    turned_down = {name: what for name, what in outcomes.items() if what != {"read"}}
    assert turned_down == {"locked.pdf": {"encrypted"}, "torn-download.pdf": {"damaged"}}
    assert len(outcomes) >= 14
