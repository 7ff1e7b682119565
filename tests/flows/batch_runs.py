"""Runs of pipelines whose stages go through a fake host's batch API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from flows.run.core import run_job
from flows.run.job import Job, Options, make_job
from tests.fakes.batch_host import BatchHostServer

NUM_FILES = 8

PIPELINE = """
name: waits
documents_per_shard: 4
stages:
  - {name: kind, prompt: What is it?, output: {kind: a|b|c, says: line}, batch_api: {window: 12h}}
  - name: title
    over: document
    needs: [kind]
    prompt: Which line?
    output: {title: string}
    batch_api: {window: 1d}
  - {name: all, over: corpus, needs: [title], prompt: What is it all about?, output: {about: string}}
"""

PROFILE = """
name: host
base_url: {url}
hosted_by: Somebody
model: fake-model
context_tokens: 8192
api_key_env: null
prices: {{input_usd: 1.0, cached_input_usd: 0.1, output_usd: 10.0, batch_factor: 0.6}}
capabilities:
  structured_output: true
  stream: false
  batch_api: {{min_window: 12h, max_window: 7d, poll_s: 0.02, list_lag_s: 0.05{limits}}}
modes: {{instant: {{}}, thinking: {{}}}}
"""


def write_world(
    folder: Path,
    url: str,
    *,
    pipeline: str = PIPELINE,
    limits: str = "",
    num_files: int = NUM_FILES,
    name: str = "note",
) -> None:
    """Write notes, the pipeline and the host's profile."""
    (folder / "in").mkdir(parents=True)
    for number in range(num_files):
        text = f"{name} {number} says this.\nIt is the second line of {name} {number}."
        (folder / "in" / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    (folder / "waits.yaml").write_text(pipeline, encoding="utf-8")
    profile = PROFILE.format(url=url, limits=f", {limits}" if limits else "")
    (folder / "host.yaml").write_text(profile, encoding="utf-8")


def job_in(folder: Path, *settings: str, lake: str = "lake", **options: Any) -> Job:
    """Return the job on the world in a folder."""
    asked = Options(
        source=str(folder / "in"),
        sink=str(folder / lake),
        engine=str(folder / "host.yaml"),
        settings=settings,
        **options,
    )
    return make_job(folder / "waits.yaml", asked)


def run_in(folder: Path, *settings: str, **options: Any) -> Mapping[str, Any]:
    """Run on the world in a folder, and return the manifest."""
    return run_job(job_in(folder, *settings, **options))


def records(folder: Path, stage: str, lake: str = "lake") -> pl.DataFrame:
    """Return the records of a stage."""
    return pl.read_parquet(f"{folder}/{lake}/records/stage={stage}/*.parquet")


def outcomes(folder: Path, stage: str) -> dict[str, int]:
    """Return the records of a stage by outcome."""
    return dict(Counter(records(folder, stage)["outcome"]))


def usage(folder: Path, run_id: str) -> pl.DataFrame:
    """Return what a run took, by request."""
    return pl.read_parquet(f"{folder}/lake/runs/{run_id}/usage/*.parquet")


def submitted(host: BatchHostServer) -> Counter[str]:
    """Return how often each line was taken in a batch."""
    return Counter(line for batch in host.kept.submitted for line in batch)


def check_paid_once(folder: Path, host: BatchHostServer, manifest: Mapping[str, Any]) -> None:
    """Check that a complete run has paid for each question once, and that its sums agree."""
    assert manifest["verdict"] == "complete", manifest["failures"]
    assert manifest["failures"] == []
    assert manifest["batches"] == []
    lines = submitted(host)
    assert set(lines.values()) == {1}
    assert len(host.kept.contents) == len(lines)
    paid = {
        name: stage["prompt_tokens"] + stage["completion_tokens"]
        for name, stage in manifest["stages"].items()
    }
    spent = {name: one["tokens"] for name, one in manifest["spent"]["stages"].items()}
    assert spent == paid
    for stage in ("kind", "title", "all"):
        rows = records(folder, stage)
        assert set(rows["outcome"]) == {"succeeded"}
        assert rows["row_key"].n_unique() == len(rows) == (1 if stage == "all" else NUM_FILES)
    # Nothing of it is left, here or there.
    assert [*(folder / "lake" / "_headrace" / "batches").rglob("*.json*")] == []
    assert host.kept.files == {}
