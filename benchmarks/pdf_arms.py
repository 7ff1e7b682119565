"""The arms of `benchmarks.pdf_reading`: each reads a list of PDFs in a process of its own.

Run as a file, by the Python that has the arm's library: `python pdf_arms.py ARM < list.json`. One JSON
object comes back: the files that were read, seconds, CPU seconds with children, and the largest resident
size of a process that read. Imports and the start of processes are not in the seconds by the clock.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_TIMEOUT_S = 20.0
Read = Callable[[str], bool]
"""Reads one file; false where it cannot be opened."""
ReadAll = Callable[[Sequence[str]], list[bool]]


def main() -> None:
    """Read the files named on standard input and print what it took."""
    arm, files = sys.argv[1], json.loads(sys.stdin.read())
    # Libraries print as they like.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    with ARMS[arm]() as read_all:
        # Processes start and libraries load at the first files.
        read_all(files[:1] * 2)
        before = sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, who))
        begun = time.perf_counter()
        were_read = read_all(files)
        wall = time.perf_counter() - begun
    usages = [resource.getrusage(each) for each in who]
    json.dump(
        {
            "read": [file for file, was_read in zip(files, were_read, strict=True) if was_read],
            "wall_s": wall,
            "cpu_s": sum(usage.ru_utime + usage.ru_stime for usage in usages) - before,
            "rss_mb": max(usage.ru_maxrss for usage in usages) / 1024,
        },
        out,
    )
    out.close()


@contextlib.contextmanager
def _one_by_one(make: Callable[[], Read]) -> Iterator[ReadAll]:
    read = make()
    yield lambda files: [read(file) for file in files]


@contextlib.contextmanager
def _pool(num_processes: int) -> Iterator[ReadAll]:
    from connectors.errors import DocumentRejected
    from connectors.reader_pool import ReaderPool
    from connectors.readers import ReaderOptions

    with (
        tempfile.TemporaryDirectory() as scratch,
        ReaderPool(num_processes, ReaderOptions(ocr="off")) as pool,
        ThreadPoolExecutor(num_processes) as threads,
    ):

        def read(file: str) -> bool:
            try:
                pool.read(Path(file), file, Path(scratch))
            except DocumentRejected:
                return False
            return True

        yield lambda files: list(threads.map(read, files))


@contextlib.contextmanager
def _bare_pool(num_processes: int) -> Iterator[ReadAll]:
    with multiprocessing.get_context("spawn").Pool(num_processes) as pool:
        pool.map(_nothing, range(num_processes))
        yield lambda files: pool.map(_bare_pypdfium2, files, chunksize=1)
        pool.close()
        pool.join()


def _nothing(number: int) -> None:
    """Let a process start before the clock does."""
    importlib.import_module("pypdfium2")
    time.sleep(0.05 * number)


def _headrace() -> Read:
    from connectors.errors import DocumentRejected
    from connectors.readers import ReaderOptions, pdf

    options = ReaderOptions(ocr="off")

    def read(file: str) -> bool:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                pdf.read(Path(file), "application/pdf", Path(scratch), options)
            except DocumentRejected:
                return False
        return True

    return read


def _bare_pypdfium2(file: str) -> bool:
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(file)
    except pypdfium2.PdfiumError:
        return False
    for index in range(len(document)):
        with contextlib.suppress(pypdfium2.PdfiumError):
            page = document[index]
            textpage = page.get_textpage()
            textpage.get_text_range()
            textpage.close()
            page.close()
    count = len(document)
    document.close()
    return count > 0


def _pdftotext(file: str) -> bool:
    try:
        done = subprocess.run(
            ["pdftotext", "-enc", "UTF-8", file, "-"],
            stdout=subprocess.DEVNULL,
            check=False,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _docling_parse() -> Read:
    pdf_parser = importlib.import_module("docling_parse.pdf_parser")
    parser = pdf_parser.DoclingPdfParser(loglevel="fatal")

    def read(file: str) -> bool:
        try:
            document = parser.load(path_or_stream=file)
            for _ in document.iterate_pages():
                pass
        except (OSError, RuntimeError, TypeError, ValueError):
            return False
        return True

    return read


def _unstructured() -> Read:
    partition = importlib.import_module("unstructured.partition.pdf").partition_pdf
    unreadable = importlib.import_module("pdfminer.psexceptions").PSException

    def read(file: str) -> bool:
        try:
            partition(filename=file, strategy="fast")
        except (OSError, LookupError, RuntimeError, TypeError, ValueError, unreadable):
            return False
        return True

    return read


ARMS: dict[str, Callable[[], contextlib.AbstractContextManager[ReadAll]]] = {
    "headrace": functools.partial(_one_by_one, _headrace),
    "headrace pool of 1": functools.partial(_pool, 1),
    "headrace pool of 2": functools.partial(_pool, 2),
    "pypdfium2": functools.partial(_one_by_one, lambda: _bare_pypdfium2),
    "pypdfium2 in 2 processes": functools.partial(_bare_pool, 2),
    "pdftotext": functools.partial(_one_by_one, lambda: _pdftotext),
    "docling-parse": functools.partial(_one_by_one, _docling_parse),
    "unstructured": functools.partial(_one_by_one, _unstructured),
}
PEERS = {"docling-parse": "docling_parse.pdf_parser", "unstructured": "unstructured.partition.pdf"}
"""The module that a peer's Python must be able to import."""


if __name__ == "__main__":
    main()
