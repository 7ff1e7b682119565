"""What a run finds when it begins: whose the sink is, what it holds, and what there is to do."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from config.errors import ConfigError
from connectors.document import SourceRef
from connectors.sinks.lake import Lake
from connectors.storage import STATE_PREFIX, Source
from flows.run.assignments import Assignments
from flows.run.bench import Bench
from flows.run.cache import open_cache
from flows.run.claims import claimed
from flows.run.commits import changed_parts, load_commits, require_whole
from flows.run.graph import is_stage_shard
from flows.run.job import Job
from flows.run.ledger import journaled
from flows.run.plan import Planner, Retry, SinkState, limited, require_match, stream_sources
from flows.run.resume import manifest_path

LAYOUT = 5
"""Version of the sink's layout; a sink written by another one is refused."""

SINK_FILE = f"{STATE_PREFIX}/sink.json"


def check_before(job: Job) -> Iterable[SourceRef]:
    """Return the listing, not gone through yet, after looking whether there is anything in it.

    Raises:
        ConfigError: The source holds nothing to read, or the sink is another's.
        ConnectorError: Source, sink or cache cannot be reached.
    """
    source, lake = job.open_source(), job.open_lake()
    open_cache(job)
    held = lake.find_json(SINK_FILE)
    if held is not None:
        check_sink(lake, held, identity_of(job, source))
    elif job.start != "new":
        raise ConfigError(f"run {job.run_id} is not in {lake.url}; start a new run")
    if is_closed_retry(job, lake):
        return []
    listing: Iterator[SourceRef] = stream_sources(source, job.pipeline.include)
    first = next(listing, None)
    if first is None:
        if held is None:
            require_match([], job.source, job.pipeline.include)
        return []
    return itertools.chain([first], listing)


def identity_of(job: Job, source: Source) -> dict[str, Any]:
    """Return whose a sink is."""
    return {"layout": LAYOUT, "pipeline": job.pipeline.name, "source": source.url}


def check_sink(lake: Lake, held: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Check that the sink is bound to this source and pipeline, in this layout.

    Raises:
        ConfigError: It is not.
    """
    layout = held.get("layout")
    if layout != LAYOUT:
        newer = isinstance(layout, int) and layout > LAYOUT
        raise ConfigError(
            f"sink {lake.url!r} has layout {layout}, and this version of Headrace writes {LAYOUT};"
            + (" use the newer version" if newer else " choose another --sink")
        )
    for key, value in identity.items():
        if held.get(key) != value:
            raise ConfigError(
                f"sink {lake.url!r} belongs to {key} {held.get(key)!r}, not {value!r};"
                " choose another --sink"
            )


def open_planner(bench: Bench, listed: Iterable[SourceRef]) -> Planner | Retry:
    """Return what cuts the listing into the shards that have something to do.

    Raises:
        ConfigError: The sink's parts are not as they were written, or a limit drops documents.
    """
    job, lake = bench.job, bench.lake
    commits = load_commits(lake)
    bench.commits.update(commits)
    open_shards = claimed(lake.storage) | journaled(lake)
    changed = changed_parts(lake, commits, open_shards)
    if job.rebuild:
        bench.to_rebuild.update(shard for shard, _ in changed if shard in commits)
        open_shards |= bench.to_rebuild
        changed = [(shard, what) for shard, what in changed if shard not in commits]
    require_whole(lake, [what for _, what in changed])
    bench.copies.add_all(commits)
    if is_closed_retry(job, lake):
        of_documents = {name: one for name, one in commits.items() if not is_stage_shard(name)}
        return Retry(lake=lake, run_id=job.run_id, commits=of_documents)
    assignments = Assignments(lake)
    return Planner(
        sources=limited(listed, assignments.shard_of, job.limit),
        state=SinkState(
            assignments=assignments,
            commits=commits,
            open_shards=open_shards,
            work_key=bench.work_key,
            sensitive_key=bench.gathering.work_key,
            is_sensitive=bench.routes.is_sensitive,
        ),
        documents_per_shard=job.pipeline.documents_per_shard,
    )


def is_closed_retry(job: Job, lake: Lake) -> bool:
    """Tell whether a run that came to its end is retried: that has nothing to do with its source."""
    if job.start != "retry":
        return False
    found = lake.find_json(manifest_path(job.run_id))
    return found is not None and found["verdict"] in {"complete", "over_failure_limit"}
