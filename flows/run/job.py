"""What one run is asked to do: a resolved pipeline with where it reads, writes and stops."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from config.errors import ConfigError
from config.load import find_pipeline, load_pipeline
from config.pipeline import PipelineConfig
from config.validate import validated
from connectors.sinks.lake import Lake
from connectors.storage import Source, open_source
from engine.request import ModeName

Start = Literal["new", "resume", "retry"]

_OF_THE_ATTEMPT = frozenset({"start", "rebuild"})
"""What a run's later attempts do not take over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line or the run form says on top of a pipeline; None leaves it as it is."""

    source: str | None = None
    sink: str | None = None
    engine: str | None = None
    """Profile by name or file, or URL."""
    mode: ModeName | None = None
    """Mode of every stage, in place of their own."""
    limit: int | None = None
    """Most documents, in path order."""
    budget_usd: float | None = None
    budget_tokens: int | None = None
    budget_gpu_seconds: float | None = None
    failure_limit: float | None = None
    cache: str | None = None
    """Folder or address of shared answers; empty for none."""
    fresh: bool = False
    """Whether every stage is asked anew."""
    settings: tuple[str, ...] = ()
    """`key=value` pairs, keys with dots, such as `chunk.max_tokens=500`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A resolved pipeline with its run id; everything a worker on another machine needs."""

    run_id: str
    pipeline: PipelineConfig
    source: str
    sink: str
    limit: int | None = None
    """Most documents, in path order; None for all."""
    start: Start = "new"
    """`resume`: shards that the run has committed are left alone, and answers that it has are not
    asked for again. `retry`: as resume, but shards with unanswered requests are opened again."""
    rebuild: bool = False
    """Write shards anew whose parts were changed by hand."""

    def at_once(self) -> Job:
        """Return the job with every stage sent at once: somebody waits for its answers."""
        stages = tuple(
            stage.model_copy(update={"batch_api": None}) for stage in self.pipeline.stages
        )
        return replace(self, pipeline=self.pipeline.model_copy(update={"stages": stages}))

    def open_source(self) -> Source:
        """Return the source, reached as the pipeline says."""
        return open_source(self.source, self.pipeline.access_to(self.source))

    def open_lake(self) -> Lake:
        """Return the sink, reached as the pipeline says."""
        return Lake(self.sink, self.pipeline.access_to(self.sink))

    def as_json(self) -> dict[str, Any]:
        """Return what `job_from_json` needs to make it again, but for how it starts."""
        values = {
            name: value for name, value in asdict(self).items() if name not in _OF_THE_ATTEMPT
        }
        return {**values, "pipeline": self.pipeline.model_dump(mode="json")}


def job_from_json(value: dict[str, Any], start: Start) -> Job:
    """Return the job that `Job.as_json` described.

    Raises:
        ConfigError: A key is wrong: another version of this program has begun the run.
    """
    pipeline = validated(PipelineConfig, value["pipeline"], Path(f"run {value['run_id']}"))
    return Job(
        run_id=value["run_id"],
        pipeline=pipeline,
        source=value["source"],
        sink=value["sink"],
        limit=value["limit"],
        start=start,
    )


def new_run_id() -> str:
    """Return a fresh run id that sorts by time, such as `20261123T093000Z-4f2a`."""
    now = datetime.now(UTC)
    # Of two runs that begin in one second the later one sorts behind the other too.
    return f"{now:%Y%m%dT%H%M%SZ}-{now.microsecond * 65536 // 1_000_000:04x}"


def make_job(
    pipeline: str | Path, options: Options | None = None, *, run_id: str | None = None
) -> Job:
    """Return the job for a pipeline, by file or by name, and the options given with it.

    Raises:
        ConfigError: A key is wrong, source or sink is missing, or the sink lies in the source.
    """
    options = options or Options()
    config = load_config(pipeline, options)
    return job_of(config, origin=str(pipeline), limit=options.limit, run_id=run_id)


def load_config(pipeline: str | Path, options: Options) -> PipelineConfig:
    """Return a pipeline, by file or by name, with the options on top.

    Raises:
        ConfigError: There is no such pipeline, or a key is wrong.
    """
    overrides = {
        "source": options.source,
        "sink": options.sink,
        "engine": options.engine,
        "cache": options.cache,
        "failure_limit": options.failure_limit,
        "budget.usd": options.budget_usd,
        "budget.tokens": options.budget_tokens,
        "budget.gpu_seconds": options.budget_gpu_seconds,
        "stages.*.mode": options.mode,
    }
    config = load_pipeline(find_pipeline(pipeline), overrides, options.settings)
    if not options.fresh:
        return config
    stages = tuple(
        stage if stage.compute is not None else stage.model_copy(update={"fresh": True})
        for stage in config.stages
    )
    return config.model_copy(update={"stages": stages})


def job_of(
    config: PipelineConfig, *, origin: str, limit: int | None = None, run_id: str | None = None
) -> Job:
    """Return the job for a loaded pipeline; `origin` names it in errors.

    Raises:
        ConfigError: Source or sink is missing, sink or cache lies in the source, or the cache in the sink.
    """
    if config.source is None:
        raise ConfigError(f"{origin}: source: missing; set it there or give --source")
    if config.sink is None:
        raise ConfigError(f"{origin}: sink: missing; set it there or give --sink")
    if is_inside(config.sink, config.source):
        raise ConfigError(
            f"sink {config.sink!r} lies inside source {config.source!r}, so the next run would"
            " read this run's output; choose a sink outside the source"
        )
    check_cache_place(config.cache, config.source, config.sink)
    return Job(
        run_id=run_id or new_run_id(),
        pipeline=config,
        source=_absolute(config.source),
        sink=_absolute(config.sink),
        limit=limit,
    )


def check_cache_place(cache: str | None, source: str, sink: str) -> None:
    """Check that a cache lies where nobody reads it as something else.

    Raises:
        ConfigError: It lies inside the source or the sink.
    """
    if cache is not None and is_inside(cache, source):
        raise ConfigError(
            f"cache {cache!r} lies inside source {source!r}, so the next run would read"
            " its answers as documents; choose a folder outside the source"
        )
    if cache is not None and is_inside(cache, sink):
        raise ConfigError(
            f"cache {cache!r} lies inside sink {sink!r}, whose tables are read by glob;"
            " choose a folder of its own"
        )


def _absolute(url: str) -> str:
    """Return a local path from the root, so that it means the same from every folder."""
    return url if "://" in url else str(Path(url).expanduser().resolve())


def is_inside(inner: str, outer: str) -> bool:
    """Tell whether the folder or prefix `inner` is `outer` or lies below it."""
    # `local://` is fsspec's name for the same.
    a, b = (urlsplit(re.sub("^(file|local)://", "", url)) for url in (inner, outer))
    if (a.scheme, a.netloc) != (b.scheme, b.netloc):
        return False
    if a.scheme == "s3":
        inside, top = Path("/", a.path.strip("/")), Path("/", b.path.strip("/"))
    else:
        inside, top = (Path(p.path).expanduser().resolve() for p in (a, b))
    return inside == top or top in inside.parents
