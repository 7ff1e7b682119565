"""The flows behind the run form: a corpus in, records and a report out; again for what failed.

Thin: Prefect names, shows and ends a run here; the work is flows.run's, which knows no Prefect.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect import flow
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import CancelledRun, FailedRun, ObjectNotFound, TerminationSignal
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run as this_flow_run
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from config.errors import ConfigError
from config.load import load_surroundings, set_environment
from connectors.errors import ConnectorError
from engine.errors import EngineError, PrerequisiteError
from engine.status import map_errors
from flows import parameters as p
from flows.approval_form import RUN_LABEL, SINK_LABEL, suspend, take_answer, was_suspended
from flows.artifacts import RunPage, report_address
from flows.automations import HEARTBEAT_S, STATE_NAMES
from flows.report.build import rebuild
from flows.report.words import batch_words
from flows.run.approvals import Ask
from flows.run.bench import NUM_SHARDS_AT_ONCE
from flows.run.core import run_job
from flows.run.job import Job, Options, make_job, new_run_id
from flows.run.progress import Listener, Progress
from flows.run.registry import known_runs, open_sink
from flows.run.resume import job_path, locate, reopen
from flows.run.shift import SHARDS_AHEAD
from flows.tasks import as_tasks

logger = logging.getLogger(__name__)

DEFAULT_PIPELINE = "demo"

APPROVAL_HOURS = 24.0
"""Longest time that a flow run is suspended for a person, by itself: until the next night's run."""

_KEPT = (
    "engine",
    "engine_url",
    "budget_usd",
    "budget_tokens",
    "budget_gpu_seconds",
    "failure_limit",
    "secret_blocks",
    "approval_hours",
)
"""Parameters that hold for what is left of a run, too."""


def _is_news(record: logging.LogRecord) -> bool:
    """Tell whether a line is more than the traceback of a state that says the same in words."""
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    return not isinstance(error, FailedRun | CancelledRun)


# Prefect's engine logs a run that ends Failed or Cancelled as an unexpected error, with its stack.
logging.getLogger("prefect.flow_runs").addFilter(_is_news)


def _name() -> str:
    values = this_flow_run.get_parameters()
    names = ("resume", "pipeline", "run", "flow_run")
    what = Path(str(next(filter(None, map(values.get, names)), "latest run"))).stem
    return f"{what} {datetime.now(UTC):%Y-%m-%d %H:%M}"


def _shards_at_once() -> TaskRunner[PrefectFuture[Any]]:
    runner: Any = ThreadPoolTaskRunner(max_workers=NUM_SHARDS_AT_ONCE + SHARDS_AHEAD)
    return cast(TaskRunner[PrefectFuture[Any]], runner)


@flow(
    name="process-corpus",
    flow_run_name=_name,
    task_runner=_shards_at_once(),
    persist_result=False,
)
def process_corpus(
    pipeline: p.Pipeline = DEFAULT_PIPELINE,
    source: p.Source = None,
    sink: p.Sink = None,
    engine: p.Engine = None,
    engine_url: p.EngineUrl = None,
    mode: p.Mode = None,
    limit: p.Limit = None,
    budget_usd: p.BudgetUsd = None,
    budget_tokens: p.BudgetTokens = None,
    budget_gpu_seconds: p.BudgetGpuSeconds = None,
    failure_limit: p.FailureLimit = None,
    cache: p.Cache = None,
    fresh: bool = False,
    settings: p.Settings = None,
    secret_blocks: p.SecretBlocks = None,
    run_id: p.NewRunId = None,
    resume: p.Resume = None,
    approval_hours: p.ApprovalHours = APPROVAL_HOURS,
) -> State[str]:
    """Read a corpus, ask every stage of the pipeline about it and write records and a report.

    Args:
        pipeline: What is asked of each document, by the name of a pipeline.
        source: Folder or bucket to read, such as /data/papers or s3://lake/papers; folders are those
            of the machine that runs the flow. Empty: the pipeline's own.
        sink: Folder or bucket to write tables and report to, such as /data/answers or
            s3://lake/answers; it belongs to one source and pipeline. Empty: the pipeline's own.
        engine: Profile of the model and its host. Empty: the pipeline's own.
        engine_url: Any OpenAI-compatible endpoint, such as http://gpu-box:8000/v1, in place of a
            profile.
        mode: How the model works, for every stage. Empty: as each stage says.
        limit: Most documents to read, in path order, such as 20. Empty: all.
        budget_usd: Most US dollars to spend, by the profile's prices; then the run stops and can be
            resumed. Empty: the pipeline's own.
        budget_tokens: Most tokens to spend, prompts and answers together. Empty: the pipeline's own.
        budget_gpu_seconds: Most seconds of GPU time to spend, by the profile's throughput. Empty: the
            pipeline's own.
        failure_limit: Share of requests, 0 to 1, that may end unanswered before the run counts as
            failed. Empty: the pipeline's own, 0.05 if it has none.
        cache: Folder or bucket of answers that pipelines share, such as s3://lake/shared. Empty: the
            pipeline's own.
        fresh: Whether every stage is asked anew, whatever earlier runs have been answered.
        settings: Any other keys of the pipeline, keys with dots, such as chunk.max_tokens=500.
        secret_blocks: Names of Prefect Secret blocks. Each is put into the environment variable of its
            name, moonshot-api-key into MOONSHOT_API_KEY. Never write a secret itself here, parameters
            are stored in plain text.
        run_id: Name of the run in the sink. Empty: made up from the time.
        resume: Id of an earlier run to go on with, such as 20261123T093000Z-4f2a, a part of it, or
            latest; what it has is kept and not paid for again. Pipeline, source, mode, limit, fresh and
            settings are that run's; engine, budgets (a stage's by settings, such as
            stages.kind.budget.usd=5), failure_limit, cache and secret_blocks may be new.
            Empty: a new run.
        approval_hours: Longest time that the flow run is suspended, without a process, where a stage or a
            call waits for a person; 0: it ends as AwaitingApproval at once. Either way the run can be gone on with.
    """
    options = Options(
        source=source or None,
        sink=sink or None,
        engine=engine_url or engine or None,
        mode=mode,
        limit=limit,
        budget_usd=budget_usd,
        budget_tokens=budget_tokens,
        budget_gpu_seconds=budget_gpu_seconds,
        failure_limit=failure_limit,
        cache=cache or None,
        fresh=fresh,
        settings=tuple(settings or ()),
    )
    if resume:
        return _conduct(
            lambda: _go_on(resume, pipeline, run_id, options), secret_blocks, approval_hours
        )
    name = run_id or new_run_id()
    return _conduct(lambda: make_job(pipeline, options, run_id=name), secret_blocks, approval_hours)


def _go_on(resume: str, pipeline: str, run_id: str | None, options: Options) -> Job:
    """Return the job that goes on with a run.

    Raises:
        ConfigError: There is no such run, it is still going on, or a parameter cannot change now.
    """
    fixed = {
        "source": options.source,
        "mode": options.mode,
        "limit": options.limit,
        "fresh": options.fresh,
        "run_id": run_id,
    }
    given = [name for name, value in fixed.items() if value]
    if given:
        raise ConfigError(
            f"{', '.join(given)}: cannot change when a run goes on; leave empty what it has already,"
            " or leave resume empty to start a new run"
        )
    job = reopen(None if resume == p.LATEST else resume, options.sink, "resume", options)
    # The form always sends a pipeline: its default says nothing.
    if pipeline not in {DEFAULT_PIPELINE, job.pipeline.name}:
        raise ConfigError(
            f"pipeline: run {job.run_id} asks {job.pipeline.name!r}, not {pipeline!r}; leave it at"
            f" {DEFAULT_PIPELINE!r}, or leave resume empty to start a new run"
        )
    return job


@flow(
    name="retry-failed",
    flow_run_name=_name,
    task_runner=_shards_at_once(),
    persist_result=False,
)
def retry_failed(
    run: p.EarlierRun = None,
    sink: p.Sink = None,
    engine: p.Engine = None,
    engine_url: p.EngineUrl = None,
    budget_usd: p.BudgetUsd = None,
    budget_tokens: p.BudgetTokens = None,
    budget_gpu_seconds: p.BudgetGpuSeconds = None,
    failure_limit: p.FailureLimit = None,
    secret_blocks: p.SecretBlocks = None,
    approval_hours: p.ApprovalHours = APPROVAL_HOURS,
) -> State[str]:
    """Ask again what a run left unanswered, and go on where it was cancelled or out of budget.

    Answers that the run has stay as they are and cost nothing.

    Args:
        run: Id of the run, such as 20261123T093000Z-4f2a, or a part of it. Empty: the latest.
        sink: Sink of the run. Empty: as the machine that runs the flow remembers it.
        engine: Profile to ask now. Empty: the run's own.
        engine_url: Any OpenAI-compatible endpoint, in place of a profile.
        budget_usd: Most US dollars to spend, what the run has spent included. Empty: the run's own.
        budget_tokens: Most tokens to spend, what the run has spent included. Empty: the run's own.
        budget_gpu_seconds: Most seconds of GPU time, those that the run has spent included. Empty: the
            run's own.
        failure_limit: Share of requests, 0 to 1, that may end unanswered. Empty: the run's own.
        secret_blocks: Names of Prefect Secret blocks, as for process-corpus.
        approval_hours: Longest time that the flow run is suspended for a person, as for process-corpus.
    """
    options = Options(
        engine=engine_url or engine or None,
        budget_usd=budget_usd,
        budget_tokens=budget_tokens,
        budget_gpu_seconds=budget_gpu_seconds,
        failure_limit=failure_limit,
    )
    return _conduct(
        lambda: reopen(run or None, sink or None, "retry", options), secret_blocks, approval_hours
    )


@flow(
    name="resume-crashed",
    flow_run_name=_name,
    task_runner=_shards_at_once(),
    persist_result=False,
)
def resume_crashed(flow_run: p.FlowRunId) -> State[str]:
    """Go on with the run of a flow run whose process died.

    Started by an automation of `headrace up`, once for each crashed run of process-corpus. Budgets and
    engine are those of the crashed flow run.

    Args:
        flow_run: Id of the crashed flow run, as in the address of its page.
    """
    with get_client(sync_client=True) as client:
        try:
            found = client.read_flow_run(UUID(flow_run))
            states = client.read_flow_run_states(found.id)
        except ObjectNotFound:
            found, states = None, []
    if was_suspended():
        # Somebody has answered the form of this flow run, whatever has become of the crashed one meanwhile.
        return process_corpus.fn(**_kept(found))
    if found is None:
        return Failed(message=f"flow_run: this server has no flow run {flow_run!r}")
    if found.state is None or not found.state.is_crashed():
        return Completed(message=f"flow run {found.name!r} is not Crashed: nothing to go on with")
    if any(state.type == StateType.CANCELLING for state in states):
        return Completed(message=f"flow run {found.name!r} was cancelled before its process died")
    return process_corpus.fn(**_parameters_to_go_on(found))


def _parameters_to_go_on(crashed: FlowRun) -> dict[str, Any]:
    """Return the parameters of process-corpus that go on with a crashed run, or start it anew."""
    run_id, sink = crashed.labels.get(RUN_LABEL), crashed.labels.get(SINK_LABEL)
    if run_id is None or sink is None:
        return dict(crashed.parameters)
    if open_sink(str(sink)).find_json(job_path(str(run_id))) is None:
        # It died before its first question, so there is nothing to go on with.
        return {**crashed.parameters, "run_id": str(run_id)}
    return {"resume": str(run_id), "sink": str(sink), **_kept(crashed)}


def _kept(crashed: FlowRun | None) -> dict[str, Any]:
    """Return the parameters that hold for what is left of a run; none where its flow run was deleted."""
    given = crashed.parameters if crashed else {}
    return {name: given[name] for name in _KEPT if name in given}


@flow(name="report", flow_run_name=_name, persist_result=False)
def report(
    run: p.EarlierRun = None, sink: p.Sink = None, secret_blocks: p.SecretBlocks = None
) -> State[str]:
    """Write a run's report anew from its tables.

    Args:
        run: Id of the run, such as 20261123T093000Z-4f2a, or a part of it. Empty: the latest.
        sink: Sink of the run. Empty: as the machine that runs the flow remembers it.
        secret_blocks: Names of Prefect Secret blocks, as for process-corpus.
    """
    try:
        _load_secrets(secret_blocks)
        run_id, _ = locate(run or None, sink or None)
        addresses = rebuild(run_id, sink or None)
    except (ConfigError, ConnectorError, EngineError) as exc:
        return Failed(message=str(exc))
    page = RunPage(run_id)
    page.link(addresses["html"])
    return Completed(message=f"report: {addresses['html']}")


@dataclass(slots=True)
class _Caller:
    """Who called a flow in this process: is shown its progress and learns how it ended."""

    listener: Listener
    ask: Ask | None
    error: Exception | None = None
    signal: signal.Signals | None = None


_caller: ContextVar[_Caller | None] = ContextVar("_caller", default=None)


def run_here(
    pipeline: str, options: Options, run_id: str, listener: Listener, ask: Ask | None = None
) -> None:
    """Run process-corpus in this process, as a flow run of the configured Prefect server.

    Args:
        pipeline: By name or file.
        options: What is given with it.
        run_id: Of the run.
        listener: Is shown the progress.
        ask: Asks whoever looks on to agree; None where nobody does, and what needs it waits.

    Raises:
        ConfigError: As run_job.
        ConnectorError: As run_job.
        EngineError: As run_job.
        PrerequisiteError: The Prefect server does not answer.
        KeyboardInterrupt: The run was interrupted.
    """
    caller = _Caller(listener, ask)
    token = _caller.set(caller)
    try:
        # The engine's map of HTTP errors serves for Prefect's client too: it uses the same one.
        beat = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: HEARTBEAT_S})
        with map_errors("the Prefect server"), beat:
            process_corpus(
                pipeline=pipeline,
                source=options.source,
                sink=options.sink,
                engine=options.engine,
                mode=options.mode,
                limit=options.limit,
                budget_usd=options.budget_usd,
                budget_tokens=options.budget_tokens,
                budget_gpu_seconds=options.budget_gpu_seconds,
                failure_limit=options.failure_limit,
                cache=options.cache,
                fresh=options.fresh,
                settings=[*options.settings],
                run_id=run_id,
                return_state=True,
            )
    except EngineError as exc:
        url = load_surroundings().prefect_api_url
        raise PrerequisiteError(
            f"the Prefect server at {url} does not answer; start it with `headrace up`, or unset"
            " PREFECT_API_URL to run without it"
        ) from exc
    finally:
        _caller.reset(token)
    if caller.error is not None:
        raise caller.error
    if caller.signal is not None:
        # Prefect took the signal to end the run in order; now it is the caller's.
        signal.raise_signal(caller.signal)


def _conduct(
    start: Callable[[], Job], secret_blocks: Sequence[str] | None, approval_hours: float
) -> State[str]:
    """Run the job that `start` makes, and return the state that says how it ended.

    A flow run that was suspended for a person goes on with its run instead.
    """
    caller, job = _caller.get(), None
    try:
        _load_secrets(secret_blocks)
        suspended = take_answer()
        job = reopen(*suspended, "resume") if suspended else start()
        manifest = _run_while_decided(job, caller, approval_hours)
        return _state(manifest, job)
    except (ConfigError, ConnectorError, EngineError) as exc:
        if caller is not None:
            caller.error = exc
        begun = job is not None and any(entry.run_id == job.run_id for entry in known_runs())
        hint = f"; then go on with: {_how_to_go_on(job.run_id)}" if job and begun else ""
        return Failed(message=f"{exc}{hint}")
    except (KeyboardInterrupt, TerminationSignal) as exc:
        if caller is not None:
            ended = isinstance(exc, TerminationSignal)
            caller.signal = signal.SIGTERM if ended else signal.SIGINT
        kept = f"; what is done is kept, go on with: {_how_to_go_on(job.run_id)}" if job else ""
        return Cancelled(message=f"cancelled{kept}")


def _run_while_decided(job: Job, caller: _Caller | None, hours: float) -> Mapping[str, Any]:
    """Run a job, and go on with its run as often as all that it waits for was decided while it ran."""
    manifest, num_decided = _run(job, caller), 0
    while manifest["verdict"] == "awaiting_approval":
        before = num_decided
        num_decided = suspend(job.run_id, job.sink, hours=hours, report=report_address(manifest))
        # What was decided already and still is to do waits for something else, such as a larger budget.
        if num_decided <= before:
            break
        manifest = _run(reopen(job.run_id, job.sink, "resume"), caller)
    return manifest


def _how_to_go_on(run_id: str) -> str:
    return f"headrace run --resume {run_id} or, in the form of process-corpus, resume: {run_id}"


def _run(job: Job, caller: _Caller | None) -> Mapping[str, Any]:
    page = RunPage(job.run_id)
    page.open({RUN_LABEL: job.run_id, SINK_LABEL: job.sink})
    progress = Progress(page.show)
    if caller is not None:
        progress.listen(caller.listener)
    try:
        dispatch = as_tasks(job.pipeline.name)
        manifest = run_job(
            job,
            dispatch=dispatch,
            progress=progress,
            notify=logger.info,
            ask=caller.ask if caller else None,
        )
    finally:
        page.close()
    page.conclude(manifest)
    return manifest


def _state(manifest: Mapping[str, Any], job: Job) -> State[str]:
    run_id, verdict = job.run_id, manifest["verdict"]
    where = f"report: {report_address(manifest)}"
    if verdict == "complete":
        return Completed(message=f"run {run_id}; {where}")
    requests = manifest["requests"]
    said = {
        "over_failure_limit": f"{requests['unanswered']} of {requests['asked']} requests went"
        f" unanswered, more than failure_limit {manifest['failure_limit']}; ask them again with:"
        f" headrace retry {run_id} or, in the form of retry-failed, run: {run_id}",
        "budget_reached": f"go on with a larger budget: {_how_to_go_on(run_id)}",
        "awaiting_approval": f"decide with: headrace approve {run_id}; then {_how_to_go_on(run_id)}",
        "awaiting_batch": f"{batch_words(manifest['batches'])}; go on when the host has answered:"
        f" {_how_to_go_on(run_id)}",
        "incomplete": f"outcomes do not add up; go on with: {_how_to_go_on(run_id)}",
    }
    return Failed(name=STATE_NAMES[verdict], message=f"run {run_id}: {said[verdict]}; {where}")


def _load_secrets(names: Sequence[str] | None) -> None:
    """Put the values of Secret blocks into the environment, where clients look for them.

    Raises:
        ConfigError: There is no such block.
    """
    for name in names or ():
        try:
            value = cast(Secret[str], Secret.load(name)).get()
        except ValueError as exc:
            raise ConfigError(
                f"secret_blocks: there is no Secret block {name!r}; make it in the Prefect UI under"
                " Blocks, type Secret"
            ) from exc
        set_environment({name.upper().replace("-", "_"): str(value)})
