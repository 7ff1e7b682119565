"""One turn on one endpoint: the budget is asked, the pace kept, the breaker heard, failures retried."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from engine.batch.amount import (
    Amount,
    amount_of,
    cost_usd,
    gpu_seconds,
    usage_of,
    usage_of_texts,
    worst_prompt_tokens,
    worst_usage,
    worst_usage_of_texts,
)
from engine.batch.budget import Budget
from engine.batch.pace import Place
from engine.batch.route import Line
from engine.client import Client
from engine.embeddings import Vectors
from engine.errors import BudgetReached, EngineUnavailable, RequestRejected
from engine.reply import Reply
from engine.request import Request, Usage, add_usage, as_later

logger = logging.getLogger(__name__)

_BREAKER_POLL_S = 0.05
_BUSY = 429
_AWAY = 503
"""With a Retry-After it means 'busy' as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRule:
    """How often and how late a call is sent again after EngineUnavailable."""

    max_attempts: int = 6
    """Calls in all for one turn. With the delays below the last one goes out after about a minute."""
    first_delay_s: float = 1.0
    """Delay before the second call; doubled each time, with jitter of half to one and a half."""
    max_delay_s: float = 30.0
    """Longest delay, but for a Retry-After of the endpoint, which is followed up to ten times it."""

    def delay_s(self, attempt: int, retry_after_s: float | None) -> float:
        """Return the delay after failed call number `attempt`, counted from 1."""
        if retry_after_s is not None:
            # A little later than told, and not all at the same moment.
            return min(retry_after_s, 10 * self.max_delay_s) * random.uniform(1.0, 1.2)
        base = min(self.max_delay_s, self.first_delay_s * 2.0 ** (attempt - 1))
        return base * random.uniform(0.5, 1.5)


@dataclass(slots=True)
class Account:
    """What one request has taken so far: calls, and tokens of those that answered."""

    attempts: int = 0
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = None
    gpu_seconds: float | None = None
    first_token_s: float | None = None
    decoding_s: float | None = None
    queued_s: float = 0.0
    """Waited here: for budget, pace and breaker."""
    opening_tokens: int | None = None
    """Of the first turn's prompt at worst; what later turns have beyond it comes on top of its count."""

    batch_ids: dict[str, None] = field(default_factory=dict)
    """The host's batches that answered, in their order."""
    batch_s: float = 0.0
    """Time that they took."""
    lines: Account | None = None
    """What lines of batches took, which is read anew each time that the request is carried out."""
    is_restored: bool = False
    """Whether what earlier attempts have paid for this request is in it."""

    def add(self, usage: Usage, cost_usd: float | None, gpu_seconds: float | None) -> None:
        """Add what one more call took."""
        # Vectors of texts are no call that goes on with what an earlier one has said.
        is_later = (
            self.usage.prompt_tokens > self.usage.embedded_tokens and not usage.embedded_tokens
        )
        self.usage = add_usage(self.usage, as_later(usage) if is_later else usage)
        self._pay(cost_usd, gpu_seconds)

    def _pay(self, cost_usd: float | None, gpu_seconds: float | None) -> None:
        if cost_usd is not None:
            self.cost_usd = cost_usd + (self.cost_usd or 0.0)
        if gpu_seconds is not None:
            self.gpu_seconds = gpu_seconds + (self.gpu_seconds or 0.0)

    def of_lines(self) -> Account:
        """Return the account of the request's lines in batches, apart from that of its calls."""
        if self.lines is None:
            self.lines = Account()
        return self.lines

    def take_lines(self) -> None:
        """Count what its lines took with its calls: the request has come to its end."""
        lines, self.lines = self.lines, None
        if lines is None:
            return
        # A request's first call is a line, where any was answered.
        calls = as_later(self.usage) if lines.usage.prompt_tokens else self.usage
        self.usage = add_usage(lines.usage, calls)
        self._pay(lines.cost_usd, lines.gpu_seconds)
        self.attempts += lines.attempts
        self.batch_ids |= lines.batch_ids
        self.batch_s += lines.batch_s

    @contextmanager
    def queueing(self) -> Iterator[None]:
        """Count the time that the block takes as waiting."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.queued_s += time.monotonic() - started


class CircuitOpen(EngineUnavailable):
    """The endpoint is left alone for a while; nothing was sent."""


_Answer = TypeVar("_Answer", Reply, Vectors)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call(Generic[_Answer]):
    """One call as it is sent again and again, until it is answered."""

    send: Callable[[Place], Awaitable[_Answer]]
    tokens: int
    """Of prompt and answer, for the host's limits."""
    request_key: str
    priority: int
    waits: bool


class Caller:
    """Makes calls to one endpoint of a route."""

    def __init__(self, line: Line, client: Client, retry: RetryRule, budget: Budget) -> None:
        self.line = line
        self._client = client
        self._retry = retry
        self.budget = budget

    async def call(
        self,
        body: Mapping[str, Any],
        request: Request,
        priority: int,
        account: Account,
        *,
        waits: bool,
    ) -> Reply:
        """Return the reply of one turn, its usage filled in where the endpoint did not tell it.

        Raises:
            EngineUnavailable: It failed as often as the retry rule allows, or the circuit is open.
            RequestRejected: The endpoint refuses it.
            BudgetReached: The budget does not cover it.
            EngineMisconfigured: A limit is in a unit of which the profile knows nothing.
        """
        profile = self.line.endpoint.profile
        if profile.capabilities.priority:
            body = {**body, "priority": priority}
        worst = worst_usage(body, request)
        with account.queueing():
            # In front of the call: nothing that is paid for waits for it.
            await self._read_load()
            reserved = await self.budget.reserve(request.stage, worst, profile)
        used = Amount()
        try:
            tokens = _prompt_tokens(body, request, account)

            async def send(place: Place) -> Reply:
                return await self._client.complete(body, prompt_tokens=tokens, watch=place)

            call = _Call(
                send=send,
                tokens=tokens + body["max_tokens"],
                request_key=request.request_key,
                priority=priority,
                waits=waits,
            )
            reply = await self._retried(call, account)
            usage = usage_of(reply, body, worst)
            used = amount_of(usage, profile)
        finally:
            self.budget.settle(reserved, used)
        cost, time_s = cost_usd(usage, profile.prices), gpu_seconds(usage, profile)
        account.add(usage, cost, time_s)
        account.first_token_s, account.decoding_s = reply.first_token_s, reply.decoding_s
        return replace(reply, usage=usage, cost_usd=cost, gpu_seconds=time_s)

    async def embed(self, body: Mapping[str, Any], request: Request, account: Account) -> Vectors:
        """Return the vectors of the texts in `body["input"]`, their usage filled in.

        It waits while the circuit is open.

        Raises:
            EngineUnavailable: It failed as often as the retry rule allows, or the circuit is open for good.
            RequestRejected: The endpoint refuses it.
            BudgetReached: The budget does not cover it.
            EngineMisconfigured: A limit is in a unit of which the profile knows nothing.
        """
        profile = self.line.endpoint.profile
        worst = worst_usage_of_texts(body["input"])
        with account.queueing():
            reserved = await self.budget.reserve(request.stage, worst, profile)
        used = Amount()
        try:

            async def send(place: Place) -> Vectors:
                return await self._client.embed(
                    body, prompt_tokens=worst.prompt_tokens, watch=place
                )

            call = _Call(
                send=send,
                tokens=worst.prompt_tokens,
                request_key=request.request_key,
                priority=request.priority or 0,
                waits=True,
            )
            found = await self._retried(call, account)
            usage = usage_of_texts(found.usage, body["input"], worst)
            used = amount_of(usage, profile)
        finally:
            self.budget.settle(reserved, used)
        cost, time_s = cost_usd(usage, profile.prices), gpu_seconds(usage, profile)
        account.add(usage, cost, time_s)
        return replace(found, usage=usage, cost_usd=cost, gpu_seconds=time_s)

    async def _retried(self, call: _Call[_Answer], account: Account) -> _Answer:
        """Return the answer, after as many calls as the retry rule allows.

        Raises:
            EngineUnavailable: The last call failed as well.
            CircuitOpen: It is not to be called now.
            AssertionError: Never.
        """
        for attempt in range(1, self._retry.max_attempts + 1):
            try:
                return await self._once(call, account)
            except CircuitOpen:
                raise
            except EngineUnavailable as exc:
                if attempt == self._retry.max_attempts:
                    raise
                # Where the host said when, the gate holds all calls back until then.
                held = _is_busy(exc) and exc.retry_after_s is not None
                delay_s = 0.0 if held else self._retry.delay_s(attempt, exc.retry_after_s)
                logger.debug(
                    "request_id=%s attempt=%d: %s; again in %.1f s",
                    call.request_key,
                    attempt,
                    exc,
                    delay_s,
                )
                await asyncio.sleep(delay_s)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _once(self, call: _Call[_Answer], account: Account) -> _Answer:
        """Return the answer to one call, sent when breaker and gate both let it.

        Raises:
            BudgetReached: The budget's time is over by then.
        """
        while True:
            async with AsyncExitStack() as stack:
                with account.queueing():
                    await self._admitted(waits=call.waits)
                    place = self.line.pace.place(call.tokens, call.priority)
                    await stack.enter_async_context(place)
                try:
                    self.budget.require_time()
                except BudgetReached:
                    place.withdraw()
                    raise
                # Asked again: the circuit may have opened while the call waited for its place.
                if self.line.breaker.admit() == "go":
                    account.attempts += 1
                    return await self._send(call, place)
                place.withdraw()

    async def _send(self, call: _Call[_Answer], place: Place) -> _Answer:
        breaker = self.line.breaker
        told = False
        try:
            answer = await call.send(place)
        except EngineUnavailable as exc:
            told = True
            # 'Busy' is an answer: the endpoint is alive.
            if _is_busy(exc):
                place.refused(exc.retry_after_s)
                self._lives()
            else:
                breaker.failed(str(exc))
            raise
        except RequestRejected:
            told = True
            self._lives()
            raise
        else:
            told = True
            self._lives()
            place.wait_s = answer.first_token_s
            return answer
        finally:
            if not told:
                breaker.withdrawn()

    def _lives(self) -> None:
        """Tell the breaker of an answer; after the circuit was open, calls begin slowly again."""
        if self.line.breaker.succeeded():
            self.line.pace.restart()

    async def _read_load(self) -> None:
        """Read how busy the engine is, where it tells that and it is time to."""
        if self.line.endpoint.profile.capabilities.priority and self.line.pace.begin_reading():
            self.line.pace.loaded(await self._client.load())

    async def _admitted(self, *, waits: bool) -> None:
        """Wait while the circuit is open; go on to the next endpoint at once where there is one.

        Raises:
            CircuitOpen: It has been open for too long, or another endpoint stands in.
        """
        while (answer := self.line.breaker.look()) != "go":
            if answer == "give_up" or not waits:
                self.require_closed()
            await asyncio.sleep(_BREAKER_POLL_S)

    def require_closed(self) -> None:
        """Check that a call may go out now.

        Raises:
            CircuitOpen: The endpoint is left alone for a while.
        """
        if self.line.breaker.look() != "go":
            raise CircuitOpen(
                f"{self.line.endpoint.base_url} failed again and again and is left alone for a while;"
                f" the last time: {self.line.breaker.last_failure}"
            )


def _is_busy(exc: EngineUnavailable) -> bool:
    """Tell whether the host says that it has too much to do."""
    return exc.status == _BUSY or (exc.status == _AWAY and exc.retry_after_s is not None)


def _prompt_tokens(body: Mapping[str, Any], request: Request, account: Account) -> int:
    """Return the tokens of a turn's prompt: as counted, and what later turns add at worst."""
    worst = worst_prompt_tokens(body)
    if account.opening_tokens is None:
        account.opening_tokens = worst
    if not request.prompt_tokens:
        return worst
    return request.prompt_tokens + max(0, worst - account.opening_tokens)
