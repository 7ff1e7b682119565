"""Sends requests in order, a bounded number at a time, and yields one result for each.

Order is the caller's and carries the prefix plan: requests about one chunk come together, so each
takes the priority of its place in the order.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.batch.budget import Budget
from engine.client import Client, Reply
from engine.endpoint import Endpoint
from engine.errors import BudgetReached, EngineUnavailable, RequestRejected
from engine.modes import MODES
from engine.modes.mode import Verdict
from engine.request import Outcome, Request, Result, Usage, add_usage
from engine.tokens import BYTES_PER_TOKEN

logger = logging.getLogger(__name__)


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
            return min(retry_after_s, 10 * self.max_delay_s)
        base = min(self.max_delay_s, self.first_delay_s * 2.0 ** (attempt - 1))
        return base * random.uniform(0.5, 1.5)


_DEFAULT_RETRY = RetryRule()
_END = object()


async def run(
    requests: AsyncIterable[Request],
    endpoint: Endpoint,
    *,
    max_in_flight: int | None = None,
    retry: RetryRule = _DEFAULT_RETRY,
    budget: Budget | None = None,
) -> AsyncIterator[Result]:
    """Yield exactly one result per request, as they finish.

    Args:
        requests: In the order to be sent; taken only when there is room, so they may still be
            being made.
        endpoint: Where to.
        max_in_flight: Requests under way at the same time; the profile's limit where None.
        retry: What to do when the endpoint is unavailable.
        budget: What all calls together may spend; requests beyond it end as `over_budget`.

    Raises:
        EngineMisconfigured: The endpoint refuses every request of this kind.
    """
    limit = max_in_flight or endpoint.profile.max_in_flight
    done: asyncio.Queue[Result | BaseException | object] = asyncio.Queue()
    async with Client(endpoint.base_url, api_key=endpoint.api_key, max_connections=limit) as client:
        sender = _Sender(endpoint, client, retry, budget or Budget(prices=endpoint.profile.prices))
        feeder = asyncio.create_task(_feed(requests, sender, limit, done))
        try:
            while (item := await done.get()) is not _END:
                if isinstance(item, BaseException):
                    raise item
                assert isinstance(item, Result)
                yield item
        finally:
            feeder.cancel()
            await asyncio.gather(feeder, return_exceptions=True)


async def _feed(
    requests: AsyncIterable[Request],
    sender: _Sender,
    limit: int,
    done: asyncio.Queue[Result | BaseException | object],
) -> None:
    """Start a task per request as places become free; put results, or what went wrong, in `done`.

    Raises:
        CancelledError: The reader of `done` has gone.
    """
    places = asyncio.Semaphore(limit)
    tasks: set[asyncio.Task[None]] = set()

    async def one(request: Request, priority: int) -> None:
        try:
            done.put_nowait(await sender.result(request, priority))
        except Exception as exc:  # noqa: BLE001 - handed to the reader of `done`, which raises it
            done.put_nowait(exc)
        finally:
            places.release()

    priority = 0
    try:
        async for request in requests:
            await places.acquire()
            task = asyncio.create_task(one(request, priority))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            priority += 1
        await asyncio.gather(*tasks)
        done.put_nowait(_END)
    except asyncio.CancelledError:
        raise
    except Exception as exc:  # noqa: BLE001 - the source of requests failed: raised by the reader
        done.put_nowait(exc)
    finally:
        for task in tasks:
            task.cancel()


class _Sender:
    """Carries out one request after the other over a shared client."""

    def __init__(
        self, endpoint: Endpoint, client: Client, retry: RetryRule, budget: Budget
    ) -> None:
        self._endpoint = endpoint
        self._client = client
        self._retry = retry
        self._budget = budget

    async def result(self, request: Request, priority: int) -> Result:
        """Return the request's one result."""
        started = time.monotonic()
        account = _Account()

        async def send(body: Mapping[str, Any]) -> Reply:
            reserved = await self._budget.reserve(body)
            usage = Usage()
            try:
                reply = await self._call(body, priority, request, account)
                usage = reply.usage
            finally:
                self._budget.settle(reserved, usage)
            account.usage = add_usage(account.usage, usage)
            return reply

        try:
            verdict = await MODES[request.mode].carry_out(request, self._endpoint, send)
        except RequestRejected as exc:
            verdict = _ended("failed", "request_rejected", exc)
        except EngineUnavailable as exc:
            verdict = _ended("failed", "engine_unavailable", exc)
        except BudgetReached as exc:
            verdict = _ended("over_budget", "budget_reached", exc)
        return Result(
            request_key=request.request_key,
            stage=request.stage,
            outcome=verdict.outcome,
            output=verdict.output,
            error_class=verdict.error_class,
            error=verdict.error,
            mode=request.mode,
            mode_observed=verdict.mode_observed,
            model=self._endpoint.model,
            finish_reason=verdict.finish_reason,
            usage=account.usage,
            cost_usd=self._budget.price(account.usage),
            attempts=account.attempts,
            seconds=time.monotonic() - started,
        )

    async def _call(
        self, body: Mapping[str, Any], priority: int, request: Request, account: _Account
    ) -> Reply:
        """Return the reply of one turn, after as many calls as the retry rule allows.

        Raises:
            EngineUnavailable: The last call failed as well.
            AssertionError: Never.
        """
        text = (request.instructions, request.material, request.question)
        prompt_tokens = sum(map(len, text)) // BYTES_PER_TOKEN
        if self._endpoint.profile.capabilities.priority:
            body = {**body, "priority": priority}
        for attempt in range(1, self._retry.max_attempts + 1):
            account.attempts += 1
            try:
                return await self._client.complete(body, prompt_tokens=prompt_tokens)
            except EngineUnavailable as exc:
                if attempt == self._retry.max_attempts:
                    raise
                delay_s = self._retry.delay_s(attempt, exc.retry_after_s)
                logger.debug(
                    "request_id=%s attempt=%d: %s; again in %.1f s",
                    request.request_key,
                    attempt,
                    exc,
                    delay_s,
                )
                await asyncio.sleep(delay_s)
        raise AssertionError("unreachable: the last attempt returns or raises")


@dataclass(slots=True)
class _Account:
    """What one request has taken so far: calls, and tokens of those that answered."""

    attempts: int = 0
    usage: Usage = field(default_factory=Usage)


def _ended(outcome: Outcome, error_class: str, exc: Exception) -> Verdict:
    return Verdict(outcome=outcome, error_class=error_class, error=str(exc), usage=Usage())
