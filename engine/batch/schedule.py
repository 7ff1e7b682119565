"""Sends requests in order, a bounded number at a time, and yields one result for each.

Order is the caller's and carries the prefix plan: requests about one chunk come together. Each takes the
priority that the caller gives it, or that of its place in the order.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from engine.batch.budget import Budget
from engine.batch.call import Account, Caller, CircuitOpen, RetryRule
from engine.batch.embedding import Embedder, TextEmbedding
from engine.batch.hosted import AWAITING_BATCH, AwaitingBatch, BatchDesk, HostedTurns
from engine.batch.ledger import Log, on_record
from engine.batch.route import Line, Route
from engine.client import Client
from engine.embeddings import Vectors
from engine.endpoint import Endpoint
from engine.errors import (
    BudgetAwaited,
    BudgetReached,
    EngineError,
    EngineUnavailable,
    RequestRejected,
    RequestTooLong,
    VectorsUnavailable,
)
from engine.modes import MODES
from engine.modes.agent.asides import Asides, OneAside
from engine.modes.mode import AwaitingApproval, Ending, HandedOver, Means, Send, Workshop
from engine.reply import Reply
from engine.request import Outcome, Request, Result

_CIRCUIT_POLL_S = 0.1
LEAST_AHEAD = 8
"""Requests that may be on record ahead of the places: fewer would wait for the log."""

_DEFAULT_RETRY = RetryRule()
_END = object()


async def run(  # noqa: PLR0913 - each is a part of its own that a caller may leave out
    requests: AsyncIterable[Request],
    route: Route,
    *,
    max_in_flight: int | None = None,
    retry: RetryRule = _DEFAULT_RETRY,
    budget: Budget | None = None,
    log: Log | None = None,
    workshop: Workshop | None = None,
    desk: BatchDesk | None = None,
    embedder: Embedder | None = None,
) -> AsyncGenerator[Result, None]:
    """Yield exactly one result per request, as they finish.

    Args:
        requests: In the order to be sent; taken only when there is room, so they may still be
            being made.
        route: Where to, and what stands in when that fails.
        max_in_flight: Requests under way at the same time, those that wait for a place in the endpoint's
            gate included; the profile's limit where None.
        retry: What to do when an endpoint is unavailable.
        budget: What all calls together may spend; requests beyond it end as `over_budget`.
        log: Has each request before its first call goes out, and each result before it is yielded.
        workshop: What agents work with; None where no request is for one.
        desk: Takes the requests that may go through the host's batch API; None: all are sent at once.
        embedder: Gives the vectors that tools ask for; None where none does.

    Raises:
        EngineMisconfigured: The endpoint refuses every request of this kind.
    """
    limit = max_in_flight or route.max_in_flight
    done: asyncio.Queue[Result | BaseException | object] = asyncio.Queue()
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(_client(line.endpoint, limit)) for line in route.lines
        ]
        callers = [
            Caller(line, client, retry, budget or Budget())
            for line, client in zip(route.lines, clients, strict=True)
        ]
        embedding = None
        if embedder is not None:
            line = embedder.line
            client = await stack.enter_async_context(_client(line.endpoint, limit))
            caller = Caller(line, client, retry, budget or Budget())
            embedding = TextEmbedding(embedder, caller)
        sender = _Sender(route, callers, workshop or Workshop(), desk, embedding=embedding)
        feeder = asyncio.create_task(_feed(requests, sender, done, limit=limit, log=log))
        try:
            while (item := await done.get()) is not _END:
                if isinstance(item, BaseException):
                    raise item
                assert isinstance(item, Result)
                yield item
        finally:
            feeder.cancel()
            await asyncio.gather(feeder, return_exceptions=True)


def _client(endpoint: Endpoint, max_connections: int) -> Client:
    return Client(
        endpoint.base_url,
        api_key=endpoint.api_key,
        max_connections=max_connections,
        key=endpoint.profile.key_in_words,
    )


async def _feed(
    requests: AsyncIterable[Request],
    sender: _Sender,
    done: asyncio.Queue[Result | BaseException | object],
    *,
    limit: int,
    log: Log | None,
) -> None:
    """Start a task per request as places become free; put results, or what went wrong, in `done`.

    Raises:
        CancelledError: The reader of `done` has gone.
    """
    places = asyncio.Semaphore(limit)
    tasks: set[asyncio.Task[None]] = set()

    async def one(request: Request, priority: int) -> None:
        try:
            result = await sender.result(request, priority)
            if log is not None:
                log.note(result)
            done.put_nowait(result)
        except Exception as exc:  # noqa: BLE001 - handed to the reader of `done`, which raises it
            done.put_nowait(exc)
        finally:
            places.release()

    places_taken = itertools.count()
    try:
        async with aclosing(
            on_record(requests, log, ahead=max(LEAST_AHEAD, limit // 2))
        ) as recorded:
            async for request in recorded:
                await places.acquire()
                place = next(places_taken)
                priority = place if request.priority is None else request.priority
                task = asyncio.create_task(one(request, priority))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
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
    """Carries out one request after the other, on the first endpoint that can."""

    def __init__(
        self,
        route: Route,
        callers: Sequence[Caller],
        workshop: Workshop,
        desk: BatchDesk | None,
        *,
        embedding: TextEmbedding | None,
    ) -> None:
        self._route, self._callers, self._workshop, self._desk = route, callers, workshop, desk
        self._embedding = embedding
        self._asides = Asides()

    async def result(self, request: Request, priority: int) -> Result:
        """Return the request's one result."""
        with self._route.order(request) as order:
            if self._desk_of(request, 0) is not None:
                # A batch goes to the address that the profile names first, whatever replicas there are.
                order = [0, *(number for number in order if not self._is_own(number))]
            return await self._result(request, priority, order)

    def _desk_of(self, request: Request, number: int) -> BatchDesk | None:
        """Return what takes a request to an endpoint's batch API; None where it is sent at once."""
        desk, endpoint = self._desk, self._callers[number].line.endpoint
        # Whatever else is on the route, a desk sends to its own host only.
        is_its_host = desk is not None and desk.base_url == endpoint.base_url
        return desk if is_its_host and request.batch_api is not None else None

    async def _result(self, request: Request, priority: int, order: Sequence[int]) -> Result:
        started = time.monotonic()
        account = Account()
        found = await self._first_that_can(request, priority, account, order)
        while found.is_waiting:
            await asyncio.sleep(_CIRCUIT_POLL_S)
            found = await self._first_that_can(request, priority, account, order)
        ending, reasons = found.ending, found.reasons
        if ending.outcome != "over_budget":
            # Before its end they would be counted again with the result that rests on them all.
            account.take_lines()
        answered_by, is_own = self._callers[found.number], self._is_own(found.number)
        endpoint = answered_by.line.endpoint
        return Result(
            request_key=request.request_key,
            stage=request.stage,
            outcome=ending.outcome,
            output=ending.output,
            error_class=ending.error_class,
            error=_told(ending, found.others) if is_own else ending.error,
            mode=request.mode,
            mode_observed=ending.mode_observed,
            mode_notes=ending.mode_notes,
            reasoning=ending.reasoning,
            model=request.adapter or endpoint.model,
            engine=endpoint.profile.name,
            host=urlsplit(endpoint.base_url).netloc,
            fallback=None if is_own else "; ".join(reasons),
            finish_reason=ending.finish_reason,
            usage=account.usage,
            cost_usd=account.cost_usd,
            gpu_seconds=account.gpu_seconds,
            attempts=account.attempts,
            seconds=account.batch_s + time.monotonic() - started,
            first_token_s=account.first_token_s,
            queued_s=account.queued_s,
            decoding_s=account.decoding_s,
            work=ending.work,
            batch_ids=tuple(account.batch_ids),
        )

    async def _first_that_can(
        self, request: Request, priority: int, account: Account, order: Sequence[int]
    ) -> _Found:
        """Return how the request ended on the first endpoint that could take it, or on the last."""
        found = _Found(number=order[0], ending=_NOT_SENT)
        for number in order:
            if found.is_refused and self._is_own(number):
                # A replica would refuse it as well.
                continue
            caller = self._callers[number]
            why = caller.line.cannot_take(request) if found.reasons else None
            if why is None:
                ending, why = await self._try(number, request, priority, account, order=order)
                if ending is None:
                    found.open_circuits.append(caller)
                else:
                    found.number, found.ending = number, ending
            if why is None:
                found.open_circuits.clear()
                return found
            found.reasons.append(f"{caller.line.endpoint.profile.name}: {why}")
            if not self._is_own(number):
                found.others.append(found.reasons[-1])
        if found.ending is _NOT_SENT:
            found.ending = _ended("failed", "engine_unavailable", found.reasons[0])
        else:
            found.open_circuits.clear()
        return found

    def _is_own(self, number: int) -> bool:
        """Tell whether a line leads to the pipeline's own engine."""
        return number < self._route.num_replicas

    async def _try(
        self,
        number: int,
        request: Request,
        priority: int,
        account: Account,
        *,
        order: Sequence[int],
    ) -> tuple[Ending | None, str | None]:
        """Return how the request ended on one endpoint, and why the next one is to be tried.

        There is no end where the endpoint's circuit is open, unless there is no other endpoint.

        Raises:
            EngineMisconfigured: The endpoint refuses every request of this kind.
        """
        caller, waits = self._callers[number], len(order) == 1
        hosted, desk = None, self._desk_of(request, number)
        if desk is not None and request.batch_api is not None:
            hosted = HostedTurns(request, request.batch_api, caller, desk)

        async def send(body: Mapping[str, Any]) -> Reply:
            if hosted is not None:
                return await hosted.call(body, priority, account)
            return await caller.call(body, request, priority, account, waits=waits)

        try:
            # Asked before the body is made, which may have pictures in it.
            if not waits and hosted is None:
                caller.require_closed()
            means = Means(send=send)
            if request.limits is not None:
                after = order[order.index(number) + 1 :]
                others = [self._callers[n].line for n in after if not self._is_own(n)]
                means = self._agents_means(request, caller, send, account, others)
            mode = MODES[request.mode]
            return await mode.carry_out(request, caller.line.endpoint, means), None
        except tuple(_ENDS) as exc:
            return _end_of(exc, request, caller.line.endpoint)

    def _agents_means(  # noqa: PLR0917 - one attempt's own parts
        self,
        request: Request,
        caller: Caller,
        send: Send,
        account: Account,
        others: Sequence[Line],
    ) -> Means:
        steps = self._workshop.steps(request)
        # What this attempt itself has paid, on an engine before this one, is in the account already.
        if not account.is_restored:
            account.is_restored = True
            for event in steps.paid():
                account.add(event.usage, event.cost_usd, event.gpu_seconds)

        def can_hand_over() -> bool:
            return any(
                line.cannot_take(request) is None and line.breaker.look() == "go" for line in others
            )

        async def embed(texts: Sequence[str], *, are_queries: bool) -> Vectors:
            assert self._embedding is not None, "tools are made for what the run has"
            return await self._embedding.vectors(texts, request, account, are_queries=are_queries)

        def aside(call_id: str) -> OneAside:
            return OneAside(
                call_id=call_id,
                asides=self._asides,
                request=request,
                endpoint=caller.line.endpoint,
                send=send,
                steps=steps,
                embed_texts=embed,
            )

        return Means(
            send=send,
            tools=self._workshop.tools(request),
            steps=steps,
            aside=aside,
            approval=self._workshop.approval,
            can_hand_over=can_hand_over,
        )


@dataclass(slots=True, kw_only=True)
class _Found:
    """Where a request's way along the endpoints has led."""

    number: int
    """Of the last endpoint that it was tried on."""
    ending: Ending
    reasons: list[str] = field(default_factory=list)
    """Why endpoints did not take it."""
    others: list[str] = field(default_factory=list)
    """Those of the fallbacks."""
    open_circuits: list[Caller] = field(default_factory=list)
    """Endpoints that are left alone for a while, where it could be sent to none."""

    @property
    def is_refused(self) -> bool:
        """Tell whether an endpoint took it and refused it."""
        return self.ending is not _NOT_SENT and self.ending.error_class != "engine_unavailable"

    @property
    def is_waiting(self) -> bool:
        """Tell whether it was sent nowhere, and an endpoint may still come back."""
        return any(caller.line.breaker.look() != "give_up" for caller in self.open_circuits)


_NOT_SENT = Ending(outcome="failed")


_ENDS: Mapping[type[EngineError], tuple[Outcome, str]] = {
    RequestTooLong: ("rejected", "too_long"),
    RequestRejected: ("failed", "request_rejected"),
    EngineUnavailable: ("failed", "engine_unavailable"),
    HandedOver: ("failed", "drifted"),
    # No other engine would help.
    VectorsUnavailable: ("failed", "vectors_unavailable"),
    # These can be resumed as well.
    BudgetAwaited: ("over_budget", AWAITING_BATCH),
    BudgetReached: ("over_budget", "budget_reached"),
    AwaitingApproval: ("over_budget", "awaiting_approval"),
    AwaitingBatch: ("over_budget", AWAITING_BATCH),
}
"""What becomes of a request by the error that ended it, those first that are a kind of another."""


def _end_of(
    exc: EngineError, request: Request, endpoint: Endpoint
) -> tuple[Ending | None, str | None]:
    """Return how an error ended a request, and why the next engine is to be tried."""
    if isinstance(exc, CircuitOpen):
        return None, str(exc)
    outcome, error_class = next(end for kind, end in _ENDS.items() if isinstance(exc, kind))
    more = _counted_here(request, endpoint) if isinstance(exc, RequestTooLong) else ""
    ending = _ended(outcome, error_class, exc, more)
    is_of_engine = outcome != "over_budget" and not isinstance(exc, VectorsUnavailable)
    return ending, str(exc) if is_of_engine else None


def _told(ending: Ending, others: Sequence[str]) -> str | None:
    """Return the engine's error, with why no fallback stood in."""
    fallbacks = "; ".join(others)
    return f"{ending.error}; fallback: {fallbacks}" if ending.error and others else ending.error


def _ended(outcome: Outcome, error_class: str, exc: Exception | str, more: str = "") -> Ending:
    return Ending(outcome=outcome, error_class=error_class, error=f"{exc}{more}")


def _counted_here(request: Request, endpoint: Endpoint) -> str:
    answer = request.max_output_tokens + request.max_reasoning_tokens
    exact = endpoint.counter.exact
    how = "" if exact else " by estimate; the model's vocabulary makes it exact (docs/engines.md)"
    return (
        f"; counted here for the first call: {request.prompt_tokens:,} for the prompt, up to"
        f" {answer:,} for the answer{how}. For a stage over chunks lower chunk.max_tokens; for one"
        " over documents raise it, so that fewer lines are quoted"
    )
