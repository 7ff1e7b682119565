"""Sends the questions of one shard family by family, and brings each to its end.

A family is what is asked about one chunk, some rows, or one node of a reduce: its requests share a prefix. What
depends on earlier answers of a family goes out before anything of a later family, while the engine still
holds the prefix; a further family is begun when a place would be idle otherwise, and not before the
engine's KV cache has room for it beside those that are open.

No family waits for a later one: it waits for its own requests, which are sent in the order of the families,
for those of an earlier one (rows for their chunk), or for one that another shard has begun to send, which
that shard sends whatever it waits for itself. So there is always something that goes on. (docs/decisions/0011-chunk-by-chunk.md)
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from engine.batch import run as run_batch
from engine.request import Request, Result
from flows.run.bench import Bench
from flows.run.doubt import decide, doubt_about, num_allowed, settle
from flows.run.flights import Withdrawn
from flows.run.held import fetch_images
from flows.run.ledger import load_answers
from flows.run.rows import Answered, Inquiry, close

if TYPE_CHECKING:
    from flows.run.shard import Shard

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Questions about the same material."""

    tokens: int
    """Of the material."""
    work: Callable[[int], Awaitable[None]]
    """Asks them, under the family's number."""


class Scheduler:
    """Asks the questions of one shard."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._ready: list[tuple[int, int, Request]] = []
        self._pushed = itertools.count()
        self._results: dict[str, asyncio.Future[Result]] = {}
        self._open: dict[asyncio.Task[None], int] = {}
        self._beginning: set[int] = set()
        """Groups that have been begun and have not asked anything yet."""
        self._changed = asyncio.Event()

    async def work_off(self, families: AsyncIterator[Family]) -> None:
        """Begin the families in their order, and return when all have ended.

        Raises:
            EngineMisconfigured: The endpoint refuses every request.
        """
        bench = self._shard.bench
        batch = run_batch(
            self._requests(families),
            bench.route,
            max_in_flight=bench.max_in_flight,
            budget=bench.budget,
            log=self._shard.ledger,
        )
        try:
            async with aclosing(batch) as results:
                async for result in results:
                    self._arrived(result)
        finally:
            for task in self._open:
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)
            self._open.clear()

    async def ask(self, inquiry: Inquiry, family: int) -> Answered:
        """Return the end of an inquiry, without what is asked where it is doubtful."""
        if not inquiry.requests:
            return close(inquiry, None)
        asked = (self._result(inquiry, request, family) for request in inquiry.requests)
        results = await asyncio.gather(*asked)
        return close(inquiry, settle(inquiry.stage, results))

    def wait_for_earlier(self, family: int) -> None:
        """Let later families begin, while this one waits for what an earlier one asks."""
        self._asked(family)

    async def answer(self, inquiries: Sequence[Inquiry]) -> list[Answered]:
        """Return the ends of inquiries that each are a family, in their order."""
        ends: dict[int, Answered] = {}

        async def ask(number: int, inquiry: Inquiry, family: int) -> None:
            ends[number] = await self.ask(inquiry, family)

        async def families() -> AsyncIterator[Family]:
            for number, inquiry in enumerate(inquiries):
                yield Family(tokens=inquiry.material_tokens, work=partial(ask, number, inquiry))

        await self.work_off(families())
        return await self.ask_again([ends[number] for number in range(len(inquiries))])

    async def ask_again(self, ends: Sequence[Answered]) -> list[Answered]:
        """Return the ends with what is doubtful asked once more; no more of it than a stage allows."""
        doubts = _doubts(ends)
        found = list(ends)

        async def again(number: int, family: int) -> None:
            inquiry, request = ends[number].inquiry, ends[number].inquiry.again
            assert request is not None
            first = settle(inquiry.stage, ends[number].results)
            end = decide(first, await self._result(inquiry, request, family), doubts[number])
            found[number] = close(inquiry, end)

        async def families() -> AsyncIterator[Family]:
            for number in doubts:
                tokens = ends[number].inquiry.material_tokens
                yield Family(tokens=tokens, work=partial(again, number))

        if doubts:
            await self.work_off(families())
        return found

    async def _requests(self, families: AsyncIterator[Family]) -> AsyncIterator[Request]:
        """Yield the requests to be sent, each time one can be."""
        coming: asyncio.Task[Family | None] | None = self._fetch(families)
        try:
            while True:
                self._changed.clear()
                self._close_ended()
                if self._ready:
                    yield heapq.heappop(self._ready)[-1]
                elif coming and coming.done() and self._has_room(coming.result()):
                    family = coming.result()
                    coming = None if family is None else self._fetch(families)
                    if family is not None:
                        self._begin(family)
                elif coming is None and not self._open:
                    return
                else:
                    await self._changed.wait()
        finally:
            if coming:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)

    def _fetch(self, families: AsyncIterator[Family]) -> asyncio.Task[Family | None]:
        async def following() -> Family | None:
            return await anext(families, None)

        task = asyncio.create_task(following())
        task.add_done_callback(lambda _: self._changed.set())
        return task

    def _begin(self, family: Family) -> None:
        number = next(self._shard.bench.family_numbers)
        self._beginning.add(number)

        async def work() -> None:
            try:
                await family.work(number)
            finally:
                self._asked(number)

        task = asyncio.create_task(work())
        self._open[task] = family.tokens
        task.add_done_callback(lambda _: self._changed.set())

    def _asked(self, family: int) -> None:
        """Take down that a family has asked something, or ended."""
        self._beginning.discard(family)
        self._changed.set()

    def _close_ended(self) -> None:
        """Forget the families that have ended.

        Raises:
            Exception: What one of them has ended with.
        """
        for task in [task for task in self._open if task.done()]:
            del self._open[task]
            task.result()

    def _has_room(self, family: Family | None) -> bool:
        """Tell whether a family can be begun now; None stands for the end of the families."""
        if family is None:
            return True
        if self._beginning:
            return False
        room = self._shard.bench.family_tokens
        return room is None or not self._open or sum(self._open.values()) + family.tokens <= room

    async def _result(self, inquiry: Inquiry, request: Request, family: int) -> Result:
        """Return a request's one result; the same question is sent once, whoever asks it."""
        progress = self._shard.bench.progress
        progress.add(requests=1)
        arriving = self._results.get(request.request_key)
        if arriving is not None:
            self._asked(family)
            # Not to be cancelled with the first that gives up.
            result = await asyncio.shield(arriving)
            progress.add_repeated(result)
            return result
        arriving = asyncio.get_running_loop().create_future()
        self._results[request.request_key] = arriving
        known = self._shard.ledger.find(request.request_key)
        known = known or await self._from_elsewhere(inquiry, request.request_key, family)
        if known is not None:
            progress.add_result(known)
            arriving.set_result(known)
            return known
        document = inquiry.document
        if request.images and document:
            # Of a document that was not read again they are in the sink only.
            lake, key = self._shard.bench.lake, document.document_key
            await asyncio.to_thread(fetch_images, lake, key, request.images)
        place = next(self._pushed)
        heapq.heappush(self._ready, (family, place, replace(request, priority=family)))
        self._asked(family)
        return await arriving

    async def _from_elsewhere(
        self, inquiry: Inquiry, request_key: str, family: int
    ) -> Result | None:
        """Return what another shard is or was answered; None where the request is this shard's to send."""
        shard, flights = self._shard, self._shard.bench.flights
        while (flight := flights.board(request_key)) is not None:
            self._asked(family)
            try:
                result = await asyncio.wrap_future(flight)
            except Withdrawn:
                continue
            shard.ledger.take_over(result)
            return result
        shard.boarded.add(request_key)
        # A shard that had it under way may have been committed a moment ago.
        document = inquiry.document
        known = await _from_copy(shard, request_key, document.document_key) if document else None
        if known is not None:
            flights.land(known)
        return known

    def _arrived(self, result: Result) -> None:
        bench = self._shard.bench
        bench.flights.land(result)
        bench.progress.add_result(result)
        _log(bench, result)
        self._results[result.request_key].set_result(result)


def _doubts(ends: Sequence[Answered]) -> dict[int, str]:
    """Return which ends are asked again and why; no more than their stages allow."""
    asked = Counter(end.inquiry.stage.name for end in ends if end.inquiry.requests)
    doubts: dict[int, str] = {}
    taken: Counter[str] = Counter()
    for number, end in enumerate(ends):
        rule, name = end.inquiry.stage.escalate, end.inquiry.stage.name
        if rule is None or not end.inquiry.requests or end.inquiry.again is None:
            continue
        reason = doubt_about(rule, settle(end.inquiry.stage, end.results))
        if reason is not None and taken[name] < num_allowed(rule, asked[name]):
            taken[name] += 1
            doubts[number] = reason
    return doubts


async def _from_copy(shard: Shard, request_key: str, document_key: str) -> Result | None:
    """Return what a shard that was committed since has been answered about a copy of the document."""
    copies = shard.bench.copies
    if copies.find(document_key) in {None, shard.plan.shard}:
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
