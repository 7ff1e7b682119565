"""Runs a job from listing to manifest and report, without Prefect.

A caller passes how shards are dispatched: the CLI runs them in threads, a flow runs them as tasks.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from config.errors import ConfigError
from connectors.errors import ConnectorError
from engine.errors import EngineError
from flows.report.build import write_report
from flows.run import counts, registry
from flows.run.approvals import Ask
from flows.run.begin import (
    SINK_FILE,
    check_before,
    check_sink,
    identity_of,
    open_planner,
)
from flows.run.bench import NUM_SHARDS_AT_ONCE, Bench, open_bench
from flows.run.chunk_size import chunk_size_path
from flows.run.conditions import check_conditions
from flows.run.counts import ShardReport
from flows.run.job import Job
from flows.run.log import run_log
from flows.run.manifest import manifest
from flows.run.plan import Planner, Retry, ShardPlan
from flows.run.progress import Progress, Snapshot
from flows.run.registry import RunEntry
from flows.run.resume import job_path, load_markers, manifest_path, spent_before
from flows.run.shift import SHARDS_AHEAD
from flows.run.work import Dispatch, Work, Worker

logger = logging.getLogger(__name__)

_WAIT_S = 0.5


def in_threads(worker: Worker, shards: Iterable[ShardPlan]) -> Iterator[ShardReport | None]:
    """Yield the shards' reports as they finish, a few shards at a time in this process."""
    num_open = NUM_SHARDS_AT_ONCE + SHARDS_AHEAD
    threads = ThreadPoolExecutor(num_open, thread_name_prefix="shard")
    left = iter(shards)
    pending: set[Future[ShardReport | None]] = set()
    try:
        while True:
            # One more than places, so that none is free while the next shard is planned.
            for shard in itertools.islice(left, num_open + 1 - len(pending)):
                pending.add(threads.submit(worker, shard))
            if not pending:
                return
            # Waits in steps, so that the main thread sees Ctrl-C whichever thread got the signal.
            done, pending = wait(pending, timeout=_WAIT_S, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        # Not waited for: on an error or Ctrl-C the closing bench ends the shards still in work.
        threads.shutdown(wait=False, cancel_futures=True)


def run_job(
    job: Job,
    *,
    dispatch: Dispatch = in_threads,
    progress: Progress | None = None,
    notify: Callable[[str], None] = lambda _: None,
    ask: Ask | None = None,
) -> Mapping[str, Any]:
    """Run the job and return its manifest, which is also in the sink.

    On Ctrl-C the shards in work save the answers they have, and KeyboardInterrupt goes on its way.

    Raises:
        ConfigError: The pipeline, a limit or the sink does not fit.
        ConnectorError: Source or sink cannot be reached.
        EngineError: The engine cannot be reached, started or used.
    """
    progress = progress or Progress()
    started = datetime.now(UTC)
    progress.enter("listing")
    listed = check_before(job)
    lake = job.open_lake()
    markers = load_markers(job, lake)
    spent = spent_before(job, lake, markers)
    progress.enter("opening the engine")
    with open_bench(job, progress, notify, spent=spent, ask=ask) as bench:
        # The run begins here: what was misspelt so far has left no trace in the sink.
        _begin(bench)
        if job.start != "new":
            bench.stage_approval.withdraw_old(job.pipeline.stages)
        if bench.desk is not None:
            # Batches of what was refused are kept for whoever agrees to it in a later run.
            kept = {name for name, one in markers.items() if one.is_to_go_on or one.is_refused}
            bench.desk.begin([name for name in markers if name not in kept])
        with _remembered(job, started, progress), _logged(job):
            progress.enter("processing")
            work = Work(bench, open_planner(bench, listed), dispatch, notify, markers)
            reports = work.reports()
            reports += work.gather(reports)
            value = _conclude(bench, reports, work.planner, started)
            progress.enter("done")
    return value


def _conclude(
    bench: Bench, reports: Sequence[ShardReport], planner: Planner | Retry, started: datetime
) -> dict[str, Any]:
    """Write the manifest and the report, and return the manifest."""
    bench.progress.enter("reporting")
    value = manifest(
        bench, counts.add_up(reports), planner, num_shards=len(reports), started=started
    )
    value["report"] = write_report(bench, value)
    path = manifest_path(bench.job.run_id)
    earlier = bench.lake.storage.find(path)
    if earlier is not None:
        number = len([*bench.lake.storage.list(f"runs/{bench.job.run_id}/attempts")]) + 1
        bench.lake.storage.put(f"runs/{bench.job.run_id}/attempts/{number:03d}.json", earlier.data)
    bench.lake.put_json(path, value)
    return value


@contextmanager
def _remembered(job: Job, started: datetime, progress: Progress) -> Iterator[None]:
    """Keep this machine's entry of the run up to date while it goes on and when it ends.

    Raises:
        ConfigError: As raised inside.
        ConnectorError: As raised inside.
        EngineError: As raised inside.
    """
    entry = registry.register(job, started.isoformat(timespec="seconds"))
    keep = _Keeper(entry)
    progress.listen(keep)
    try:
        yield
    except (ConfigError, ConnectorError, EngineError) as exc:
        registry.update(keep.entry, verdict=f"failed: {exc}")
        raise
    found = job.open_lake().find_json(manifest_path(job.run_id))
    registry.update(keep.entry, verdict=found["verdict"] if found else "incomplete")


class _Keeper:
    """Writes a run's counts into this machine's entry of it, once a second at most within a phase."""

    def __init__(self, entry: RunEntry) -> None:
        self.entry = entry
        self._told_s = -1.0
        self._phase = ""

    def __call__(self, snapshot: Snapshot) -> None:
        """Write the counts, if the last ones are old enough, or of another phase: a wait may last for days."""
        if snapshot.elapsed_s - self._told_s < 1.0 and snapshot.phase == self._phase:
            return
        self._told_s, self._phase = snapshot.elapsed_s, snapshot.phase
        self.entry = registry.update(self.entry, progress=asdict(snapshot))


@contextmanager
def _logged(job: Job) -> Iterator[None]:
    """Keep the run's log on this machine, and put it into the sink at the end."""
    file = registry.runs_folder() / f"{job.run_id}.log"
    try:
        with run_log(file):
            logger.info(
                "run_id=%s pipeline=%s source=%s sink=%s start=%s",
                job.run_id,
                job.pipeline.name,
                job.source,
                job.sink,
                job.start,
            )
            yield
    finally:
        _put_log(job, file)


def _put_log(job: Job, file: Path) -> None:
    storage = job.open_lake().storage
    try:
        if storage.find(SINK_FILE) is not None:
            storage.put(f"runs/{job.run_id}/run.log", file.read_bytes())
    except (ConnectorError, OSError) as exc:
        logger.warning("the run's log stays at %s: %s", file, exc)


def _begin(bench: Bench) -> None:
    """Bind the sink to its source and pipeline for good, and put what a later attempt needs.

    Raises:
        ConfigError: The sink is bound to others already, or cannot keep two runs apart.
    """
    job, lake = bench.job, bench.lake
    identity = identity_of(job, bench.source)
    if lake.find_json(SINK_FILE) is None:
        check_conditions(lake.storage)
    check_sink(lake, lake.claim(SINK_FILE, identity), identity)
    if job.pipeline.chunk.max_tokens is None:
        # Two first runs may begin at once, with prompts that leave different room.
        for one in (bench, *([bench.sensitive] if bench.sensitive else [])):
            size = {"max_tokens": one.rule.max_tokens, "counter": one.rule.name}
            held = lake.claim(chunk_size_path(one.endpoint, one.passage.name), size)
            if held != size:
                raise ConfigError(
                    f"sink {lake.url!r} has just been given chunks of {held['max_tokens']:,} tokens by"
                    f" another run, and this one meant {one.rule.max_tokens:,}; start it again"
                )
    lake.put_json(job_path(job.run_id), job.as_json())
