"""Prefect task wrappers: one call each, plus how Prefect runs it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import as_completed
from prefect.states import Cancelled, Failed
from prefect.tasks import Task

from config.errors import ConfigError
from connectors.errors import ConnectorError
from engine.errors import EngineError
from flows.run.counts import ShardReport
from flows.run.plan import ShardPlan
from flows.run.work import Dispatch, Worker

logger = logging.getLogger(__name__)

WINDOW = 8
"""Shards handed to Prefect at a time; a window bounds memory and task records in flight."""

RETRY_WAITS_S = (10.0, 30.0, 60.0)
"""Seconds before each further try of a shard whose storage or engine did not answer."""


def _without_empty_stack(record: logging.LogRecord) -> bool:
    """Drop the stack of a line that has none: it would be printed as `NoneType: None`."""
    if isinstance(record.exc_info, tuple) and record.exc_info[1] is None:
        record.exc_info = None
    return True


# A task that returns its failed state is logged with the stack of an error that nobody raised.
logging.getLogger("prefect.task_runs").addFilter(_without_empty_stack)


def as_tasks(pipeline: str, waits_s: Sequence[float] = RETRY_WAITS_S) -> Dispatch:
    """Return a dispatch that makes each shard a Prefect task run, named `pipeline/shard`.

    The worker is bound to this process's clients, so the task is made here and runs in the flow's
    own thread pool. Nothing is cached: what is done is known from the sink, not from Prefect. For the
    same reason a shard can be tried again: the sink has its answers, and none is paid for twice.

    Args:
        pipeline: Names the task runs.
        waits_s: Seconds before each further try, after an error that may pass by itself.
    """

    def dispatch(worker: Worker, shards: Iterable[ShardPlan]) -> Iterator[ShardReport | None]:
        run: Callable[[ShardPlan], ShardReport | None] = worker
        stopped = threading.Event()
        tries: Counter[str] = Counter()

        @task(
            name="process-shard",
            task_run_name="{pipeline}/{shard}",
            cache_policy=NO_CACHE,
            persist_result=False,
            tags=["headrace"],
            retries=len(waits_s),
            retry_condition_fn=_may_pass,
        )
        def process_shard(
            pipeline: str,  # noqa: ARG001 - names the run
            shard: str,
            plan: ShardPlan,
        ) -> ShardReport | State[Any] | None:
            tries[shard] += 1
            if tries[shard] > 1:
                # Not Prefect's own delay: that is a sleep, which would outlast an interrupted run.
                stopped.wait(waits_s[tries[shard] - 2])
            try:
                return _cancelled() if stopped.is_set() else run(plan)
            except asyncio.CancelledError:
                return _cancelled()
            except (ConfigError, ConnectorError, EngineError) as exc:
                # Raised, it would be logged with its whole traceback; the message says it all.
                return _cancelled() if stopped.is_set() else Failed(message=str(exc), data=exc)

        try:
            left = iter(shards)
            while window := list(itertools.islice(left, WINDOW)):
                futures = [process_shard.submit(pipeline, shard.shard, shard) for shard in window]
                for future in as_completed(futures):
                    yield cast("ShardReport | None", future.result())
        finally:
            # Ended early, the bench closes under the shards that are still in work.
            stopped.set()

    return dispatch


def _may_pass(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Tell whether the error of a failed state is one that the same call may not meet again."""
    error = state.data
    return isinstance(error, ConnectorError | EngineError) and error.retryable


def _cancelled() -> State[Any]:
    return Cancelled(message="the run was interrupted; answers so far are saved")
