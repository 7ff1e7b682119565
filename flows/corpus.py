"""The flow behind every run: a corpus in, records and a report out."""

from __future__ import annotations

import logging
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.artifacts import ProgressArtifact, publish_summary
from flows.run.bench import NUM_SHARDS_AT_ONCE
from flows.run.core import run_job
from flows.run.job import make_job
from flows.run.progress import Listener, Progress, Snapshot
from flows.tasks import as_tasks

logger = logging.getLogger(__name__)

_STATE_NAMES = {"over_failure_limit": "OverFailureLimit", "incomplete": "Incomplete"}


@flow(
    name="process-corpus",
    task_runner=ThreadPoolTaskRunner(max_workers=NUM_SHARDS_AT_ONCE),  # type: ignore[arg-type]
    persist_result=False,
)
def process_corpus(
    pipeline: str,
    source: str | None = None,
    sink: str | None = None,
    engine: str | None = None,
    limit: int | None = None,
    run_id: str | None = None,
) -> State[str]:
    """Read a corpus, ask every stage of the pipeline about it and write records and a report.

    Args:
        pipeline: Path of the pipeline's YAML file on the machine that runs the flow.
        source: Folder or bucket to read, in place of the pipeline's own.
        sink: Folder or bucket to write, in place of the pipeline's own.
        engine: Profile name or endpoint URL, in place of the pipeline's own.
        limit: Most documents to read.
        run_id: Name of the run; made up where it is left out.
    """
    job = make_job(
        Path(pipeline), source=source, sink=sink, engine=engine, limit=limit, run_id=run_id
    )
    listeners: list[Listener] = [ProgressArtifact(job.run_id)]
    if _terminal is not None:
        listeners.append(_terminal)
    progress = Progress(lambda snapshot: _tell(listeners, snapshot))
    manifest = run_job(job, dispatch=as_tasks, progress=progress, notify=logger.info)
    publish_summary(manifest)
    message = f"run {job.run_id}: report at {manifest['report']['html']}"
    if manifest["verdict"] == "complete":
        return Completed(message=message)
    return Failed(name=_STATE_NAMES[manifest["verdict"]], message=message)


_terminal: Listener | None = None


def show_progress_with(listener: Listener) -> None:
    """Have flow runs of this process tell `listener` too; the CLI draws its bar with it."""
    global _terminal
    _terminal = listener


def _tell(listeners: list[Listener], snapshot: Snapshot) -> None:
    for listener in listeners:
        listener(snapshot)
