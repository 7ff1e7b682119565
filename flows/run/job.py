"""What one run is asked to do."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from config.errors import ConfigError
from config.load import load_pipeline
from config.pipeline import PipelineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A resolved pipeline with its run id; everything a worker on another machine needs."""

    run_id: str
    pipeline: PipelineConfig
    source: str
    sink: str
    limit: int | None
    """Most documents, in path order; None for all."""


def new_run_id() -> str:
    """Return a fresh run id that sorts by time, such as `20261123T093000Z-4f2a`."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def make_job(
    pipeline: Path,
    *,
    source: str | None = None,
    sink: str | None = None,
    engine: str | None = None,
    limit: int | None = None,
    run_id: str | None = None,
) -> Job:
    """Return the job for a pipeline file and the options given with it.

    Raises:
        ConfigError: A key is wrong, source or sink is missing, or the sink lies in the source.
    """
    config = load_pipeline(pipeline, {"source": source, "sink": sink, "engine": engine})
    if config.source is None:
        raise ConfigError(f"{pipeline}: source: missing; set it there or give --source")
    if config.sink is None:
        raise ConfigError(f"{pipeline}: sink: missing; set it there or give --sink")
    if _is_inside(config.sink, config.source):
        raise ConfigError(
            f"sink {config.sink!r} lies inside source {config.source!r}, so the next run would"
            " read this run's output; choose a sink outside the source"
        )
    return Job(
        run_id=run_id or new_run_id(),
        pipeline=config,
        source=config.source,
        sink=config.sink,
        limit=limit,
    )


def _is_inside(inner: str, outer: str) -> bool:
    a, b = urlsplit(inner), urlsplit(outer)
    if (a.scheme, a.netloc) != (b.scheme, b.netloc):
        return False
    if a.scheme == "s3":
        inside, top = Path("/", a.path.strip("/")), Path("/", b.path.strip("/"))
    else:
        inside, top = (Path(p.path).expanduser().resolve() for p in (a, b))
    return inside == top or top in inside.parents
