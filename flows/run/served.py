"""What the questions of one route are asked with: its endpoints, its way of cutting chunks, its keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from connectors.chunker import ChunkRule
from engine.batch import Route, route_to
from engine.batch.route import Line
from engine.endpoint import Endpoint, replicas_of
from engine.profile import Profile
from flows.run.ask import Asker
from flows.run.chunk_size import cache_of, chunk_rule
from flows.run.job import Job
from flows.run.keys import reading_key, work_key
from flows.run.masked import Mask, masked_endpoint
from flows.run.routes import Passage
from flows.run.vectors import vectors_engine

if TYPE_CHECKING:
    from flows.run.bench import Room


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One route, opened."""

    passage: Passage
    route: Route
    asker: Asker
    rule: ChunkRule
    reading_key: str
    work_key: str
    cache_tokens: int | None
    """Tokens that the KV caches of the engine's servers hold together; None where none tells."""
    cache_block_tokens: int | None
    """Tokens of one block of it, the unit in which prefixes are kept; None where it does not tell."""

    @property
    def is_shared(self) -> bool:
        """Tell whether answers may lie in a cache that other pipelines read."""
        return self.passage.name != "sensitive"


def serve(
    room: Room,
    passage: Passage,
    opened: Mapping[str, Endpoint],
    *,
    mask: Mask | None,
    beside: Sequence[Line],
    notify: Callable[[str], None],
) -> Served:
    """Return a route, ready to ask.

    Args:
        room: The job and its sink.
        passage: The route.
        opened: All engines of the job.
        mask: What is masked where the route is a masked one.
        beside: Lines of the job's other routes.
        notify: Called with a line about a replica that does not answer.

    Raises:
        ConfigError: The engine cannot do what a stage wants, or chunks do not fit.
        EngineMisconfigured: A replica has another model.
    """
    endpoint, *others = [as_seen(opened[one], passage, mask) for one in passage.engines]
    maker = vectors_engine(room.job.pipeline)
    asker = asker_of(room.job, endpoint, passage, mask=mask, maker=opened[maker] if maker else None)
    replicas = replicas_of(endpoint, notify)
    rule = chunk_rule(room.job, endpoint, asker, room.lake)
    caches = [held for one in (endpoint, *replicas) if (held := cache_of(one)) is not None]
    return Served(
        passage=passage,
        route=route_to(endpoint, *others, replicas=replicas, beside=beside),
        asker=asker,
        rule=rule,
        reading_key=reading_key(room.job, rule),
        work_key=work_key(room.job, rule, asker),
        cache_tokens=sum(held.num_tokens for held in caches) if caches else None,
        cache_block_tokens=caches[0].block_tokens if caches else None,
    )


def asker_of(
    job: Job, endpoint: Endpoint, passage: Passage, *, mask: Mask | None, maker: Endpoint | None
) -> Asker:
    """Return what makes questions for the endpoint of a route, given as `as_seen` has it.

    Args:
        job: What is asked.
        endpoint: Who is asked.
        passage: The route.
        mask: What is masked where the route is a masked one.
        maker: Makes vectors for searches by meaning; None where nothing is searched so.
    """
    is_masked = passage.name == "masked"
    pipeline = as_sent(job, passage, endpoint.profile).pipeline
    return Asker(
        pipeline, endpoint, route=passage.name, mask=mask if is_masked else None, maker=maker
    )


def as_sent(job: Job, passage: Passage, profile: Profile) -> Job:
    """Return the job as a route sends it: at once on the premises, where there is no batch API."""
    has_none = profile.capabilities.batch_api is None
    return job.at_once() if passage.name == "sensitive" and has_none else job


def as_seen(endpoint: Endpoint, passage: Passage, mask: Mask | None) -> Endpoint:
    """Return the endpoint as the questions of a route see it: with masked counts where it is a masked one."""
    return masked_endpoint(endpoint, mask) if mask and passage.name == "masked" else endpoint
