"""Prefect task wrappers: one call each, plus how Prefect runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed

from flows.run.commit import ShardReport
from flows.run.core import Worker
from flows.run.plan import ShardPlan

WINDOW = 8
"""Shards handed to Prefect at a time; a window bounds memory and task records in flight."""


def as_tasks(worker: Worker, shards: Sequence[ShardPlan]) -> Iterator[ShardReport]:
    """Yield the shards' reports as they finish, each shard a Prefect task run.

    The worker is bound to this process's clients, so the task is made here and runs in the flow's
    own thread pool. Nothing is cached: what is done is known from the sink, not from Prefect.
    """
    run: Callable[[ShardPlan], ShardReport] = worker

    @task(
        name="process-shard",
        task_run_name="{shard_name}",
        cache_policy=NO_CACHE,
        persist_result=False,
        tags=["headrace"],
    )
    def process_shard(shard_name: str, plan: ShardPlan) -> ShardReport:  # noqa: ARG001 - names the run
        return run(plan)

    for start in range(0, len(shards), WINDOW):
        window = shards[start : start + WINDOW]
        futures = [process_shard.submit(shard.shard, shard) for shard in window]
        for future in as_completed(futures):
            yield future.result()
