"""The workbench of a run: what its shards share inside one process.

Opened once per run; holds clients and processes, so it never crosses a process border.
"""

from __future__ import annotations

import itertools
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from config.errors import ConfigError
from config.load import child_environment, load_profile, load_secret, load_surroundings
from config.pipeline import StageBudgetConfig
from connectors.chunker import ChunkRule
from connectors.document import SourceRef
from connectors.reader_pool import ReaderPool
from connectors.sinks.lake import Lake
from connectors.storage import STATE_PREFIX, Source
from engine.batch import Amount, Budget, Caps, Line, Route, unknown_unit
from engine.batch_api.desk import Desk, Keeping
from engine.endpoint import Endpoint, open_endpoint, plan_endpoint
from engine.profile import Prices, Profile
from flows.run.approvals import Ask, SinkApproval
from flows.run.ask import Asker
from flows.run.cache import AnswerCache, open_cache
from flows.run.chunk_size import CACHE_SHARE
from flows.run.claims import Claims
from flows.run.commits import Commit
from flows.run.copies import Copies
from flows.run.flights import Flights
from flows.run.job import Job
from flows.run.leaders import Leaders
from flows.run.line_store import LineStores
from flows.run.masked import Mask, claim_key, open_mask
from flows.run.passwords import Passwords
from flows.run.prepare import check_fit
from flows.run.progress import Progress
from flows.run.record_tables import claim_record_tables
from flows.run.routes import Passage, Routes, routes_of
from flows.run.served import Served, as_seen, as_sent, asker_of, serve
from flows.run.shift import Shift
from flows.run.slices import Slices
from flows.run.stage_approval import StageApproval
from flows.run.vectors import MeaningSearch, open_vectors, rule_of, vectors_engine

NUM_READERS = 2
"""Reader processes; one per core of the smallest machine this runs on."""

NUM_SHARDS_AT_ONCE = 2
"""Shards asked about at the same time, so that one has questions while the other comes to its end."""

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
class ServedRoom(Room):
    """A room with what the questions of one route are asked with."""

    served: Served

    @property
    def passage(self) -> Passage:
        """Return the route of what this bench is for."""
        return self.served.passage

    @property
    def route(self) -> Route:
        """Return the endpoints of the route."""
        return self.served.route

    @property
    def asker(self) -> Asker:
        """Return what makes questions for the route's engine."""
        return self.served.asker

    @property
    def rule(self) -> ChunkRule:
        """Return how chunks are cut for the route's engine."""
        return self.served.rule

    @property
    def reading_key(self) -> str:
        """Return the key of what chunks follow from."""
        return self.served.reading_key

    @property
    def work_key(self) -> str:
        """Return the key of what rows follow from."""
        return self.served.work_key

    @property
    def cache_tokens(self) -> int | None:
        """Return the tokens that the KV caches of the engine's servers hold together; None: not known."""
        return self.served.cache_tokens

    @property
    def cache_block_tokens(self) -> int | None:
        """Return the tokens of one block of it, in which prefixes are kept; None: not known."""
        return self.served.cache_block_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench(ServedRoom):
    """Everything a shard works with; there is one for each route."""

    routes: Routes
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
    copies: Copies
    approval: SinkApproval
    """Decides on calls of agents that need a person's approval."""
    stage_approval: StageApproval
    """Decides on stages that need it."""
    desk: Desk | None
    """Sends the stages with `batch_api` to the host; None where there are none."""
    cache: AnswerCache | None
    """Answers that other sinks share; None where the pipeline names no cache."""
    vectors: MeaningSearch | None
    """What is searched by meaning with; None where nothing is."""
    family_numbers: Iterator[int] = field(default_factory=itertools.count)
    """Numbers of prefix families, in the order in which the shards begin them: the earlier goes first."""
    leaders: Leaders = field(default_factory=Leaders)
    large_families: Iterator[int] = field(default_factory=itertools.count)
    """Counts the families that the engine's KV cache cannot hold."""
    sensitive: Bench | None = None
    """The bench of sensitive documents, where others go elsewhere."""
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

    def at(self, sources: Iterable[SourceRef]) -> Bench:
        """Return the bench for documents that go together: they go where the most sensitive one may."""
        passage = self.routes.find(source.path for source in sources)
        return self.gathering if passage.name == "sensitive" else self

    @property
    def gathering(self) -> Bench:
        """Return the bench of what rests on all documents."""
        # What counts is told to whoever asked this bench.
        return replace(self.sensitive, progress=self.progress) if self.sensitive else self

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


@contextmanager
def plan_asker(
    job: Job, passage: Passage, mask: Mask | None, notify: Callable[[str], None]
) -> Iterator[Asker]:
    """Yield what makes questions for the endpoint of a route, for planning.

    Raises:
        ConfigError: There is no such profile, or the engine cannot do what a stage wants.
        EngineMisconfigured: The endpoint refuses the key, or has another model.
    """
    maker = vectors_engine(job.pipeline)
    with ExitStack() as stack:
        opened = {
            one: stack.enter_context(plan_engine(one, notify))
            for one in dict.fromkeys([passage.engines[0], *([maker] if maker else [])])
        }
        yield asker_of(
            job,
            as_seen(opened[passage.engines[0]], passage, mask),
            passage,
            mask=mask,
            maker=opened[maker] if maker else None,
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
        ask: Asks a person whether a stage or a call may go out; None where nobody is there.
        notify: Called with a line whenever something slow begins, such as the engine's start.

    Raises:
        ConfigError: A profile or limit is wrong.
        StorageError: Source, sink or cache cannot be reached.
        EngineError: The engine cannot be reached or started.
    """
    routes = routes_of(job.pipeline)
    cache = open_cache(job)
    for passage in routes.passages:
        _check_engines(job, passage)
    maker = _checked_maker(job)
    with ExitStack() as stack:
        room = stack.enter_context(open_room(job))
        names = [engine for one in routes.passages for engine in one.engines]
        names += [maker] if maker else []
        opened = {
            one: stack.enter_context(open_engine(one, notify)) for one in dict.fromkeys(names)
        }
        budget = Budget(
            _caps(job.pipeline.budget),
            stages={stage.name: _caps(stage.budget) for stage in job.pipeline.stages},
            max_seconds=job.pipeline.budget.seconds,
            spent=spent,
        )
        mask = open_mask(job.pipeline.policy, room.lake)
        served: list[Served] = []
        lines: list[Line] = []
        for passage in routes.passages:
            served.append(serve(room, passage, opened, mask=mask, beside=lines, notify=notify))
            lines += served[-1].route.lines
        folder = room.scratch / "vectors"
        vectors = open_vectors(opened[maker], room.lake, folder, beside=lines) if maker else None
        lines += [vectors.embedder.line] if vectors else []
        at_once = min(at_once, served[0].route.max_in_flight)
        cancelled, in_work = threading.Event(), Shift(at_once)
        claims = stack.enter_context(Claims(room.lake.storage, job.run_id))
        # Last of what may fail: it is the first that leaves a trace in the sink.
        record_tables = claim_record_tables(
            room.lake, job.pipeline.stages, routed=job.pipeline.policy is not None
        )
        if mask is not None:
            claim_key(room.lake, mask)
        for line in _with_limits(lines):
            slices = Slices(room.lake.storage, line, run_id=job.run_id, notify=notify)
            stack.enter_context(slices)
        desk = open_desk(job, served[0].route, room, budget)
        if desk is not None:
            stack.enter_context(desk)
        stack.callback(in_work.wait, SETTLE_S)
        if desk is not None:
            stack.callback(desk.stop)
        stack.callback(cancelled.set)
        bench = Bench(
            job=room.job,
            source=room.source,
            lake=room.lake,
            readers=room.readers,
            passwords=room.passwords,
            scratch=room.scratch,
            routes=routes,
            served=served[0],
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
            stage_approval=StageApproval(
                room.lake,
                job.run_id,
                ask,
                record_tables=record_tables,
                prices=served[0].route.endpoint.profile.prices,
            ),
            cache=cache if served[0].is_shared else None,
            desk=desk,
            vectors=vectors,
        )
        for one in served[1:]:
            sensitive = replace(
                bench,
                served=one,
                # What is on the premises is asked at once: nothing of it goes through another's batches.
                desk=None,
                cache=None,
                leaders=Leaders(),
                large_families=itertools.count(),
            )
            bench = replace(bench, sensitive=sensitive)
        yield bench


def _with_limits(lines: Sequence[Line]) -> list[Line]:
    """Return a line for each gate that keeps a tier's limits, which several runs have to share."""
    # The first one's: it has made the gate.
    gates = {id(line.pace): line for line in reversed(lines)}
    # Without a tier no limit of the host is known that they could exceed.
    return [line for line in gates.values() if line.endpoint.profile.tier is not None]


def open_desk(job: Job, route: Route, room: Room, budget: Budget) -> Desk | None:
    """Return what sends the stages with `batch_api` to the host; None where there are none."""
    limits = route.endpoint.profile.capabilities.batch_api
    if limits is None or all(stage.batch_api is None for stage in job.pipeline.stages):
        return None
    keeping = Keeping(store=room.lake.storage, folder=BATCHES, scratch=room.scratch)
    return Desk(route.endpoint, limits, keeping, budget, run_id=job.run_id)


def _check_engines(job: Job, passage: Passage) -> None:
    """Check what is known of a route's engines before they are opened.

    Raises:
        ConfigError: One lacks a key, prices, the time of its GPUs, or what a stage wants.
    """
    for number, engine in enumerate(passage.engines):
        profile, _ = _profile_and_key(engine)
        _check_budgets(job, profile)
        for stage in as_sent(job, passage, profile).pipeline.stages if number == 0 else ():
            if stage.compute is None:
                check_fit(stage, profile)


def _checked_maker(job: Job) -> str | None:
    """Return the engine that makes vectors; None where nothing is searched by meaning.

    Raises:
        ConfigError: It lacks a key, prices, or gives no vectors as far as its profile says.
    """
    maker = vectors_engine(job.pipeline)
    if maker is not None:
        profile, _ = _profile_and_key(maker)
        rule_of(profile)
        _check_budgets(job, profile)
    return maker


def _check_budgets(job: Job, profile: Profile) -> None:
    """Check that an engine's profile knows the units of the job's budgets.

    Raises:
        ConfigError: It lacks prices, or the time of its GPUs.
    """
    budgets = {f"stages.{stage.name}.budget": stage.budget for stage in job.pipeline.stages}
    for key, budget in {"budget": job.pipeline.budget, **budgets}.items():
        problem = unknown_unit(key, _caps(budget), profile)
        if problem is not None:
            raise ConfigError(problem)


def _caps(budget: StageBudgetConfig) -> Caps:
    return Caps(usd=budget.usd, tokens=budget.tokens, gpu_seconds=budget.gpu_seconds)
