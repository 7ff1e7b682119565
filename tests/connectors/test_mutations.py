"""Damaged copies of real files, named by HEADRACE_CORPUS; run by `make check`."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from connectors.document import Content
from connectors.errors import DocumentRejected
from connectors.reader_pool import ReaderPool
from connectors.readers import ReaderOptions

pytestmark = [pytest.mark.corpus, pytest.mark.timeout(1800)]

NUM_MUTANTS = 300
MAX_BYTES = 1_500_000


def mutate(data, random):
    """Return the bytes with bits flipped, their end or middle lost, or parts of them exchanged."""
    data = bytearray(data)
    how = random.choice(["flip", "truncate", "cut", "splice", "zeros"])
    at, length = random.randrange(len(data)), random.randrange(1, 4096)
    if how == "flip":
        for _ in range(random.randint(1, 64)):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    elif how == "truncate":
        del data[at:]
    elif how == "cut":
        del data[at : at + length]
    elif how == "splice":
        start = random.randrange(len(data))
        data[at:at] = data[start : start + length]
    else:
        data[at : at + length] = bytes(length)
    return how, bytes(data)


def test_every_damaged_file_has_an_outcome_when_read(tmp_path):
    corpus = Path(os.environ["HEADRACE_CORPUS"])
    files = sorted(
        path
        for path in corpus.rglob("*.*")
        if path.is_file() and 0 < path.stat().st_size < MAX_BYTES
    )
    files = [path for path in files if path.suffix not in {".tsv", ".md"}]
    random = Random(20261125)
    outcomes = Counter()

    def read(number, file, how, data):
        folder = tmp_path / str(number)
        folder.mkdir()
        mutant = folder / file.name
        mutant.write_bytes(data)
        try:
            found = pool.read(mutant, file.name, folder)
        except DocumentRejected as exc:
            return f"rejected: {exc.reason}" if str(exc) else "rejected without a reason"
        finally:
            mutant.unlink()
        assert isinstance(found, Content)
        assert found.units
        failed = [unit for unit in found.units if unit.status == "failed"]
        assert all(unit.error for unit in failed)
        return "partial" if failed else "read"

    with (
        ReaderPool(2, ReaderOptions(ocr="off"), timeout_s=60) as pool,
        ThreadPoolExecutor(2) as threads,
    ):
        work = []
        for number in range(NUM_MUTANTS):
            file = random.choice(files)
            how, data = mutate(file.read_bytes(), random)
            if data:
                work.append((file, how, threads.submit(read, number, file, how, data)))
        for _, _, done in work:
            outcomes[done.result()] += 1
    # A child may crash or be killed; its file has that outcome, and the pool goes on.
    assert outcomes.total() >= NUM_MUTANTS - 5
    assert outcomes["read"] + outcomes["partial"] > 30
    assert outcomes["rejected without a reason"] == 0
