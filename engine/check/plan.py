"""How much a check sends: lengths and counts, from what is asked for and what the endpoint offers."""

from __future__ import annotations

from dataclasses import dataclass

from engine.endpoint import Endpoint
from engine.errors import SetUpImpossible
from engine.request import ModeName

BESIDE_CHUNK_TOKENS = 1024
"""Context beyond a chunk: instructions, question and answer of a check."""
LEAST_CONTEXT_TOKENS = 1024
"""Below, a check's own words leave no room for a document."""
MODEST_CONTEXT_TOKENS = 16_384
"""Context where neither the person nor the profile says how long chunks are."""
MODEST_CPU_CONTEXT_TOKENS = 2_048
"""The same on this machine's CPU, which computes a few hundred prompt tokens a second."""
MODEST_CONCURRENCY = 8
"""Requests at once where the person does not say, as far as the profile allows them."""
ROUNDS = 2
"""Long requests for each place, so that one begins beside others that are being answered."""
SHORT_REQUESTS = 4
"""Short requests with structured answers, at least; one for each place where there are more."""
TOOL_REQUESTS = 8
THINKING_REQUESTS = 3
THINKING_TOKENS = 1024
"""Most tokens of thinking in a check: enough to see that there is any."""
LONG_ANSWER_TOKENS = 256
SHORT_ANSWER_TOKENS = 256
TOOL_ANSWER_TOKENS = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckWish:
    """What a person asks of a check; None: by the profile."""

    context_tokens: int | None = None
    """Longest prompt and answer that the batch will have."""
    concurrency: int | None = None
    """Requests of that length that will be under way at once."""
    num_requests: int | None = None
    """Long requests in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckPlan:
    """What is sent."""

    context_tokens: int
    """Prompt and answer of a long request together, about."""
    concurrency: int
    num_requests: int
    """Long requests, the one that goes first included."""
    num_short: int
    num_thinking: int
    """0 where the host has no switch for thinking."""
    num_forced: int
    """Requests that must call a tool; 0 where the host cannot force that."""
    num_free: int
    """Requests that are asked to call a tool, and may not; 0 where the host takes no tools."""
    mode: ModeName
    """Of long and short requests."""
    seed: int
    """What the documents are made from: another number, and no prompt begins as one sent before."""

    @property
    def num_calls(self) -> int:
        """Return the requests of all kinds."""
        asked = self.num_short + self.num_thinking + self.num_forced + self.num_free
        return self.num_requests + asked


def plan_check(endpoint: Endpoint, wish: CheckWish, seed: int) -> CheckPlan:
    """Return what a check of this endpoint sends.

    Raises:
        SetUpImpossible: The context or the number at once is beyond what the endpoint or profile allows.
    """
    profile = endpoint.profile
    context = wish.context_tokens or _default_context(endpoint)
    if not LEAST_CONTEXT_TOKENS <= context <= endpoint.context_tokens:
        raise SetUpImpossible(
            f"a check with a context of {context:,} tokens cannot be: engine {profile.name!r} takes"
            f" {endpoint.context_tokens:,}, and a check needs {LEAST_CONTEXT_TOKENS:,}; change --context"
        )
    allowed = profile.limits.max_in_flight
    concurrency = wish.concurrency or min(MODEST_CONCURRENCY, allowed)
    if concurrency > allowed:
        raise SetUpImpossible(
            f"profile {profile.name!r} allows {allowed:,} requests at once, and {concurrency:,} are asked for;"
            " a run would send no more either: raise max_in_flight, or its tier, or lower --concurrency"
        )
    tools = TOOL_REQUESTS if profile.capabilities.tools else 0
    forced = tools // 2 if profile.capabilities.forced_calls else 0
    return CheckPlan(
        context_tokens=context,
        concurrency=concurrency,
        num_requests=wish.num_requests or ROUNDS * concurrency,
        num_short=max(SHORT_REQUESTS, concurrency),
        num_thinking=THINKING_REQUESTS if _has_switch(endpoint) else 0,
        num_forced=forced,
        num_free=tools - forced,
        mode="instant" if "instant" in profile.modes else "thinking",
        seed=seed,
    )


def _default_context(endpoint: Endpoint) -> int:
    profile = endpoint.profile
    modest = MODEST_CPU_CONTEXT_TOKENS if profile.serve is not None else MODEST_CONTEXT_TOKENS
    if profile.max_chunk_tokens is not None:
        modest = min(modest, profile.max_chunk_tokens + BESIDE_CHUNK_TOKENS)
    return min(endpoint.context_tokens, modest)


def _has_switch(endpoint: Endpoint) -> bool:
    """Tell whether the host has a Thinking mode of its own, whose replies can be told from Instant ones."""
    settings = endpoint.profile.modes.get("thinking")
    return settings is not None and settings.by == "host"
