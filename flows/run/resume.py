"""Goes on with a run that was interrupted, stopped by its budget, or left requests unanswered.

What the run has done is read from its folder in the sink; the machine that made it is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

from config.errors import ConfigError
from config.load import (
    find_pipeline,
    load_pipeline,
    resolve_engine,
    resolve_folder,
    with_settings,
)
from connectors.sinks.lake import Lake
from engine.batch import Amount
from flows.run.counts import ShardReport, add_amounts, report_from_json
from flows.run.job import Job, Options, check_cache_place, job_from_json
from flows.run.ledger import journal_spent, journaled
from flows.run.registry import find_run, known_runs, open_sink

_READ_AT_ONCE = 16


def marker_path(run_id: str, shard: str = "") -> str:
    """Return where the shard's marker lies: its report, put after its parts."""
    return f"runs/{run_id}/shards/{shard}.json" if shard else f"runs/{run_id}/shards/"


def job_path(run_id: str) -> str:
    """Return where a run's resolved job lies in its sink."""
    return f"runs/{run_id}/run.json"


def manifest_path(run_id: str) -> str:
    """Return where a run's manifest lies in its sink."""
    return f"runs/{run_id}/manifest.json"


def locate(run: str | None, sink: str | None) -> tuple[str, str]:
    """Return a run's id and its sink.

    Args:
        run: The id or a part of it; None for the latest.
        sink: Where to look; None for the sinks this machine knows of.

    Raises:
        ConfigError: There is no such run.
    """
    if sink is None:
        entry = find_run(run)
        return entry.run_id, entry.sink
    storage = open_sink(sink).storage
    ids = sorted({item.path.split("/")[1] for item in storage.list("runs") if "/" in item.path})
    found = [run_id for run_id in ids if run is None or run in run_id]
    if not found:
        raise ConfigError(
            f"sink {sink!r} has no run {run or ''!r}; its runs: {', '.join(ids[-5:]) or 'none'}"
        )
    exact = [run_id for run_id in found if run_id == run]
    if run is not None and len(found) > 1 and not exact:
        raise ConfigError(
            f"run {run!r} fits {len(found)} runs, such as {found[0]}; give more of it"
        )
    return (exact or found)[-1], sink


def load_job(run: str | None, sink: str | None, start: Literal["resume", "retry"]) -> Job:
    """Return the job of an earlier run, as its folder in the sink tells.

    Raises:
        ConfigError: There is no such run, or it never began.
    """
    run_id, sink = locate(run, sink)
    value = open_sink(sink).find_json(job_path(run_id))
    if value is None:
        raise ConfigError(
            f"run {run_id} did not get as far as its plan, so there is nothing to go on with; run"
            " the same command again"
        )
    # The sink may be reached by another path or mount from here.
    return replace(job_from_json(value, start), sink=sink)


def reopen(
    run: str | None,
    sink: str | None,
    start: Literal["resume", "retry"],
    options: Options | None = None,
) -> Job:
    """Return the job that goes on with a run.

    Args:
        run: The run's id or a part of it; None for the latest.
        sink: Where to look; None for the sinks this machine knows of.
        start: `resume` or `retry`, see `Job.start`.
        options: Budgets, failure limit, engine and cache may be changed; the rest is the run's.

    Raises:
        ConfigError: There is no such run, it is still going on, or another option is given.
    """
    job = load_job(run, sink, start)
    for entry in known_runs():
        if entry.run_id == job.run_id and entry.state == "running":
            raise ConfigError(
                f"run {job.run_id} is still going on in process {entry.pid}; wait for it, or end it"
                f" with: kill {entry.pid}"
            )
    return _changed(job, options or Options())


_FIXED = ("name", "include", "shared", "reader", "chunk", "stages", "documents_per_shard", "policy")
"""Keys of a pipeline that decide what its rows say, and where documents may go."""


def with_pipeline(job: Job, pipeline: str, *, accept_changes: bool) -> Job:
    """Return the job of a run that goes on, with its pipeline as the file has it now.

    Args:
        job: The run, as its folder tells.
        pipeline: The pipeline's file or name.
        accept_changes: Whether it may differ from what the run began with.

    Raises:
        ConfigError: It differs; the message says in what.
    """
    now = load_pipeline(find_pipeline(pipeline), {}, ())
    before, after = (
        config.model_dump(
            mode="json",
            include=set(_FIXED),
            exclude={"stages": {"__all__": {"budget", "batch_api"}}},
        )
        for config in (job.pipeline, now)
    )
    differing = sorted(_differing(before, after))
    if not differing:
        return job
    if before["name"] != after["name"]:
        raise ConfigError(
            f"run {job.run_id} is of pipeline {before['name']!r}, and {pipeline} is {after['name']!r}"
        )
    if not accept_changes:
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise ConfigError(
            f"{pipeline} has changed since run {job.run_id} began: {', '.join(differing[:5])}{more}."
            " Put it back, leave the pipeline out to go on with what the run began with, or let the"
            " change re-plan what it touches with --accept-changes"
        )
    update = {name: getattr(now, name) for name in _FIXED}
    budgets = {stage.name: stage.budget for stage in job.pipeline.stages}
    update["stages"] = tuple(
        stage.model_copy(update={"budget": budgets.get(stage.name, stage.budget)})
        for stage in now.stages
    )
    return replace(job, pipeline=job.pipeline.model_copy(update=update))


def _differing(before: object, after: object, key: str = "") -> Iterator[str]:
    """Yield the keys, with dots, under which two JSON values differ; stages go by their name."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in before.keys() | after.keys():
            yield from _differing(before.get(name), after.get(name), f"{key}.{name}".lstrip("."))
    elif key == "stages" and isinstance(before, list) and isinstance(after, list):
        first, second = ({stage["name"]: stage for stage in found} for found in (before, after))
        yield from _differing(first, second, key)
        if [*first] != [*second] and first.keys() == second.keys():
            yield "stages (their order)"
    elif before != after:
        yield key


_MAY_CHANGE = re.compile(
    r"(stages\.[^.=]+\.)?budget\.\w+\s*=|stages\.[^.=]+\.batch_api(\.\w+)?\s*="
)
"""Settings that may change when a run goes on: what it may spend, and how it is sent."""


def _changed(job: Job, options: Options) -> Job:
    fixed = {
        "source": options.source,
        "mode": options.mode,
        "limit": options.limit,
        "fresh": options.fresh or None,
    }
    given = [name for name, value in fixed.items() if value is not None]
    fixed_settings = [one for one in options.settings if not _MAY_CHANGE.match(one)]
    if given or fixed_settings:
        raise ConfigError(
            f"--{given[0] if given else 'set'}: cannot change when a run goes on; start a new run"
        )
    pipeline = with_settings(job.pipeline, options.settings)
    budget = pipeline.budget
    changes = {
        "usd": options.budget_usd,
        "tokens": options.budget_tokens,
        "gpu_seconds": options.budget_gpu_seconds,
    }
    changed = {name: value for name, value in changes.items() if value is not None}
    update: dict[str, object] = {"budget": budget.model_copy(update=changed)} if changed else {}
    if options.engine is not None:
        update["engine"] = resolve_engine(options.engine, Path.cwd(), "--engine")
    if options.cache is not None:
        cache = resolve_folder(options.cache, Path.cwd())
        check_cache_place(cache, job.source, job.sink)
        update["cache"] = cache
    if options.failure_limit is not None:
        update["failure_limit"] = options.failure_limit
    return replace(job, pipeline=pipeline.model_copy(update=update))


def load_markers(job: Job, lake: Lake) -> dict[str, ShardReport]:
    """Return the reports of the shards that earlier attempts of the run have done, by shard."""
    if job.start == "new":
        return {}
    paths = [item.path for item in lake.storage.list(marker_path(job.run_id))]
    with ThreadPoolExecutor(_READ_AT_ONCE) as threads:
        found = threads.map(lake.find_json, paths)
        reports = [report_from_json(value) for value in found if value is not None]
    return {report.shard: report for report in reports}


def spent_before(job: Job, lake: Lake, markers: Mapping[str, ShardReport]) -> dict[str, Amount]:
    """Return what earlier attempts of the run spent, by stage, shards in the middle included."""
    if job.start == "new":
        return {}
    spent = [report.paid for report in markers.values()]
    for shard in journaled(lake):
        counted = markers[shard].claims if shard in markers else ()
        spent.append(journal_spent(lake, shard, job.run_id, counted))
    return add_amounts(spent)
