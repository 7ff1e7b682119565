"""Where a batch's requests go: an endpoint, and those that stand in for it when it fails.

Made once per run and shared by its shards, so that all of them see one circuit breaker and
one gate per endpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from engine.batch.breaker import Breaker, BreakerRule
from engine.batch.pace import Pace
from engine.batch.replicas import Replicas
from engine.endpoint import Endpoint
from engine.request import Request


@dataclass(frozen=True, slots=True)
class Line:
    """An endpoint with what guards it."""

    endpoint: Endpoint
    breaker: Breaker
    pace: Pace

    def cannot_take(self, request: Request) -> str | None:
        """Return why the endpoint cannot be asked this at all; None where it can."""
        endpoint, profile = self.endpoint, self.endpoint.profile
        if not profile.offers(request.mode):
            return f"has no mode {request.mode}"
        if request.images and not profile.capabilities.images:
            return "takes no images"
        if request.adapter is not None and request.adapter not in profile.adapters:
            return f"has no adapter {request.adapter!r}"
        needed = request.prompt_tokens + request.max_output_tokens + request.max_reasoning_tokens
        if needed > endpoint.context_tokens:
            return f"has a context of {endpoint.context_tokens:,} tokens, {needed:,} are needed"
        return None


@dataclass(frozen=True, slots=True)
class Route:
    """The endpoint of a run with its replicas, and its fallbacks in the order in which they are tried."""

    lines: Sequence[Line]
    """Of the endpoint, its replicas, then the fallbacks."""
    replicas: Replicas = field(default_factory=lambda: Replicas([""]))
    """Of the endpoint, its own server among them."""

    @property
    def num_replicas(self) -> int:
        """Return how many of the lines lead to the endpoint's own model."""
        return len(self.replicas)

    @property
    def endpoint(self) -> Endpoint:
        """Return the run's own endpoint."""
        return self.lines[0].endpoint

    @property
    def max_in_flight(self) -> int:
        """Return how many requests may be under way at once."""
        return self.num_replicas * self.endpoint.profile.limits.max_in_flight

    @contextmanager
    def order(self, request: Request) -> Iterator[Sequence[int]]:
        """Yield the numbers of the lines in the order in which they are tried for a request."""
        fallbacks = range(self.num_replicas, len(self.lines))
        with self.replicas.place(request.affinity) as own:
            yield [*own, *fallbacks]


def route_to(
    *endpoints: Endpoint,
    replicas: Sequence[Endpoint] = (),
    rule: BreakerRule | None = None,
    beside: Sequence[Line] = (),
) -> Route:
    """Return the route to the first endpoint and its replicas, with the others as fallbacks.

    Args:
        endpoints: The first is asked, the others stand in for it.
        replicas: Further servers of the first one's model.
        rule: When an endpoint is left alone.
        beside: Lines of other routes: an endpoint that they lead to keeps its breaker and its gate.
    """
    own = [*endpoints[:1], *replicas]
    known = {line.endpoint.base_url: line for line in beside}
    lines = [
        replace(known[endpoint.base_url], endpoint=endpoint)
        if endpoint.base_url in known
        else Line(endpoint, Breaker(rule), Pace(endpoint.profile.limits))
        for endpoint in [*own, *endpoints[1:]]
    ]
    return Route(lines, Replicas([endpoint.base_url for endpoint in own]))


def line_of_vectors(
    endpoint: Endpoint, *, rule: BreakerRule | None = None, beside: Sequence[Line] = ()
) -> Line:
    """Return the line to an endpoint that makes vectors.

    Args:
        endpoint: Who makes them.
        rule: When it is left alone.
        beside: Lines of routes: an endpoint that they lead to keeps its gate, since a host's limits are for
            all calls. Its breaker it does not keep: one that makes no vectors may well answer questions.
    """
    paces = {line.endpoint.base_url: line.pace for line in beside}
    pace = paces.get(endpoint.base_url) or Pace(endpoint.profile.limits)
    return Line(endpoint, Breaker(rule), pace)
