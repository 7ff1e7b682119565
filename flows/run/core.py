"""Runs a job from listing to manifest and report, without Prefect.

A caller passes how shards are dispatched: the CLI runs them in threads, a flow runs them as tasks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from config.errors import ConfigError
from connectors.errors import ConnectorError
from connectors.sinks.lake import Lake
from connectors.storage import STAGING_PREFIX, Source
from engine.errors import EngineError
from flows.report.build import write_report
from flows.run import commit, plan, registry
from flows.run.bench import NUM_SHARDS_AT_ONCE, Bench, chunk_size_path, open_bench
from flows.run.commit import ShardReport
from flows.run.job import Job
from flows.run.log import run_log
from flows.run.manifest import manifest
from flows.run.plan import ShardPlan
from flows.run.progress import Progress, Snapshot
from flows.run.registry import RunEntry
from flows.run.resume import job_path, load_done, manifest_path, plan_path
from flows.run.shard import process_shard

logger = logging.getLogger(__name__)

LAYOUT = 3
"""Version of the sink's layout; a sink written by another one is refused."""

SINK_FILE = STAGING_PREFIX.split("/", maxsplit=1)[0] + "/sink.json"

_WAIT_S = 0.5

Worker = Callable[[ShardPlan], ShardReport]
Dispatch = Callable[[Worker, Sequence[ShardPlan]], Iterator[ShardReport]]


def in_threads(worker: Worker, shards: Sequence[ShardPlan]) -> Iterator[ShardReport]:
    """Yield the shards' reports as they finish, a few shards at a time in this process."""
    threads = ThreadPoolExecutor(NUM_SHARDS_AT_ONCE, thread_name_prefix="shard")
    try:
        pending = {threads.submit(worker, shard) for shard in shards}
        while pending:
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
    shards, num_listed = _plan(job)
    done = load_done(job, job.open_lake(), shards)
    finished = {report.shard for report in done.reports}
    left = [shard for shard in shards if shard.shard not in finished]
    if done.reports:
        notify(f"run {job.run_id}: {len(finished)} of {len(shards)} shards are done already")
    progress.add(documents=sum(len(shard.sources) for shard in left))
    progress.enter("opening the engine")
    at_once = min(NUM_SHARDS_AT_ONCE, max(1, len(left)))
    with open_bench(job, progress, notify, spent=done.spent, at_once=at_once) as bench:
        # The run begins here: what was misspelt so far has left no trace in the sink.
        _begin(bench, shards)
        with _remembered(job, started, progress), _logged(job):
            progress.enter("processing")
            reports = [*done.reports, *dispatch(lambda shard: process_shard(bench, shard), left)]
            value = _conclude(bench, reports, num_listed=num_listed, started=started)
            progress.enter("done")
    return value


def _conclude(
    bench: Bench, reports: Sequence[ShardReport], *, num_listed: int, started: datetime
) -> dict[str, Any]:
    """Write the manifest and the report, and return the manifest."""
    bench.progress.enter("reporting")
    total = commit.add_up(reports)
    value = manifest(bench, total, num_listed=num_listed, num_shards=len(reports), started=started)
    value["report"] = write_report(bench, value)
    path = manifest_path(bench.job.run_id)
    earlier = bench.lake.storage.find(path)
    if earlier is not None:
        number = len([*bench.lake.storage.list(f"runs/{bench.job.run_id}/attempts")]) + 1
        bench.lake.storage.put(f"runs/{bench.job.run_id}/attempts/{number:03d}.json", earlier)
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
    """Writes a run's counts into this machine's entry of it, not more than once a second."""

    def __init__(self, entry: RunEntry) -> None:
        self.entry = entry
        self._told_s = -1.0

    def __call__(self, snapshot: Snapshot) -> None:
        """Write the counts, if the last ones are old enough."""
        if snapshot.elapsed_s - self._told_s < 1.0 and snapshot.phase != "done":
            return
        self._told_s = snapshot.elapsed_s
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


def _plan(job: Job) -> tuple[list[ShardPlan], int]:
    """Return the shards and the number of documents in them: listed now, or as planned before.

    Raises:
        ConfigError: The source holds nothing to read, the sink is another's, or the run has no plan.
    """
    source, lake = job.open_source(), job.open_lake()
    if job.start != "new":
        _check_sink(lake, lake.find_json(SINK_FILE) or {}, _identity(job, source))
        planned = lake.find_json(plan_path(job.run_id))
        if planned is None:
            raise ConfigError(f"run {job.run_id} has no plan in {lake.url}; start a new run")
        shards = plan.plan_from_json(planned)
        return shards, sum(len(shard.sources) for shard in shards)
    listed = plan.list_sources(source, job.pipeline.include)
    held = lake.find_json(SINK_FILE)
    if held is not None:
        _check_sink(lake, held, _identity(job, source))
    table = lake.read_table("documents", ["path", "shard"])
    known = dict(table.iter_rows()) if table is not None else {}
    sources = plan.select(listed, known, job.limit)
    if not known:
        plan.require_match(sources, job.source, job.pipeline.include)
    return plan.cut_shards(sources, known, job.pipeline.documents_per_shard), len(sources)


def _begin(bench: Bench, shards: Sequence[ShardPlan]) -> None:
    """Bind the sink to its source and pipeline for good, and put what a later attempt needs.

    Raises:
        ConfigError: The sink is bound to others already.
    """
    job, lake = bench.job, bench.lake
    identity = _identity(job, bench.source)
    _check_sink(lake, lake.claim(SINK_FILE, identity), identity)
    if job.pipeline.chunk.max_tokens is None:
        # Two first runs may begin at once, with prompts that leave different room.
        size = {"max_tokens": bench.rule.max_tokens, "counter": bench.rule.name}
        held = lake.claim(chunk_size_path(bench.endpoint), size)
        if held != size:
            raise ConfigError(
                f"sink {lake.url!r} has just been given chunks of {held['max_tokens']:,} tokens by"
                f" another run, and this one meant {bench.rule.max_tokens:,}; start it again"
            )
    if job.start == "new":
        lake.put_json(job_path(job.run_id), job.as_json())
        lake.put_json(plan_path(job.run_id), plan.plan_as_json(shards))


def _identity(job: Job, source: Source) -> dict[str, Any]:
    return {"layout": LAYOUT, "pipeline": job.pipeline.name, "source": source.url}


def _check_sink(lake: Lake, held: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Check that the sink is bound to this source and pipeline.

    Raises:
        ConfigError: It is bound to others.
    """
    for key, value in identity.items():
        if held.get(key) != value:
            raise ConfigError(
                f"sink {lake.url!r} belongs to {key} {held.get(key)!r}, not {value!r};"
                " choose another --sink"
            )
