"""Every file of a folder of real files, named by HEADRACE_CORPUS, against its row of docs/corpus.md."""

import os
from pathlib import Path

import pytest

from benchmarks.corpus_table import corpus_files, read_files
from benchmarks.machine import ROOT
from connectors.readers import ReaderOptions

pytestmark = pytest.mark.corpus

MAX_MEMORY_MB = 1000


def test_outcomes_are_those_of_the_table_when_the_corpus_is_read():
    corpus = Path(os.environ["HEADRACE_CORPUS"])
    page = (ROOT / "docs" / "corpus.md").read_text(encoding="utf-8")
    cells = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    expected = {file: (units, outcome) for file, units, _, _, outcome, *_ in cells[2:]}
    # Without OCR, which changes no outcome but that of scans beyond its limit of pages.
    found = list(read_files(corpus, ReaderOptions(ocr="off")))
    assert len(found) == len(corpus_files(corpus)) == len(expected)
    for fate in found:
        units = f"{len(fate.content.units):,}" if fate.content else "0"
        assert (units, fate.outcome) == expected[fate.file], fate.file
        assert fate.reason or fate.outcome == "read"
    assert max(fate.peak_mb for fate in found) <= MAX_MEMORY_MB
    reasons = {fate.outcome.partition(": ")[2] for fate in found}
    assert reasons == {"", "damaged", "encrypted", "empty"}
