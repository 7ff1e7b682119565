"""The memory of a run over a corpus, and over one ten times as large.

`python -m benchmarks.memory_growth [--folder FOLDER] [--copies 4]` runs a pipeline over copies of the files of
FOLDER (the demo's, where none is given), against an engine that costs next to nothing, in a process of its own;
then over ten times as many. The peaks are those of the run's process and of its largest reader.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import fast_engine
from benchmarks.machine import ROOT, machine, show
from flows.run.core import run_job
from flows.run.job import Options, make_job

_GROWTH = 10
_PIPELINE = """\
name: memory
reader: {ocr: "off"}
chunk: {max_tokens: 4000}
documents_per_shard: 16
stages:
  - name: digest
    prompt: Which topic is it about?
    output: {topic: a|b}
"""


def main() -> None:
    """Run both, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "config" / "demo_corpus")
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.arm:
        sys.stdout.write(json.dumps(_measure(Path(asked.arm), asked.url)) + "\n")
        return
    measured_on = machine()
    files = [path for path in sorted(asked.folder.rglob("*")) if path.is_file()]
    with tempfile.TemporaryDirectory(prefix="bench-") as name, fast_engine.serving() as url:
        folder = Path(name)
        rows = []
        for arm, copies in (("once", asked.copies), ("ten times", _GROWTH * asked.copies)):
            _copy(files, asked.folder, folder / arm / "source", copies)
            rows.append({"arm": arm, **_in_process(folder / arm, url)})
            shutil.rmtree(folder / arm)
    facts = {
        "run_mb, ten times / once": rows[1]["run_mb"] / rows[0]["run_mb"],
        "reader_mb, ten times / once": rows[1]["reader_mb"] / rows[0]["reader_mb"],
    }
    show("memory_growth", measured_on, facts, rows)


def _copy(files: list[Path], top: Path, target: Path, copies: int) -> None:
    for number in range(copies):
        for file in files:
            copy = target / f"{number:04}" / file.relative_to(top)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def _in_process(folder: Path, url: str) -> dict[str, Any]:
    argv = [sys.executable, "-m", "benchmarks.memory_growth", "--arm", str(folder), "--url", url]
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _measure(folder: Path, url: str) -> dict[str, Any]:
    pipeline = folder / "memory.yaml"
    pipeline.write_text(_PIPELINE, encoding="utf-8")
    options = Options(source=str(folder / "source"), sink=str(folder / "lake"), engine=url)
    manifest = run_job(make_job(pipeline, options))
    return {
        "documents": manifest["documents"]["listed"],
        "chunks": manifest["chunks"],
        "run_mb": _peak_mb(resource.RUSAGE_SELF),
        "reader_mb": _peak_mb(resource.RUSAGE_CHILDREN),
    }


def _peak_mb(who: int) -> float:
    return resource.getrusage(who).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
