"""What the commands `status` and `records` show: runs, and rows of their tables."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from config.errors import ConfigError
from connectors.sinks.lake import Lake
from connectors.sinks.parquet import RECORD_COLUMNS, RECORD_TAIL, span_from_row
from flows.report.words import counted, place
from flows.run.globs import glob_regex
from flows.run.job import Job
from flows.run.record_tables import find_record_tables
from flows.run.registry import RunEntry, known_runs, open_sink, runs_folder
from flows.run.resume import load_job, locate, manifest_path

_TABLES = ("documents", "chunks", "usage")
_ALWAYS = frozenset({"path", "unit", "outcome"})
_INTERNAL = frozenset(name for name, _ in (*RECORD_COLUMNS, *RECORD_TAIL)) - _ALWAYS


def runs_status(count: int) -> list[dict[str, Any]]:
    """Return the latest runs of this machine, newest first."""
    return [_brief(entry) for entry in known_runs()[:count]]


def _brief(entry: RunEntry) -> dict[str, Any]:
    state = entry.verdict if entry.verdict is not None else entry.state
    progress = entry.progress or {}
    results, requests = progress.get("num_results", 0), progress.get("num_requests", 0)
    read, documents = progress.get("num_documents_read", 0), progress.get("num_documents", 0)
    done = f"{read}/{counted(documents, 'document')}, {results}/{counted(requests, 'answer')}"
    return {
        "run_id": entry.run_id,
        "pipeline": entry.pipeline,
        "state": state.partition(":")[0].replace("_", " "),
        "error": state.partition(": ")[2] or None,
        "done": done if progress else "",
        "batches": progress.get("batches", []) if entry.state == "running" else [],
        "source": entry.source,
        "sink": entry.sink,
        "started": entry.started,
        "pid": entry.pid if entry.state == "running" else None,
    }


def run_status(run: str | None, sink: str | None) -> dict[str, Any]:
    """Return one run: as this machine knows it, and its manifest where it has ended."""
    run_id, sink = locate(run, sink)
    entries = [entry for entry in known_runs() if entry.run_id == run_id]
    manifest = open_sink(sink).find_json(manifest_path(run_id))
    log = runs_folder() / f"{run_id}.log"
    shown: dict[str, Any] = {
        "run_id": run_id,
        "sink": sink,
        "state": manifest["verdict"] if manifest else "unfinished",
    }
    if entries:
        shown |= _brief(entries[0])
    interrupted = not entries or entries[0].state == "interrupted"
    if manifest is None and interrupted:
        shown["next"] = f"headrace run --resume {run_id}"
    return shown | {"log": str(log) if log.exists() else None, "manifest": manifest}


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which rows and columns of a table to show."""

    where: str | None = None
    """SQL condition on the table's columns."""
    columns: tuple[str, ...] = ()
    """Empty: the stage's own, with path, unit and outcome."""
    document: str | None = None
    """Glob on `path`."""
    outcome: str | None = None
    skipped: bool = True
    """Whether to show records that were skipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Rows of one table of a run."""

    run_id: str
    table: str
    frame: pl.DataFrame
    """With the columns to show."""
    hidden: Sequence[str]
    """Columns that are there and not shown."""
    tables: Sequence[str]
    """What else can be looked at."""
    num_skipped: int
    """Records left out because they were skipped."""

    def as_json(self) -> dict[str, Any]:
        """Return the rows as JSON values; dates, times and decimals are left to the encoder."""
        return {
            "run_id": self.run_id,
            "table": self.table,
            "columns": self.frame.columns,
            "hidden": list(self.hidden),
            "tables": list(self.tables),
            "records": self.frame.to_dicts(),
        }

    def as_csv(self) -> str:
        """Return the rows as CSV; lists and structs are JSON."""
        nested = [name for name, kind in self.frame.schema.items() if kind.is_nested()]
        flat = {
            name: [
                None if value is None else json.dumps(value, ensure_ascii=False, default=str)
                for value in self.frame[name].to_list()
            ]
            for name in nested
        }
        columns = [pl.Series(name, values, dtype=pl.String) for name, values in flat.items()]
        return self.frame.with_columns(columns).write_csv()


def query_records(run: str | None, stage: str | None, sink: str | None, query: Query) -> Records:
    """Return rows of a stage's records, or of the table documents, chunks or usage.

    Raises:
        ConfigError: There is no such run, stage, column, or the condition is wrong.
    """
    job = load_job(run, sink, "resume")
    stages = [stage.name for stage in job.pipeline.stages]
    name = stage or stages[-1]
    if name not in {*stages, *_TABLES}:
        raise ConfigError(
            f"{name!r} is no stage of run {job.run_id}; stages: {', '.join(stages)};"
            f" other tables: {', '.join(_TABLES)}"
        )
    lake = job.open_lake()
    frame = lake.read_table(_folder(job, lake, name))
    if frame is None:
        raise ConfigError(
            f"run {job.run_id} has no {name!r} records yet; `headrace status {job.run_id}` says"
            " how far it is"
        )
    frame = _with_place(_select(frame, query))
    num_skipped = 0
    if not query.skipped and "outcome" in frame.columns:
        num_skipped = len(frame.filter(outcome="skipped"))
        frame = frame.filter(pl.col("outcome") != "skipped")
    columns = list(query.columns) or _shown(frame, name)
    return Records(
        run_id=job.run_id,
        table=name,
        frame=frame.select(_known(columns, frame)),
        hidden=[column for column in frame.columns if column not in columns],
        tables=[*stages, *_TABLES],
        num_skipped=num_skipped,
    )


def _folder(job: Job, lake: Lake, name: str) -> str:
    if name == "usage":
        return f"runs/{job.run_id}/usage"
    if name in _TABLES:
        return name
    manifest, routed = lake.find_json(manifest_path(job.run_id)), job.pipeline.policy is not None
    return find_record_tables(lake, job.pipeline.stages, manifest, routed=routed)[name]


def _select(frame: pl.DataFrame, query: Query) -> pl.DataFrame:
    for column, value in (("outcome", query.outcome), ("path", query.document)):
        if value is None:
            continue
        _known([column], frame)
        pattern = f"^{re.escape(value) if column == 'outcome' else glob_regex(value)}$"
        frame = frame.filter(pl.col(column).str.contains(pattern))
    if query.where is not None:
        try:
            frame = frame.sql(f"select * from self where {query.where}")
        except pl.exceptions.PolarsError as exc:
            # Behind the first line comes the query's plan.
            said = str(exc).splitlines()[0]
            raise ConfigError(
                f"--where {query.where!r}: {said}; text goes in single quotes: kind = 'letter';"
                f" columns: {', '.join(frame.columns)}"
            ) from exc
    order = [column for column in ("path", "unit", "ordinal") if column in frame.columns]
    return frame.sort(order) if order else frame


def _with_place(frame: pl.DataFrame) -> pl.DataFrame:
    """Return records with a column `place` behind their path: where the first cited line stands."""
    if "citations" not in frame.columns or "place" in frame.columns:
        return frame
    cited = frame["citations"].to_list()
    if not any(cited):
        return frame
    places = [place(span_from_row(found[0]["span"])) if found else None for found in cited]
    at = frame.get_column_index("path") + 1
    return frame.insert_column(at, pl.Series("place", places, dtype=pl.String))


def _shown(frame: pl.DataFrame, name: str) -> list[str]:
    """Return the columns that people look at first."""
    if name == "documents":
        return ["path", "status", "error_class", "media_type", "num_chunks", "error"]
    if name == "chunks":
        return ["path", "ordinal", "num_tokens", "chunk_key"]
    own = [column for column in frame.columns if column not in _INTERNAL]
    failed = "error" in frame.columns and frame["error"].null_count() < len(frame)
    return [*own, "error_class", "error"] if failed and name != "usage" else own


def _known(columns: Sequence[str], frame: pl.DataFrame) -> Sequence[str]:
    unknown = [column for column in columns if column not in frame.columns]
    if unknown:
        raise ConfigError(
            f"column {unknown[0]!r} is not in the table; columns: {', '.join(frame.columns)}"
        )
    return columns
