"""Pages a second of the PDF reader, beside PDFium's bare text, pdftotext and other parsers.

`python -m benchmarks.pdf_reading [FOLDER] [--repeats 5] [--peer-python PATH] [--max-pages 400]`. The arms take
turns, each in a process of its own, over the files that every one of them opens. The reader finds boxes,
fonts, headings, notes and links besides; OCR is off. docling-parse and unstructured are no dependencies: where
`--peer-python` names no Python that has them they are left out. Ratios are to `pypdfium2` on one process, by the
clock and by CPU time, which other work on the machine does not touch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pypdfium2

from benchmarks.machine import ROOT, machine, show
from benchmarks.pdf_arms import ARMS, PEERS

_BASE = "pypdfium2"
_PROGRAM = Path(__file__).with_name("pdf_arms.py")


def main() -> None:
    """Run the arms in turns and show their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", type=Path, nargs="?", default=ROOT / "config" / "demo_corpus", help="of PDFs"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--peer-python", type=Path, help="a Python with docling-parse, unstructured"
    )
    parser.add_argument("--max-pages", type=int, default=400, help="longer files are left out")
    parser.add_argument(
        "--arms", default=",".join(ARMS).replace(", ", "; "), help="split by commas"
    )
    asked = parser.parse_args()
    measured_on = machine()
    pythons, missing = _pythons(asked.arms.split(","), asked.peer_python)
    pages = _pages(asked.folder, asked.max_pages)
    # The first turn warms up, and finds out who opens what.
    opened = {arm: set(_run(arm, python, [*pages])["read"]) for arm, python in pythons.items()}
    common = [file for file in pages if all(file in files for files in opened.values())]
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in pythons}
    for _ in range(asked.repeats):
        for arm, python in pythons.items():
            runs[arm].append(_run(arm, python, common))
    num_pages = sum(pages[file] for file in common)
    facts: dict[str, object] = {
        "files": f"{len(common)} of {len(pages)}",
        "pages": num_pages,
        "repeats": asked.repeats,
        "left out": ", ".join(missing) or "none",
    }
    show("pdf_reading", measured_on, facts, _rows(runs, num_pages, opened))


def _pythons(wanted: Sequence[str], peer: Path | None) -> tuple[dict[str, str], list[str]]:
    """Return the Python that runs each arm, and the arms that cannot be run here."""
    pythons, missing = {}, []
    for arm in wanted:
        python = str(peer) if arm in PEERS and peer is not None else sys.executable
        if arm in PEERS:
            tried = subprocess.run(
                [python, "-c", f"import {PEERS[arm]}"], capture_output=True, check=False
            )
            is_there = tried.returncode == 0
        else:
            is_there = arm != "pdftotext" or shutil.which("pdftotext") is not None
        if is_there:
            pythons[arm] = python
        else:
            missing.append(arm)
    return pythons, missing


def _pages(folder: Path, max_pages: int) -> dict[str, int]:
    """Return the number of pages of each file that PDFium opens."""
    pages = {}
    for path in sorted(folder.rglob("*.pdf")):
        try:
            document = pypdfium2.PdfDocument(path)
        except pypdfium2.PdfiumError:
            continue
        if 0 < len(document) <= max_pages:
            pages[str(path.resolve())] = len(document)
        document.close()
    return pages


def _run(arm: str, python: str, files: Sequence[str]) -> dict[str, Any]:
    done = subprocess.run(
        [python, str(_PROGRAM), arm],
        input=json.dumps(files),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _rows(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    num_pages: int,
    opened: Mapping[str, set[str]],
) -> list[dict[str, object]]:
    def median(arm: str, value: str) -> float:
        return statistics.median(float(run[value]) for run in runs[arm])

    return [
        {
            "arm": arm,
            "opened": len(opened[arm]),
            "pages_per_s": num_pages / median(arm, "wall_s"),
            "ratio": median(_BASE, "wall_s") / median(arm, "wall_s") if _BASE in runs else 0.0,
            "cpu_ms_a_page": 1000 * median(arm, "cpu_s") / num_pages,
            "cpu_ratio": median(_BASE, "cpu_s") / median(arm, "cpu_s") if _BASE in runs else 0.0,
            "rss_mb": median(arm, "rss_mb"),
        }
        for arm in runs
    ]


if __name__ == "__main__":
    main()
