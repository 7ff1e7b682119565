"""The workbench of a run: what its shards share inside one process.

Opened once per run; holds clients and processes, so it never crosses a process border.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from config.errors import ConfigError
from config.load import child_environment, load_profile, load_secret, load_surroundings
from connectors.chunker import ChunkRule
from connectors.document import Media
from connectors.reader_pool import ReaderPool
from connectors.sinks.lake import Lake
from connectors.storage import Storage, open_storage
from engine.endpoint import Endpoint, open_endpoint
from engine.profile import Profile
from flows.run.ask import Asker
from flows.run.job import Job
from flows.run.progress import Progress

NUM_READERS = 2
"""Reader processes; one per core of the smallest machine this runs on."""

NUM_SHARDS_AT_ONCE = 2
"""Shards in work at the same time, so that one is read while the other is asked about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Everything a shard works with."""

    job: Job
    source: Storage
    lake: Lake
    endpoint: Endpoint
    readers: ReaderPool
    asker: Asker
    rule: ChunkRule
    progress: Progress
    cancelled: threading.Event
    """Set when the bench closes, so that shards still in work stop soon."""
    scratch: Path
    """Temporary folder for fetched objects and their media; gone with the bench."""

    @property
    def max_in_flight(self) -> int:
        """Requests one shard may have in flight, so that all shards stay within the profile."""
        return max(1, self.endpoint.profile.max_in_flight // NUM_SHARDS_AT_ONCE)


def open_engine(engine: str, notify: Callable[[str], None]) -> Endpoint:
    """Return the endpoint of a profile or URL, its server started where this machine serves it.

    Raises:
        ConfigError: There is no such profile.
        EngineError: The engine cannot be reached or started.
    """
    surroundings = load_surroundings()
    profile = load_profile(engine)
    return open_endpoint(
        profile,
        venv=surroundings.engine_venv,
        cache=surroundings.cache,
        environment=child_environment(),
        api_key=load_secret(profile.api_key_env),
        notify=notify,
    )


@contextmanager
def open_bench(job: Job, progress: Progress, notify: Callable[[str], None]) -> Iterator[Bench]:
    """Open storage, engine and readers, and close them again.

    Args:
        job: What to run.
        progress: Counters that the shards add to.
        notify: Called with a line whenever something slow begins, such as the engine's start.

    Raises:
        ConfigError: A profile or limit is wrong.
        StorageError: Source or sink cannot be reached.
        EngineError: The engine cannot be reached or started.
    """
    source, lake = open_storage(job.source), Lake(job.sink)
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-"))
        readers = stack.enter_context(
            ReaderPool(
                NUM_READERS,
                job.pipeline.reader.options(),
                timeout_s=job.pipeline.reader.timeout_s,
            )
        )
        endpoint = stack.enter_context(open_engine(job.pipeline.engine, notify))
        asker = Asker(job.pipeline, endpoint)
        cancelled = threading.Event()
        stack.callback(cancelled.set)
        yield Bench(
            cancelled=cancelled,
            job=job,
            source=source,
            lake=lake,
            endpoint=endpoint,
            readers=readers,
            asker=asker,
            rule=_chunk_rule(job, endpoint, asker),
            progress=progress,
            scratch=Path(scratch),
        )


def _chunk_rule(job: Job, endpoint: Endpoint, asker: Asker) -> ChunkRule:
    """Return how to cut chunks.

    Raises:
        ConfigError: A chunk, its question and its answer do not fit the engine's context.
    """
    room = min(asker.room(stage) for stage in job.pipeline.stages)
    max_tokens = job.pipeline.chunk.max_tokens or room
    if room < max_tokens or room < 1:
        raise ConfigError(
            f"chunk.max_tokens {max_tokens:,} does not fit: engine {endpoint.profile.name!r} has a"
            f" context of {endpoint.context_tokens:,} tokens, and instructions, question and answer"
            f" leave {room:,}; lower chunk.max_tokens or max_output_tokens"
        )
    return ChunkRule(
        max_tokens=max_tokens,
        counter=endpoint.counter,
        name=endpoint.counter.name,
        image_tokens=_image_tokens(endpoint.profile),
    )


def _image_tokens(profile: Profile) -> Callable[[Media], int] | None:
    if not profile.capabilities.images:
        return None
    # Kimi K2.5's MoonViT: one token per 28 px cell of the image (media_proc_cfg of the model).
    return lambda media: -(-media.width_px // 28) * -(-media.height_px // 28)
