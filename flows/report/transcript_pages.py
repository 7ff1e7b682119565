"""Lists the agents' requests of a run, and writes the pages of what they did."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from config.errors import ConfigError
from connectors.sinks.lake import Lake
from flows.report.transcript import Ended, render_page
from flows.report.words import outcome_word
from flows.run.commits import PARTIAL
from flows.run.job import Job
from flows.run.record_tables import find_record_tables
from flows.run.resume import load_job, manifest_path
from flows.run.transcripts import Figures, figures, list_figures, read_transcripts

_COLUMNS = ("request_key", "outcome", "error_class", "error")
_ODD_IN_NAME = re.compile(r"[^0-9A-Za-z_-]")


def list_requests(run: str | None, sink: str | None, stage: str | None) -> dict[str, Any]:
    """Return the figures of the agents' requests of a run.

    Args:
        run: The run's id or a part of it; None for the latest.
        sink: Where to look; None for the sinks this machine knows of.
        stage: The stage whose requests are listed; all where None.

    Raises:
        ConfigError: There is no such run or stage.
        StorageError: The sink cannot be read.
    """
    job = _job(run, sink, stage)
    found = list_figures(job.open_lake(), job.run_id, stage)
    return {"run_id": job.run_id, "requests": [_as_json(took) for took in found]}


def write_pages(
    run: str | None, sink: str | None, *, request: str, stage: str | None, out: Path | None
) -> dict[str, Any]:
    """Write a page for each request, and return their figures and addresses.

    Args:
        run: The run's id or a part of it; None for the latest.
        sink: Where to look; None for the sinks this machine knows of.
        request: How the keys of the requests begin.
        stage: The stage of the requests; all where None.
        out: Folder of this machine; None for that of the run's report in the sink.

    Raises:
        ConfigError: There is no such run, stage or request, or the folder cannot be written.
        StorageError: The sink cannot be read or written.
    """
    job = _job(run, sink, stage)
    lake = job.open_lake()
    put = _putting(lake, job.run_id, out)
    ends: dict[str, dict[str, Ended]] = {}
    written = []
    for rows in read_transcripts(lake, job.run_id, request=request, stage=stage):
        took = figures(rows)
        if took.stage not in ends:
            ends[took.stage] = _ends(job, lake, took.stage, request)
        ended = ends[took.stage].get(took.request_key) or Ended(question=_question(job, took.stage))
        page = render_page(job.run_id, rows, ended)
        name = f"{took.stage}-{_ODD_IN_NAME.sub('_', took.request_key)}.html"
        written.append({**_as_json(took), "outcome": ended.outcome, "page": put(name, page)})
    if not written:
        of_what = f"whose key begins with {request!r}" if request else "of agents"
        raise ConfigError(
            f"run {job.run_id} has no request {of_what}"
            f"{f' at stage {stage!r}' if stage else ''}; `headrace transcript {job.run_id}` lists"
            " those there are"
        )
    return {"run_id": job.run_id, "requests": written}


def _job(run: str | None, sink: str | None, stage: str | None) -> Job:
    job = load_job(run, sink, "resume")
    names = [one.name for one in job.pipeline.stages]
    if stage is not None and stage not in names:
        raise ConfigError(f"{stage!r} is no stage of run {job.run_id}; stages: {', '.join(names)}")
    return job


def _as_json(took: Figures) -> dict[str, Any]:
    return {**asdict(took), "started": took.started.isoformat(), "speed_up": took.speed_up}


def _question(job: Job, stage: str) -> str:
    return next((one.prompt for one in job.pipeline.stages if one.name == stage), "")


def _ends(job: Job, lake: Lake, stage: str, request: str) -> dict[str, Ended]:
    """Return how a stage's requests whose keys begin so ended, by key."""
    stages = [one for one in job.pipeline.stages if one.name == stage]
    manifest, routed = lake.find_json(manifest_path(job.run_id)), job.pipeline.policy is not None
    tables = find_record_tables(lake, stages, manifest, routed=routed)
    found = {}
    for table in _tables(tables.get(stage)):
        for row in _records(lake, table, request):
            found[row["request_key"]] = Ended(
                outcome=row["outcome"],
                word=outcome_word(row["outcome"], row["error_class"]),
                error=row["error"],
                question=_question(job, stage),
            )
    return found


def _tables(table: str | None) -> Sequence[str]:
    # Answers to parts of a unit have a table of their own.
    return (
        ()
        if table is None
        else (
            table,
            f"{PARTIAL}/{table.removeprefix('records/')}",
        )
    )


def _records(lake: Lake, table: str, request: str) -> Iterator[dict[str, Any]]:
    for frame in lake.iter_table(table, _COLUMNS):
        asked = frame.filter(pl.col("request_key").str.starts_with(request))
        yield from asked.iter_rows(named=True)


def _putting(lake: Lake, run_id: str, out: Path | None) -> Callable[[str, str], str]:
    """Return what writes a page and gives its address."""

    def to_sink(name: str, page: str) -> str:
        path = f"reports/{run_id}/transcripts/{name}"
        lake.storage.put(path, page.encode())
        return lake.storage.uri(path)

    def to_folder(name: str, page: str) -> str:
        assert out is not None
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(page, encoding="utf-8")
        except OSError as exc:
            raise ConfigError(f"--out: {str(out)!r}: {exc.strerror}") from exc
        return str(out / name)

    return to_sink if out is None else to_folder
