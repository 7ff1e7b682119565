"""Runs a pipeline on its first documents, so that a plan rests on answers and not on their limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from config.errors import ConfigError
from flows.report.words import counted
from flows.run.assignments import Assignments
from flows.run.core import run_job
from flows.run.job import Job, new_run_id
from flows.run.progress import Progress


def run_pilot(
    job: Job, num_documents: int, progress: Progress, notify: Callable[[str], None]
) -> Mapping[str, Any]:
    """Return what a run on the first documents took; its answers stay in the job's own sink.

    A later run finds them there and pays nothing for them; stages over groups and the corpus are asked
    anew, since they are about more then. The pipeline's budget holds for the pilot too.

    Raises:
        ConfigError: The sink holds more documents already, or the pipeline does not fit.
        ConnectorError: Source or sink cannot be reached.
        EngineError: The engine cannot be reached, started or used.
    """
    limit = min(num_documents, job.limit or num_documents)
    held = len(Assignments(job.open_lake()).shard_of)
    if held > limit:
        raise ConfigError(
            f"--pilot {num_documents}: the sink already holds {counted(held, 'document')}; a plan without"
            f" --pilot goes by their answers; give --pilot {held} to ask them as the pipeline asks now, or"
            " another --sink"
        )
    manifest = run_job(
        replace(job.at_once(), run_id=new_run_id(), limit=limit), progress=progress, notify=notify
    )
    return {
        "run_id": manifest["run_id"],
        "verdict": manifest["verdict"],
        "documents": manifest["documents"]["listed"],
        "requests": sum(stage["requests"] for stage in manifest["stages"].values()),
        "tokens": manifest["spent"]["tokens"],
        "cost_usd": manifest["spent"]["usd"],
        "seconds": manifest["seconds"],
    }
