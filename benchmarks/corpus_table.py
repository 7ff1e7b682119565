"""What becomes of a folder of real files: one row each, as docs/corpus.md shows them.

`python -m benchmarks.corpus_table FOLDER --vocabulary FILE [--write]` reads every file below FOLDER as a run
does and prints a table of units, segments, tokens, outcome and reason. Passwords come from the columns `path`
and `password` of FOLDER/MANIFEST.tsv, where there is one.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import ROOT, machine
from connectors.chunker import ChunkRule, chunk_document
from connectors.document import Content
from connectors.errors import DocumentRejected
from connectors.reader_pool import ReaderPool
from connectors.readers import Password, ReaderOptions
from engine.tokens.opening import load_counter

_PAGE = ROOT / "docs" / "corpus.md"
_TOP = """\
# A corpus of hard files

<!-- Written by `python -m benchmarks.corpus_table FOLDER --vocabulary FILE --write`. -->

{count} real and hostile files: papers, books of up to 619 pages, forms, scans, fuzzed and cut files, workbooks
with merged cells or no end, films with broken clocks. Each is read as a run reads it, scans by the built-in OCR
up to 16 pages a document, encrypted ones with their password where one is known. Tokens are Kimi K2.5's, labels
included. No reader crashed or hung; the longest took {slowest:.0f} s, and none more than {peak:,} MB of memory
({machine}).

| file | units | segments | tokens | outcome | reason |
| --- | ---: | ---: | ---: | --- | --- |
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What became of one file."""

    file: str
    outcome: str
    """`read`, `partial` (some unit failed) or `rejected: CLASS`."""
    reason: str
    content: Content | None
    seconds: float
    peak_mb: int


def corpus_files(folder: Path) -> list[Path]:
    """Return the files in the subfolders of `folder`, in path order."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.parent != folder)


def read_files(
    folder: Path, options: ReaderOptions, *, timeout_s: float = 300.0, num_processes: int = 2
) -> Iterator[Fate]:
    """Yield the fate of every file below `folder`, as they are done."""
    passwords = _passwords(folder)
    with (
        tempfile.TemporaryDirectory(prefix="corpus-") as scratch,
        ReaderPool(num_processes, options, timeout_s=timeout_s) as pool,
        ThreadPoolExecutor(num_processes) as threads,
    ):

        def read(number: int, file: Path) -> Fate:
            name = file.relative_to(folder).as_posix()
            media = Path(scratch) / str(number)
            media.mkdir()
            started = time.monotonic()
            content: Content | None = None
            try:
                content = pool.read(file, file.name, media, password=passwords.get(name))
            except DocumentRejected as exc:
                outcome, reason = f"rejected: {exc.reason}", str(exc)
            else:
                failed = [unit for unit in content.units if unit.status == "failed"]
                outcome = "partial" if failed else "read"
                reason = f"{failed[0].name}: {failed[0].error}" if failed else ""
            return Fate(
                file=name,
                outcome=outcome,
                reason=reason,
                content=content,
                seconds=time.monotonic() - started,
                peak_mb=max((_peak_mb(pid) for pid in _children()), default=0),
            )

        work = [threads.submit(read, *item) for item in enumerate(corpus_files(folder))]
        for done in as_completed(work):
            yield done.result()


def main() -> None:
    """Read, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vocabulary", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    counter = load_counter(asked.vocabulary)
    rule = ChunkRule(max_tokens=100_000, counter=counter, name=counter.name)
    rows: dict[str, str] = {}
    slowest, peak = 0.0, 0
    count = len(corpus_files(asked.folder))
    for fate in read_files(asked.folder, ReaderOptions()):
        rows[fate.file] = _row(fate, rule)
        slowest, peak = max(slowest, fate.seconds), max(peak, fate.peak_mb)
        sys.stderr.write(f"{len(rows)} of {count}: {fate.file} {fate.seconds:.1f} s\n")
    text = _TOP.format(count=count, slowest=slowest, peak=peak, machine=_machine())
    text += "".join(rows[file] for file in sorted(rows))
    if asked.write:
        _PAGE.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


def _row(fate: Fate, rule: ChunkRule) -> str:
    units = segments = tokens = 0
    if fate.content is not None:
        units, segments = len(fate.content.units), len(fate.content.segments)
        chunks = chunk_document("0" * 64, fate.content, rule)
        tokens = sum(chunk.num_tokens for chunk in chunks)
    return (
        f"| {fate.file} | {units:,} | {segments:,} | {tokens:,} | {fate.outcome}"
        f" | {_cell(fate.reason)} |\n"
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:140]


def _machine() -> str:
    facts: Mapping[str, object] = machine()
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _passwords(folder: Path) -> dict[str, Password]:
    manifest = folder / "MANIFEST.tsv"
    if not manifest.is_file():
        return {}
    with manifest.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {
            row["path"]: Password(value=row["password"], key=manifest.name)
            for row in rows
            if row.get("password")
        }


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
    """Return the most resident memory that a process has had, in MB; 0 where it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    line = next((row for row in text.splitlines() if row.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) // 1000


if __name__ == "__main__":
    main()
