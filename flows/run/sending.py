"""Sends the questions of one shard and brings each to its end: samples, doubts, single flight."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from engine.batch import run as run_batch
from engine.request import Request, Result
from flows.run.bench import Bench
from flows.run.doubt import Settled, decide, doubt_about, num_allowed, settle
from flows.run.flights import Withdrawn
from flows.run.held import fetch_images
from flows.run.ledger import Ledger, load_answers
from flows.run.rows import Answered, Inquiry, close

if TYPE_CHECKING:
    from flows.run.shard import Shard

logger = logging.getLogger(__name__)


async def answer(shard: Shard, inquiries: AsyncIterator[Inquiry]) -> list[Answered]:
    """Return the ends of the inquiries, in their order; what is doubtful is asked again first."""
    waiting: list[Inquiry] = []
    documents: dict[str, str] = {}
    ledger = shard.ledger

    async def first() -> AsyncIterator[Request]:
        async for inquiry in inquiries:
            waiting.append(inquiry)
            for request in inquiry.requests:
                if inquiry.document is not None:
                    documents[request.request_key] = inquiry.document.document_key
                await _fetch_images(shard, inquiry, request)
                yield request

    await _send(shard, first(), documents)
    settled = [
        settle(inquiry.stage, _found(inquiry.requests, ledger)) if inquiry.requests else None
        for inquiry in waiting
    ]
    doubts = _doubts(waiting, settled)

    await _send(shard, _each(request for request, _ in doubts.values()), documents)
    ends: list[Answered] = []
    for number, inquiry in enumerate(waiting):
        end = settled[number]
        if end is not None and number in doubts:
            request, reason = doubts[number]
            end = decide(end, _found([request], ledger)[0], reason)
        ends.append(close(inquiry, end))
    return ends


async def _fetch_images(shard: Shard, inquiry: Inquiry, request: Request) -> None:
    """Bring the pictures of a document that was not read again, if they are to be sent."""
    if request.images and inquiry.document and not shard.ledger.find(request.request_key):
        key = inquiry.document.document_key
        await asyncio.to_thread(fetch_images, shard.bench.lake, key, request.images)


def _found(requests: Sequence[Request], ledger: Ledger) -> list[Result]:
    results = [ledger.find(request.request_key) for request in requests]
    return [result for result in results if result is not None]


def _doubts(
    inquiries: Sequence[Inquiry], settled: Sequence[Settled | None]
) -> dict[int, tuple[Request, str]]:
    """Return what is asked again and why, by number of the inquiry; no more than a stage allows."""
    asked = Counter(inquiry.stage.name for inquiry in inquiries if inquiry.requests)
    doubts: dict[int, tuple[Request, str]] = {}
    taken: Counter[str] = Counter()
    for number, (inquiry, end) in enumerate(zip(inquiries, settled, strict=True)):
        rule, name = inquiry.stage.escalate, inquiry.stage.name
        if rule is None or end is None or inquiry.again is None:
            continue
        reason = doubt_about(rule, end)
        if reason is not None and taken[name] < num_allowed(rule, asked[name]):
            taken[name] += 1
            doubts[number] = (inquiry.again, reason)
    return doubts


async def _send(
    shard: Shard, requests: AsyncIterator[Request], documents: Mapping[str, str]
) -> None:
    """Send the requests that have no answer yet and that no other shard is sending.

    Args:
        shard: Whose they are.
        requests: In the order to be sent.
        documents: Key of the document that a request is about, by the request's.
    """
    bench, ledger = shard.bench, shard.ledger
    elsewhere: list[tuple[Request, Future[Result]]] = []
    repeated: list[str] = []

    async def unanswered() -> AsyncIterator[Request]:
        seen: set[str] = set()
        async for request in requests:
            key = request.request_key
            bench.progress.add(requests=1)
            # Two copies of a document ask the same question: it is sent once.
            if key in seen:
                repeated.append(key)
                continue
            seen.add(key)
            known = ledger.find(key)
            if known is None:
                flight = bench.flights.board(key)
                if flight is not None:
                    elsewhere.append((request, flight))
                    continue
                shard.boarded.add(key)
                # A shard that had it under way may have been committed a moment ago.
                known = await _from_copy(shard, key, documents)
                if known is not None:
                    bench.flights.land(known)
            if known is None:
                yield request
            else:
                bench.progress.add_result(known)

    await _send_batch(shard, unanswered())
    left = await _arrived_elsewhere(shard, elsewhere)
    if left:
        await _send_batch(shard, _each(left))
    _count_repeated(shard, repeated)


def _count_repeated(shard: Shard, request_keys: Iterable[str]) -> None:
    for result in map(shard.ledger.find, request_keys):
        # None where the budget or the engine let no answer come about.
        if result is not None:
            shard.bench.progress.add_repeated(result)


async def _each(requests: Iterable[Request]) -> AsyncIterator[Request]:
    for request in requests:
        yield request


async def _from_copy(shard: Shard, request_key: str, documents: Mapping[str, str]) -> Result | None:
    """Return what a shard that was committed since has been answered about a copy of the document."""
    document_key, copies = documents.get(request_key), shard.bench.copies
    if document_key is None or copies.find(document_key) in {None, shard.plan.shard}:
        return None
    if shard.looked.get(document_key) != copies.num_commits:
        await asyncio.to_thread(take_over_answers, shard, document_key)
    return shard.ledger.find(request_key)


def take_over_answers(shard: Shard, document_key: str) -> None:
    """Take what another shard was answered about a copy of the document."""
    # Counted first: what is committed from here on is looked for again.
    num_commits = shard.bench.copies.num_commits
    other = shard.bench.copies.find(document_key)
    if other is None or other == shard.plan.shard:
        return
    shard.looked[document_key] = num_commits
    for key, result in load_answers(shard.bench.lake, other):
        if key == document_key:
            shard.ledger.keep(result)


async def _arrived_elsewhere(
    shard: Shard, flights: Sequence[tuple[Request, Future[Result]]]
) -> list[Request]:
    """Take the results that other shards were given, and return the requests they did not come to."""
    left: list[Request] = []
    for request, flight in flights:
        try:
            result = await asyncio.wrap_future(flight)
        except Withdrawn:
            left.append(request)
        else:
            shard.ledger.take_over(result)
            shard.bench.progress.add_result(result)
    return left


async def _send_batch(shard: Shard, requests: AsyncIterator[Request]) -> None:
    bench, ledger = shard.bench, shard.ledger
    batch = run_batch(
        requests,
        bench.route,
        max_in_flight=bench.max_in_flight,
        budget=bench.budget,
        log=ledger,
    )
    async for result in batch:
        if result.request_key in shard.boarded:
            bench.flights.land(result)
        bench.progress.add_result(result)
        _log(bench, result)


def _log(bench: Bench, result: Result) -> None:
    logger.debug(
        "run_id=%s request_id=%s stage=%s outcome=%s attempts=%d seconds=%.2f tokens=%d+%d%s",
        bench.job.run_id,
        result.request_key,
        result.stage,
        result.outcome,
        result.attempts,
        result.seconds,
        result.usage.prompt_tokens,
        result.usage.completion_tokens,
        f": {result.error}" if result.error else "",
    )
