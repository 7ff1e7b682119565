"""The workbench of a run: what its shards share inside one process.

Opened once per run; holds clients and processes, so it never crosses a process border.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config.errors import ConfigError
from config.load import child_environment, load_profile, load_secret, load_surroundings
from config.pipeline import StageBudgetConfig
from connectors.chunker import ChunkRule
from connectors.document import Media
from connectors.reader_pool import ReaderPool
from connectors.sinks.lake import Lake
from connectors.storage import STATE_PREFIX, Source
from engine.batch import Amount, Budget, Caps, Route, route_to, unknown_unit
from engine.batch_api.desk import Desk, Keeping
from engine.endpoint import Endpoint, open_endpoint, plan_endpoint, replicas_of
from engine.profile import Prices, Profile
from engine.server import CacheFacts, cache_facts
from engine.tokens import image_tokens
from flows.run.approvals import Ask, SinkApproval
from flows.run.ask import Asker
from flows.run.cache import AnswerCache, open_cache
from flows.run.claims import Claims
from flows.run.commits import Commit
from flows.run.copies import Copies
from flows.run.flights import Flights
from flows.run.job import Job
from flows.run.keys import reading_key, work_key
from flows.run.leaders import Leaders
from flows.run.line_store import LineStores
from flows.run.passwords import Passwords
from flows.run.prepare import check_fit
from flows.run.progress import Progress
from flows.run.record_tables import claim_record_tables
from flows.run.slices import Slices

NUM_READERS = 2
"""Reader processes; one per core of the smallest machine this runs on."""

NUM_SHARDS_AT_ONCE = 2
"""Shards asked about at the same time, so that one has questions while the other comes to its end."""

SHARDS_AHEAD = 1
"""Shards that are open beside them: the next is read while these are asked about, or shards that are
alike would all be read at one time, and the engine would idle meanwhile."""

CACHE_SHARE = 0.9
"""Share of the KV cache that is for chunks; questions and answers take the rest."""

CHUNKS_IN_CACHE = 4
"""Chunks that the KV cache should hold at once where their size is left open: 8xH200 hold 2.7 of the
longest that Kimi K2.5 takes, and 4 of 160,000 tokens with what is asked about them."""

PROMPT_GROWTH_TOKENS = 2048
"""Most tokens that chunks of open size leave free for prompts that are edited later."""

BATCHES = f"{STATE_PREFIX}/batches"
"""Where a sink knows of what is with a host."""

SETTLE_S = 3.0
"""Seconds that shards in work get to save their answers when a run is interrupted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What reads a job's documents and writes its tables; knows no engine."""

    job: Job
    source: Source
    lake: Lake
    readers: ReaderPool
    passwords: Passwords
    scratch: Path
    """Temporary folder for fetched objects and their media; gone with the room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench(Room):
    """Everything a shard works with."""

    route: Route
    asker: Asker
    rule: ChunkRule
    record_tables: Mapping[str, str]
    """Folder of each stage's records, such as `records/stage=kind@2`."""
    progress: Progress
    budget: Budget
    cancelled: threading.Event
    """Set when the bench closes, so that shards still in work stop soon."""
    in_work: Shift
    reading: threading.Semaphore
    """A place for each shard whose documents may be read at the same time."""
    asking: threading.Semaphore
    """A place for each shard that may be asked about at the same time; they share the engine's KV cache."""
    claims: Claims
    flights: Flights
    reading_key: str
    work_key: str
    copies: Copies
    approval: SinkApproval
    """Decides on calls of agents that need a person's approval."""
    desk: Desk | None
    """Sends the stages with `batch_api` to the host; None where there are none."""
    cache: AnswerCache | None
    """Answers that other sinks share; None where the pipeline names no cache."""
    family_numbers: Iterator[int] = field(default_factory=itertools.count)
    """Numbers of prefix families, in the order in which the shards begin them: the earlier goes first."""
    leaders: Leaders = field(default_factory=Leaders)
    large_families: Iterator[int] = field(default_factory=itertools.count)
    """Counts the families that the engine's KV cache cannot hold."""
    cache_tokens: int | None = None
    """Tokens that the KV caches of the engine's servers hold together; None where none tells."""
    cache_block_tokens: int | None = None
    """Tokens of one block of it, the unit in which prefixes are kept; None where it does not tell."""
    commits: dict[str, Commit] = field(default_factory=dict)
    """What the sink says of its shards and gathered stages; kept up to date by this process."""
    to_rebuild: set[str] = field(default_factory=set)
    """Shards whose parts were changed by hand and are to be written anew."""
    line_stores: LineStores = field(default_factory=LineStores)
    """The lines of the sink's documents, for agents."""
    hopeless: threading.Event = field(default_factory=threading.Event)
    """Set when the failure limit cannot be kept any more, so that no further shard is begun."""

    @property
    def endpoint(self) -> Endpoint:
        """Return the pipeline's own engine."""
        return self.route.endpoint

    @property
    def prices(self) -> dict[str, Prices | None]:
        """Return the prices of all engines that may answer, by profile."""
        profiles = (line.endpoint.profile for line in self.route.lines)
        return {profile.name: profile.prices for profile in profiles}

    @property
    def chunk_room(self) -> int | None:
        """Return how many tokens of a chunk one server's KV cache holds beside questions; None: not known."""
        if self.cache_tokens is None:
            return None
        return int(CACHE_SHARE * self.cache_tokens) // self.route.num_replicas

    @property
    def family_tokens(self) -> int | None:
        """Return how many tokens of material one shard may have in the KV cache; None: not known."""
        if self.cache_tokens is None:
            return None
        return int(CACHE_SHARE * self.cache_tokens) // self.in_work.num_expected

    @property
    def max_in_flight(self) -> int:
        """Requests one shard may have under way: all, since the endpoint's gate is one for all shards."""
        return self.route.max_in_flight


def open_engine(engine: str, notify: Callable[[str], None]) -> Endpoint:
    """Return the endpoint of a profile or URL, its server started where this machine serves it.

    Raises:
        ConfigError: There is no such profile.
        EngineError: The engine cannot be reached or started.
    """
    profile, api_key = _profile_and_key(engine)
    surroundings = load_surroundings()
    return open_endpoint(
        profile,
        venv=surroundings.engine_venv,
        cache=surroundings.cache,
        environment=child_environment(),
        api_key=api_key,
        notify=notify,
    )


def plan_engine(engine: str, notify: Callable[[str], None]) -> Endpoint:
    """Return the endpoint of a profile or URL for planning: nothing is started, nothing is sent.

    Raises:
        ConfigError: There is no such profile.
        EngineMisconfigured: The endpoint refuses the key, or has another model.
    """
    profile = load_profile(engine)
    return plan_endpoint(
        profile,
        cache=load_surroundings().cache,
        api_key=load_secret(profile.api_key_env),
        notify=notify,
    )


def endpoint_facts(endpoint: Endpoint) -> dict[str, Any]:
    """Return what an endpoint is, for a plan or a trial."""
    return {
        "engine": endpoint.profile.name,
        "model": endpoint.model,
        "context_tokens": endpoint.context_tokens,
        "tokens_counted": "exactly" if endpoint.counter.exact else "by estimate",
        "token_counter": endpoint.counter.name,
    }


def _profile_and_key(engine: str) -> tuple[Profile, str | None]:
    """Return an engine's profile and key.

    Raises:
        ConfigError: There is no such profile, or its key is not set.
    """
    profile = load_profile(engine)
    api_key = load_secret(profile.api_key_env)
    if profile.needs_key and not api_key:
        raise ConfigError(
            f"engine {engine!r} needs a key, and {profile.api_key_env} is not set; run:"
            f" export {profile.api_key_env}=<your key>"
        )
    return profile, api_key


class Shift:
    """Lets a number of shards in at a time, and counts them, so that a closing bench can wait."""

    def __init__(self, asked: int, ahead: int = SHARDS_AHEAD) -> None:
        self._places = threading.Semaphore(asked + ahead)
        self._num_asked = asked
        self.num_expected = asked
        """Shards asked about at the same time, fewer than there are places where no more are left."""
        self._count = 0
        self._changed = threading.Condition()

    def expect(self, number: int) -> None:
        """Say that there are no more than so many shards, or stages, from now on."""
        self.num_expected = max(1, min(self._num_asked, number))

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Wait for a place, and hold it while the block runs."""
        with self._places:
            with self._changed:
                self._count += 1
            try:
                yield
            finally:
                with self._changed:
                    self._count -= 1
                    self._changed.notify_all()

    def wait(self, limit_s: float) -> None:
        """Wait until none is in work, at most `limit_s` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._count == 0, limit_s)


@contextmanager
def open_room(job: Job) -> Iterator[Room]:
    """Open storage and readers, and close them again.

    Raises:
        ConfigError: The password of a document is not set.
        StorageError: Source or sink cannot be reached.
    """
    reader = job.pipeline.reader
    passwords = Passwords(reader)
    source, lake = job.open_source(), job.open_lake()
    with (
        tempfile.TemporaryDirectory(prefix="headrace-", ignore_cleanup_errors=True) as scratch,
        ReaderPool(NUM_READERS, reader.options(), timeout_s=reader.timeout_s) as readers,
    ):
        yield Room(
            job=job,
            source=source,
            lake=lake,
            readers=readers,
            passwords=passwords,
            scratch=Path(scratch),
        )


@contextmanager
def open_bench(
    job: Job,
    progress: Progress,
    notify: Callable[[str], None],
    *,
    spent: Mapping[str, Amount] | None = None,
    at_once: int = NUM_SHARDS_AT_ONCE,
    ask: Ask | None = None,
) -> Iterator[Bench]:
    """Open storage, engine and readers, and close them again.

    Args:
        job: What to run.
        progress: Counters that the shards add to.
        spent: What earlier attempts of the run have taken from its budget, by stage.
        at_once: Shards that may be asked about at the same time.
        ask: Asks a person whether an agent may make a call; None where nobody is there.
        notify: Called with a line whenever something slow begins, such as the engine's start.

    Raises:
        ConfigError: A profile or limit is wrong.
        StorageError: Source, sink or cache cannot be reached.
        EngineError: The engine cannot be reached or started.
    """
    engines = [job.pipeline.engine, *job.pipeline.fallback]
    cache = open_cache(job)
    for engine in engines:
        _check_engine(job, engine)
    with ExitStack() as stack:
        room = stack.enter_context(open_room(job))
        endpoint, *fallbacks = (
            stack.enter_context(open_engine(engine, notify)) for engine in engines
        )
        asker = Asker(job.pipeline, endpoint)
        budget = Budget(
            _caps(job.pipeline.budget),
            stages={stage.name: _caps(stage.budget) for stage in job.pipeline.stages},
            max_seconds=job.pipeline.budget.seconds,
            spent=spent,
        )
        replicas = replicas_of(endpoint, notify)
        route = route_to(endpoint, *fallbacks, replicas=replicas)
        caches = [held for one in (endpoint, *replicas) if (held := cache_of(one)) is not None]
        at_once = min(at_once, route.max_in_flight)
        cancelled, in_work = threading.Event(), Shift(at_once)
        rule = chunk_rule(job, endpoint, asker, room.lake)
        claims = stack.enter_context(Claims(room.lake.storage, job.run_id))
        # Last of what may fail: it is the first that leaves a trace in the sink.
        record_tables = claim_record_tables(room.lake, job.pipeline.stages)
        for line in route.lines:
            # Without a tier no limit of the host is known that several runs could exceed.
            if line.endpoint.profile.tier is not None:
                slices = Slices(room.lake.storage, line, run_id=job.run_id, notify=notify)
                stack.enter_context(slices)
        desk = open_desk(job, route, room, budget)
        if desk is not None:
            stack.enter_context(desk)
        stack.callback(in_work.wait, SETTLE_S)
        if desk is not None:
            stack.callback(desk.stop)
        stack.callback(cancelled.set)
        yield Bench(
            job=room.job,
            source=room.source,
            lake=room.lake,
            readers=room.readers,
            passwords=room.passwords,
            scratch=room.scratch,
            route=route,
            asker=asker,
            rule=rule,
            record_tables=record_tables,
            progress=progress,
            budget=budget,
            cancelled=cancelled,
            in_work=in_work,
            reading=threading.Semaphore(at_once),
            asking=threading.Semaphore(at_once),
            claims=claims,
            flights=Flights(),
            copies=Copies(room.lake),
            approval=SinkApproval(room.lake, job.run_id, ask),
            cache_tokens=sum(held.num_tokens for held in caches) if caches else None,
            cache_block_tokens=caches[0].block_tokens if caches else None,
            cache=cache,
            desk=desk,
            reading_key=reading_key(job, rule),
            work_key=work_key(job, rule, asker),
        )


def open_desk(job: Job, route: Route, room: Room, budget: Budget) -> Desk | None:
    """Return what sends the stages with `batch_api` to the host; None where there are none."""
    limits = route.endpoint.profile.capabilities.batch_api
    if limits is None or all(stage.batch_api is None for stage in job.pipeline.stages):
        return None
    keeping = Keeping(store=room.lake.storage, folder=BATCHES, scratch=room.scratch)
    return Desk(route.endpoint, limits, keeping, budget, run_id=job.run_id)


def _check_engine(job: Job, engine: str) -> None:
    """Check what is known of an engine before it is opened.

    Raises:
        ConfigError: It lacks a key, prices, the time of its GPUs, or what a stage wants.
    """
    profile, _ = _profile_and_key(engine)
    budgets = {f"stages.{stage.name}.budget": stage.budget for stage in job.pipeline.stages}
    for key, budget in {"budget": job.pipeline.budget, **budgets}.items():
        problem = unknown_unit(key, _caps(budget), profile)
        if problem is not None:
            raise ConfigError(problem)
    if engine == job.pipeline.engine:
        for stage in job.pipeline.stages:
            if stage.compute is None:
                check_fit(stage, profile)


def _caps(budget: StageBudgetConfig) -> Caps:
    return Caps(usd=budget.usd, tokens=budget.tokens, gpu_seconds=budget.gpu_seconds)


def chunk_size_path(endpoint: Endpoint) -> str:
    """Return where a sink keeps the size of its chunks, as this endpoint's tokens count it."""
    name = hashlib.sha256(endpoint.counter.name.encode()).hexdigest()[:16]
    return f"{STATE_PREFIX}/chunk-size/{name}.json"


def _kept_chunk_tokens(lake: Lake, endpoint: Endpoint) -> int | None:
    """Return the size of the chunks that the sink holds already; None for a new sink or counter."""
    held = lake.find_json(chunk_size_path(endpoint))
    return None if held is None else int(held["max_tokens"])


def chunk_rule(job: Job, endpoint: Endpoint, asker: Asker, lake: Lake) -> ChunkRule:
    """Return how to cut chunks.

    Args:
        job: The pipeline; its `chunk.max_tokens` goes before all else.
        endpoint: Who counts, and how much fits.
        asker: Knows what stands beside a chunk.
        lake: The sink; the size that its chunks have stays, so that an edited prompt moves none.

    Raises:
        ConfigError: A chunk, its question and its answer do not fit the engine's context.
    """
    kept = _kept_chunk_tokens(lake, endpoint)
    asked = [stage for stage in job.pipeline.stages if stage.over in {"chunk", "rows"}]
    room = min(asker.room(stage) for stage in asked or job.pipeline.stages[:1])
    max_tokens = job.pipeline.chunk.max_tokens or kept or _auto_chunk_tokens(endpoint, room)
    if kept is not None and max_tokens == kept and room < kept:
        raise ConfigError(
            f"sink {job.sink!r} holds chunks of up to {kept:,} tokens, and beside instructions,"
            f" question and answer only {room:,} are left of the context of"
            f" {endpoint.context_tokens:,}; shorten the prompts or max_output_tokens, or set"
            " chunk.max_tokens, which cuts all documents anew"
        )
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
        overlap_tokens=job.pipeline.chunk.overlap_tokens,
        image_tokens=_image_tokens(endpoint.profile),
    )


def _auto_chunk_tokens(endpoint: Endpoint, room: int) -> int:
    """Return the largest chunk that fits, and of which the KV cache holds several at once.

    One long prompt at a time would leave the engine with nothing to decode beside it. Some of the
    context is left free: chunks keep their size, and prompts grow.
    """
    growth = min(PROMPT_GROWTH_TOKENS, endpoint.context_tokens // 16)
    limits = [max(1, room - growth), endpoint.profile.max_chunk_tokens or room]
    cache = cache_of(endpoint)
    if cache is not None:
        limits.append(max(1, int(CACHE_SHARE * cache.num_tokens) // CHUNKS_IN_CACHE))
    return min(limits)


def cache_of(endpoint: Endpoint) -> CacheFacts | None:
    """Return the KV cache of a vLLM server; None where it is none, or does not tell."""
    if endpoint.profile.capabilities.priority and endpoint.base_url:
        return cache_facts(endpoint.base_url)
    return None


def _image_tokens(profile: Profile) -> Callable[[Media], int] | None:
    if not profile.capabilities.images:
        return None
    rule = profile.image_rule
    return lambda media: image_tokens(
        media.width_px, media.height_px, cell_px=rule.cell_px, max_tokens=rule.max_tokens
    )
