"""One group of very many answers: whether all of them are in its answer, and the memory that it takes.

`python -m benchmarks.one_group [--rows 100000]` asks about each row of sheets of a thousand rows, and then about
the one group that all answers fall into; first for a tenth of the rows. The engine costs next to nothing and
always says the same, so that what is measured is the run.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks import fast_engine
from benchmarks.machine import ROOT, machine, show
from config.load import set_environment
from flows.run.core import run_job
from flows.run.job import Options, make_job

_ROWS_PER_SHEET = 1000
_PIPELINE = """
name: one_group
failure_limit: 0
documents_per_shard: 4
chunk: {max_tokens: 4000}
stages:
  - {name: row, over: rows, prompt: What is it?, output: {topic: a|b}, max_output_tokens: 20}
  - {name: group, over: group, by: row.topic, needs: [row], prompt: What do they share?,
     output: {topic: a|b}, max_output_tokens: 20}
"""


def main() -> None:
    """Run both, and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.arm:
        sys.stdout.write(json.dumps(_measure(Path(asked.arm), asked.url)) + "\n")
        return
    measured_on = machine()
    rows = []
    with fast_engine.serving() as url:
        for number in (asked.rows // 10, asked.rows):
            with tempfile.TemporaryDirectory(prefix="bench-") as name:
                _write_sheets(Path(name) / "in", number)
                rows.append({"arm": f"{number:,} rows", **_in_process(name, url)})
    show("one_group", measured_on, {"mb, large / small": rows[1]["mb"] / rows[0]["mb"]}, rows)


def _write_sheets(folder: Path, num_rows: int) -> None:
    folder.mkdir()
    for sheet in range(0, num_rows, _ROWS_PER_SHEET):
        numbers = range(sheet, min(num_rows, sheet + _ROWS_PER_SHEET))
        lines = ["number,text", *(f"{number},rope {number}" for number in numbers)]
        (folder / f"{sheet:08d}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _in_process(folder: str, url: str) -> dict[str, Any]:
    argv = [sys.executable, "-m", "benchmarks.one_group", "--arm", folder, "--url", url]
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _measure(folder: Path, url: str) -> dict[str, Any]:
    set_environment({"HEADRACE_STATE": f"{folder}/state"})
    (folder / "pipeline.yaml").write_text(_PIPELINE, encoding="utf-8")
    asked = Options(source=f"{folder}/in", sink=f"{folder}/lake", engine=url)
    started = time.monotonic()
    manifest = run_job(make_job(folder / "pipeline.yaml", asked))
    answers = pl.read_parquet(f"{folder}/lake/records/stage=group/*.parquet").to_dicts()
    return {
        "verdict": manifest["verdict"],
        "rests_on": [(row["num_answered"], row["num_inputs"]) for row in answers],
        "parts": manifest["stages"]["group"]["parts"],
        "seconds": round(time.monotonic() - started, 1),
        "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main()
