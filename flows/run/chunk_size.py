"""How large chunks are: what the engine's context and cache leave, resolved once and kept in the sink."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from config.errors import ConfigError
from connectors.chunker import ChunkRule
from connectors.document import Media
from connectors.sinks.lake import Lake
from connectors.storage import STATE_PREFIX
from engine.endpoint import Endpoint
from engine.profile import Profile
from engine.server import CacheFacts, cache_facts
from engine.tokens import image_tokens
from flows.run.ask import Asker
from flows.run.job import Job
from flows.run.routes import RouteName

CACHE_SHARE = 0.9
"""Share of the KV cache that is for chunks; questions and answers take the rest."""

CHUNKS_IN_CACHE = 4
"""Chunks that the KV cache should hold at once where their size is left open: 8xH200 hold 2.7 of the
longest that Kimi K2.5 takes, and 4 of 160,000 tokens with what is asked about them."""

PROMPT_GROWTH_TOKENS = 2048
"""Most tokens that chunks of open size leave free for prompts that are edited later."""


def chunk_size_path(endpoint: Endpoint, route: RouteName = "open") -> str:
    """Return where a sink keeps the size of its chunks, as this endpoint's tokens count it on a route."""
    # Two routes may count alike and leave different room.
    counted = endpoint.counter.name + ("\0sensitive" if route == "sensitive" else "")
    name = hashlib.sha256(counted.encode()).hexdigest()[:16]
    return f"{STATE_PREFIX}/chunk-size/{name}.json"


def _kept_chunk_tokens(lake: Lake, endpoint: Endpoint, route: RouteName) -> int | None:
    """Return the size of the chunks that the sink holds already; None for a new sink or counter."""
    held = lake.find_json(chunk_size_path(endpoint, route))
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
    kept = _kept_chunk_tokens(lake, endpoint, asker.route)
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
