"""What it takes to go on with a run that is almost done: bytes read again, memory, time.

`python -m benchmarks.resuming [--documents 500] [--chunks 200]`. Each chunk gives one record.
The last hundredth of the shards is left undone, then the run goes on in a process of its own; once with a tenth of the
documents, once with all. Answers come from a fake engine that costs next to nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import fast_engine
from benchmarks.machine import ROOT, machine, show
from config.load import set_environment
from connectors.storage import LocalStorage
from flows.run.core import in_threads, run_job
from flows.run.counts import ShardReport, left_alone
from flows.run.job import Options, make_job
from flows.run.plan import ShardPlan
from flows.run.resume import reopen
from flows.run.work import Worker

_PIPELINE = """
name: resuming
failure_limit: 1
documents_per_shard: 4
chunk: {max_tokens: 200}
stages:
  - {name: topic, prompt: What is it about?, output: {topic: a|b|c}}
"""
_LINE = "Paragraph {number} of this document says how many ropes of which length lie in the store"


def main() -> None:
    """Make both corpora, stop their runs, and go on with them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=500)
    parser.add_argument("--chunks", type=int, default=200)
    parser.add_argument("--go-on", metavar="RUN")
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    if asked.go_on:
        sys.stdout.write(json.dumps(_go_on(asked.go_on, asked.folder)))
        return
    measured_on = machine()
    with fast_engine.serving() as url:
        numbers = (asked.documents // 10, asked.documents)
        rows = [_measure(number, asked.chunks, url) for number in numbers]
    small, large = rows
    facts = {
        "rss large / small": large["rss_mb"] / small["rss_mb"],
        "share of bytes read again": large["bytes_read"] / large["bytes"],
    }
    show("resuming", measured_on, facts, rows)


def _measure(num_documents: int, num_chunks: int, url: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        set_environment({"HEADRACE_STATE": f"{folder}/state"})
        (folder / "in").mkdir()
        for number in range(num_documents):
            lines = (f"{_LINE.format(number=line)} {number}. " * 5 for line in range(num_chunks))
            (folder / "in" / f"{number:05d}.txt").write_text("\n\n".join(lines), encoding="utf-8")
        (folder / "pipeline.yaml").write_text(_PIPELINE, encoding="utf-8")
        started = time.monotonic()
        asked = Options(source=f"{folder}/in", sink=f"{folder}/lake", engine=url)
        job = make_job(folder / "pipeline.yaml", asked)
        manifest = run_job(job, dispatch=_all_but_the_last)
        first_s = time.monotonic() - started
        argv = [sys.executable, "-m", "benchmarks.resuming", "--folder", name]
        result = subprocess.run(
            [*argv, "--go-on", manifest["run_id"]],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        size = sum(file.stat().st_size for file in (folder / "in").iterdir())
        found: dict[str, Any] = json.loads(result.stdout)
        return {"arm": f"{num_documents} documents", "first_s": first_s, "bytes": size, **found}


def _all_but_the_last(worker: Worker, shards: Iterable[ShardPlan]) -> Iterator[ShardReport | None]:
    """Leave the last hundredth of the shards undone, as a run that was stopped does."""
    every = list(shards)
    kept = len(every) - max(1, len(every) // 100)
    yield from in_threads(worker, every[:kept])
    yield from (left_alone(shard.shard, len(shard.sources)) for shard in every[kept:])


def _go_on(run_id: str, folder: Path) -> dict[str, Any]:
    read = 0
    stream = LocalStorage.stream

    def counted(storage: LocalStorage, path: str) -> Iterator[bytes]:
        nonlocal read
        for piece in stream(storage, path):
            read += len(piece)
            yield piece

    LocalStorage.stream = counted  # type: ignore[method-assign, assignment]
    started = time.monotonic()
    manifest = run_job(reopen(run_id, f"{folder}/lake", "resume"))
    return {
        "verdict": manifest["verdict"],
        "records": manifest["stages"]["topic"]["inputs"],
        "wall_s": time.monotonic() - started,
        "bytes_read": read,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main()
