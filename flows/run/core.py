"""Runs a job from listing to manifest and report, without Prefect.

A caller passes how shards are dispatched: the CLI runs them in threads, a flow runs them as tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from typing import Any

from config.errors import ConfigError
from connectors.storage import STAGING_PREFIX
from flows.report.build import write_report
from flows.run import commit, plan
from flows.run.bench import NUM_SHARDS_AT_ONCE, Bench, open_bench
from flows.run.commit import ShardReport
from flows.run.job import Job
from flows.run.plan import ShardPlan
from flows.run.progress import Progress
from flows.run.shard import process_shard

LAYOUT = 1
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

    Raises:
        ConfigError: The pipeline, a limit or the sink does not fit.
        ConnectorError: Source or sink cannot be reached.
        EngineError: The engine cannot be reached, started or used.
    """
    progress = progress or Progress()
    started = datetime.now(UTC)
    progress.enter("opening")
    with open_bench(job, progress, notify) as bench:
        progress.enter("listing")
        shards, num_listed = _plan(bench)
        progress.add(documents=num_listed)
        progress.enter("processing")
        reports = [*dispatch(lambda shard: process_shard(bench, shard), shards)]
        total = commit.add_up(reports)
        manifest = commit.manifest(
            bench, total, num_listed=num_listed, num_shards=len(shards), started=started
        )
        progress.enter("reporting")
        report = write_report(bench, manifest)
        manifest = {**manifest, "report": report}
        bench.lake.put_json(f"runs/{job.run_id}/manifest.json", manifest)
        progress.enter("done")
    return manifest


def _plan(bench: Bench) -> tuple[list[ShardPlan], int]:
    """List the source and return the shards and the number of documents in them.

    Raises:
        ConfigError: The source holds nothing to read.
    """
    job = bench.job
    # Listed before the sink is claimed: a misspelt source must not bind it.
    listed = plan.list_sources(bench.source, job.pipeline.include)
    _claim_sink(bench)
    table = bench.lake.read_table("documents", ["path", "shard"])
    known = dict(table.iter_rows()) if table is not None else {}
    sources = plan.select(listed, known, job.limit)
    if not sources and not known:
        raise ConfigError(
            f"source {job.source!r} has no object that matches include"
            f" {list(job.pipeline.include)}; check the path and the globs"
        )
    shards = plan.cut_shards(sources, known, job.pipeline.documents_per_shard)
    bench.lake.put_json(
        f"runs/{job.run_id}/plan.json",
        {"shards": {shard.shard: [source.path for source in shard.sources] for shard in shards}},
    )
    return shards, len(sources)


def _claim_sink(bench: Bench) -> None:
    """Bind the sink to its source and pipeline, for good.

    Raises:
        ConfigError: The sink is bound to others already.
    """
    identity = {
        "layout": LAYOUT,
        "pipeline": bench.job.pipeline.name,
        "source": bench.source.url,
    }
    held = bench.lake.claim(SINK_FILE, identity)
    for key, value in identity.items():
        if held.get(key) != value:
            raise ConfigError(
                f"sink {bench.lake.url!r} belongs to {key} {held.get(key)!r}, not {value!r};"
                " choose another --sink"
            )
