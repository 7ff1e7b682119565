"""What becomes of a folder of real files: one row each, as docs/corpus.md shows them.

`python -m benchmarks.corpus_table FOLDER [--vocabulary FILE] [--write]` reads every file below FOLDER as a run
does and prints a table of units, segments, tokens, outcome and reason.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.machine import ROOT
from connectors.chunker import ChunkRule, chunk_document
from connectors.errors import DocumentRejected
from connectors.reader_pool import ReaderPool
from connectors.readers import ReaderOptions
from engine.tokens.opening import load_counter

_TOP = """\
# A corpus of hard files

<!-- Written by `python -m benchmarks.corpus_table FOLDER --vocabulary FILE --write`. -->

Every file of a collection of {count} real and hostile documents (papers, books of up to 619 pages, forms,
scans, fuzzed and cut files, workbooks with merged cells or no end, films with broken clocks), read as a run
reads it, scans by the built-in OCR up to 16 pages a document. Tokens are Kimi K2.5's, labels included.
The longest took {slowest:.0f} s; no reader took more than {peak:,} MB.

| file | units | tokens | outcome | reason |
| --- | ---: | ---: | --- | --- |
"""


def main() -> None:
    """Read, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vocabulary", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    files = sorted(
        path for path in asked.folder.rglob("*") if path.is_file() and path.parent != asked.folder
    )
    counter = load_counter(asked.vocabulary)
    rule = ChunkRule(max_tokens=100_000, counter=counter, name=counter.name)
    peaks: list[int] = []
    with (
        tempfile.TemporaryDirectory(prefix="corpus-") as scratch,
        ReaderPool(2, ReaderOptions(), timeout_s=300) as pool,
        ThreadPoolExecutor(2) as threads,
    ):

        def read(file: Path) -> Mapping[str, object]:
            started = time.monotonic()
            media = Path(scratch) / str(abs(hash(file)))
            media.mkdir()
            row: dict[str, object] = {"file": str(file.relative_to(asked.folder))}
            try:
                content = pool.read(file, file.name, media)
            except DocumentRejected as exc:
                row |= {"units": 0, "tokens": 0, "outcome": f"rejected: {exc.reason}"}
                row["reason"] = str(exc)
            else:
                chunks = chunk_document("0" * 64, content, rule)
                failed = [unit for unit in content.units if unit.status == "failed"]
                row |= {
                    "units": len(content.units),
                    "tokens": sum(chunk.num_tokens for chunk in chunks),
                    "outcome": "partial" if failed else "read",
                    "reason": f"{failed[0].name}: {failed[0].error}" if failed else "",
                }
            peaks.append(_children_mb())
            return row | {"seconds": time.monotonic() - started}

        rows = list(threads.map(read, files))
    slowest = max(float(str(row["seconds"])) for row in rows)
    text = _TOP.format(count=len(rows), slowest=slowest, peak=max(peaks))
    text += "".join(
        f"| {row['file']} | {row['units']} | {row['tokens']:,} | {row['outcome']}"
        f" | {_cell(str(row['reason']))} |\n"
        for row in rows
    )
    if asked.write:
        (ROOT / "docs" / "corpus.md").write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:140]


def _children_mb() -> int:
    """Return the largest peak of resident memory among our reader processes, in MB."""
    return max((_peak_mb(pid) for pid in _children()), default=0)


def _children() -> Iterator[int]:
    own = str(os.getpid())
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text(encoding="utf-8")
        except OSError:
            continue
        if f"\nPPid:\t{own}\n" in text:
            yield int(status.parent.name)


def _peak_mb(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    line = next((row for row in text.splitlines() if row.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) // 1000


if __name__ == "__main__":
    main()
