"""Goes on with a run that was interrupted, stopped by its budget, or left requests unanswered.

What the run has done is read from its folder in the sink; the machine that made it is not needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from config.errors import ConfigError
from config.load import resolve_engine
from connectors.sinks.lake import Lake
from engine.batch import Amount
from engine.request import Result
from flows.run.answers import Answers
from flows.run.commit import UNANSWERED, ShardReport, StageCount, marker_path, report_from_json
from flows.run.job import Job, Options, job_from_json
from flows.run.plan import ShardPlan
from flows.run.registry import find_run, known_runs, open_sink


def job_path(run_id: str) -> str:
    """Return where a run's resolved job lies in its sink."""
    return f"runs/{run_id}/run.json"


def plan_path(run_id: str) -> str:
    """Return where a run's plan lies in its sink."""
    return f"runs/{run_id}/plan.json"


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
        options: Budget, failure limit and engine may be changed; the rest is the run's.

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


def _changed(job: Job, options: Options) -> Job:
    fixed = {"source": options.source, "mode": options.mode, "limit": options.limit}
    given = [name for name, value in fixed.items() if value is not None]
    if given or options.settings:
        raise ConfigError(
            f"--{given[0] if given else 'set'}: cannot change when a run goes on; start a new run"
        )
    pipeline, budget = job.pipeline, job.pipeline.budget
    changes = {"usd": options.budget_usd, "tokens": options.budget_tokens}
    changed = {name: value for name, value in changes.items() if value is not None}
    update: dict[str, object] = {"budget": budget.model_copy(update=changed)} if changed else {}
    if options.engine is not None:
        update["engine"] = resolve_engine(options.engine, Path.cwd(), "--engine")
    if options.failure_limit is not None:
        update["failure_limit"] = options.failure_limit
    return replace(job, pipeline=pipeline.model_copy(update=update))


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What earlier attempts of a run have done."""

    reports: tuple[ShardReport, ...] = ()
    """Reports of shards that stand as they are."""
    spent: Amount = field(default_factory=Amount)
    """What they took of the budget, open shards' saved answers included."""


def load_done(job: Job, lake: Lake, shards: list[ShardPlan]) -> Done:
    """Return what stands of a run's earlier attempts; nothing for a new run."""
    if job.start == "new":
        return Done()
    reports, spent = [], Amount()
    for shard in shards:
        marker = lake.find_json(marker_path(job.run_id, shard.shard))
        report = report_from_json(marker) if marker is not None else None
        if report is not None and not _is_open(job, report):
            reports.append(report)
            for stage in report.stages.values():
                spent += _of_stage(stage)
            continue
        answers = Answers(lake, job.run_id, shard.shard)
        answers.load("resume")
        for result in answers.results():
            spent += _of_result(result)
    return Done(reports=tuple(reports), spent=spent)


def _is_open(job: Job, report: ShardReport) -> bool:
    """Tell whether a committed shard has requests that this attempt sends again."""
    again = {"over_budget"} if job.start == "resume" else UNANSWERED
    return any(stage.outcomes.get(outcome) for stage in report.stages.values() for outcome in again)


def _of_stage(stage: StageCount) -> Amount:
    return Amount(tokens=stage.prompt_tokens + stage.completion_tokens, usd=stage.cost_usd or 0.0)


def _of_result(result: Result) -> Amount:
    usage = result.usage
    return Amount(tokens=usage.prompt_tokens + usage.completion_tokens, usd=result.cost_usd or 0.0)
