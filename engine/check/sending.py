"""Sends a check's calls as a batch sends them: through the gate, the budget, the retries and the client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from engine.batch import BreakerRule, Budget, RetryRule, route_to
from engine.batch.call import Account, Caller
from engine.check.questions import Asked
from engine.client import Client
from engine.endpoint import Endpoint
from engine.errors import BudgetReached, EngineUnavailable, RequestRejected
from engine.load import Load
from engine.reply import Reply

POLL_S = 0.25
"""Seconds between two readings of the engine's load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRule:
    """How patient a check is: less than a run, which has work to save."""

    retry: RetryRule = field(default_factory=lambda: RetryRule(max_attempts=3))
    breaker: BreakerRule = field(default_factory=lambda: BreakerRule(give_up_s=30.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """How one call ended."""

    asked: Asked
    reply: Reply | None = None
    """None: there is no answer."""
    error: str | None = None
    """What was said in place of one."""
    is_lost: bool = False
    """Whether the endpoint did not answer, or gave up."""
    is_refused: bool = False
    """Whether the endpoint said no; neither, where the budget of the check was used up."""
    num_retries: int = 0
    """Calls that were refused or lost before this one went through, or was given up."""
    ended_s: float = 0.0
    """When it ended, by the monotonic clock."""

    @property
    def span(self) -> tuple[float, float] | None:
        """Return from when to when the engine was at it; None where the answer was not streamed."""
        reply = self.reply
        if reply is None or reply.first_token_s is None or reply.decoding_s is None:
            return None
        return self.ended_s - reply.first_token_s - reply.decoding_s, self.ended_s


@dataclass(slots=True, kw_only=True)
class Gauge:
    """What the engine told of its load while calls were under way."""

    peak_cache_used: float | None = None
    """Largest share of the KV cache in use, 0 to 1; None: the engine does not tell."""
    peak_waiting: float | None = None
    """Most requests in the engine's own queue."""
    num_preemptions: int | None = None
    """Requests put back to make room for others."""
    was_restarted: bool = False
    """Whether its counters went back: it is another process than at first."""
    _last: float | None = None

    def take(self, load: Load | None) -> None:
        """Take one reading; a missing one says nothing."""
        if load is None:
            return
        self.peak_cache_used = max(self.peak_cache_used or 0.0, load.cache_used)
        self.peak_waiting = max(self.peak_waiting or 0.0, load.num_waiting)
        if self._last is None or load.num_preemptions < self._last:
            self.was_restarted |= self._last is not None
            self.num_preemptions = self.num_preemptions or 0
        else:
            more = int(load.num_preemptions - self._last)
            self.num_preemptions = (self.num_preemptions or 0) + more
        self._last = load.num_preemptions


class Sending:
    """Sends to one endpoint; belongs to one event loop."""

    def __init__(
        self, endpoint: Endpoint, client: Client, *, at_once: int, budget: Budget, rule: CheckRule
    ) -> None:
        self._client, self._at_once = client, at_once
        (line,) = route_to(endpoint, rule=rule.breaker).lines
        self._caller = Caller(line, client, rule.retry, budget)
        self.gauge = Gauge()

    async def all(
        self, calls: Iterable[Asked], told: Callable[[int], None] = lambda _: None
    ) -> list[Answered]:
        """Return how the calls ended, in their order, so many at once as the check is for.

        Args:
            calls: Made one by one, as places become free.
            told: Hears how many have ended.

        Raises:
            EngineMisconfigured: The endpoint refuses every request of this kind.
        """
        places, num_ended = asyncio.Semaphore(self._at_once), 0

        async def one(number: int, asked: Asked) -> Answered:
            nonlocal num_ended
            try:
                return await self._one(asked, number)
            finally:
                places.release()
                num_ended += 1
                told(num_ended)

        tasks: list[asyncio.Task[Answered]] = []
        try:
            async with asyncio.TaskGroup() as group:
                for number, asked in enumerate(calls):
                    await places.acquire()
                    tasks.append(group.create_task(one(number, asked)))
        except BaseExceptionGroup as exc:
            # The first that ended the others; those only tell that they were ended.
            raise exc.exceptions[0] from exc
        return [task.result() for task in tasks]

    async def watch(self) -> None:
        """Read the engine's load until cancelled; stop where it tells none at first."""
        load = await self._client.load()
        if load is None:
            return
        while True:
            self.gauge.take(load)
            await asyncio.sleep(POLL_S)
            load = await self._client.load()

    async def _one(self, asked: Asked, number: int) -> Answered:
        account = Account()
        reply, error, is_lost, is_refused = None, None, False, False
        try:
            reply = await self._caller.call(asked.body, asked.request, number, account, waits=True)
        except EngineUnavailable as exc:
            error, is_lost = str(exc), True
        except RequestRejected as exc:
            error, is_refused = str(exc), True
        except BudgetReached as exc:
            error = str(exc)
        return Answered(
            asked=asked,
            reply=reply,
            error=error,
            is_lost=is_lost,
            is_refused=is_refused,
            num_retries=max(0, account.attempts - 1),
            ended_s=time.monotonic(),
        )
