"""Prefect task wrappers: one call each, plus how Prefect runs it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import as_completed
from prefect.states import Cancelled, Failed

from config.errors import ConfigError
from connectors.errors import ConnectorError
from engine.errors import EngineError
from flows.run.commit import ShardReport
from flows.run.core import Dispatch, Worker
from flows.run.plan import ShardPlan

WINDOW = 8
"""Shards handed to Prefect at a time; a window bounds memory and task records in flight."""


def as_tasks(pipeline: str) -> Dispatch:
    """Return a dispatch that makes each shard a Prefect task run, named `pipeline/shard`.

    The worker is bound to this process's clients, so the task is made here and runs in the flow's
    own thread pool. Nothing is cached: what is done is known from the sink, not from Prefect.
    """

    def dispatch(worker: Worker, shards: Sequence[ShardPlan]) -> Iterator[ShardReport]:
        run: Callable[[ShardPlan], ShardReport] = worker
        stopped = threading.Event()

        @task(
            name="process-shard",
            task_run_name="{pipeline}/{shard}",
            cache_policy=NO_CACHE,
            persist_result=False,
            tags=["headrace"],
        )
        def process_shard(
            pipeline: str,  # noqa: ARG001 - names the run
            shard: str,  # noqa: ARG001 - names the run
            plan: ShardPlan,
        ) -> ShardReport | State[Any]:
            try:
                return _cancelled() if stopped.is_set() else run(plan)
            except asyncio.CancelledError:
                return _cancelled()
            except (ConfigError, ConnectorError, EngineError) as exc:
                # Raised, it would be logged with its whole traceback; the message says it all.
                return _cancelled() if stopped.is_set() else Failed(message=str(exc), data=exc)

        try:
            for start in range(0, len(shards), WINDOW):
                window = shards[start : start + WINDOW]
                futures = [process_shard.submit(pipeline, shard.shard, shard) for shard in window]
                for future in as_completed(futures):
                    yield cast(ShardReport, future.result())
        finally:
            # Ended early, the bench closes under the shards that are still in work.
            stopped.set()

    return dispatch


def _cancelled() -> State[Any]:
    return Cancelled(message="the run was interrupted; answers so far are saved")
