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
from engine.request import Request, Result, content_key
from flows.run.agents import ShardAgents
from flows.run.bench import Bench
from flows.run.doubt import decide, doubt_about, num_allowed, settle
from flows.run.flights import Withdrawn
from flows.run.held import fetch_images
from flows.run.leaders import Sent
from flows.run.ledger import load_answers
from flows.run.rows import Answered, Inquiry, close
from flows.run.stage_approval import withhold
from flows.run.units import AWAITED, AWAITING_APPROVAL, REFUSED

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
        """Families that have been begun and have not asked anything yet."""
        self._changed = asyncio.Event()
        self._first: dict[int, dict[int, asyncio.Future[Result]]] = {}
        """The first request about each material, by family and the hash of the material."""
        self._affinities: dict[int, str] = {}
        self._sent: dict[str, tuple[Sent, float]] = {}
        """How requests were sent, and the share of its prompt that each has in common with the first."""
        self._agents = ShardAgents(shard)

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
            workshop=self._agents.workshop(),
            embedder=bench.vectors.embedder if bench.vectors else None,
            desk=self._shard.desk,
        )
        try:
            async with self._agents.open(), aclosing(batch) as results:
                async for result in results:
                    self._arrived(result)
        finally:
            for task in self._open:
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)
            self._open.clear()

    async def ask(self, inquiry: Inquiry, family: int) -> Answered:
        """Return the end of an inquiry, without what is asked where it is doubtful."""
        if inquiry.stage.approval and inquiry.requests:
            inquiry = await self._agreed(inquiry)
        if not inquiry.requests:
            return self._unsent(inquiry)
        asked = (self._result(inquiry, request, family) for request in inquiry.requests)
        results = await asyncio.gather(*asked)
        if inquiry.stage.tools:
            inquiry = await asyncio.to_thread(self._agents.with_cited, inquiry, results)
        return close(inquiry, settle(inquiry.stage, results))

    async def _agreed(self, inquiry: Inquiry) -> Inquiry:
        """Return the inquiry as it is asked, without requests where nobody has agreed to its stage."""
        shard, keys = self._shard, [request.request_key for request in inquiry.requests]
        if all(shard.ledger.find(key, fresh=inquiry.is_fresh) for key in keys):
            # Nothing goes out.
            return inquiry
        decision = await shard.bench.stage_approval.look(inquiry.stage)
        if decision is not None and decision.is_approved:
            return inquiry
        return withhold(inquiry, decision, shard.bench.job.run_id)

    def _unsent(self, inquiry: Inquiry, results: Sequence[Result] = ()) -> Answered:
        """Return the end of what is not sent, with what is paid of it: answers, and samples that a killed run had."""
        end, ledger, progress = close(inquiry, None), self._shard.ledger, self._shard.bench.progress
        if end.result.error_class == AWAITING_APPROVAL:
            progress.add(requests=len(inquiry.withheld))
            for _ in inquiry.withheld:
                progress.add_repeated(end.result)
        known = (ledger.find(one.request_key, fresh=inquiry.is_fresh) for one in inquiry.withheld)
        return replace(end, results=[*results, *(one for one in known if one is not None)])

    def wait_for_earlier(self, family: int) -> None:
        """Let later families begin, while this one waits for what an earlier one asks."""
        self._asked(family)

    async def ask_again(self, ends: Sequence[Answered]) -> list[Answered]:
        """Return the ends with what is doubtful asked once more; no more of it than a stage allows."""
        doubts = _doubts(ends)
        found = list(ends)

        async def again(number: int, family: int) -> None:
            inquiry, request = ends[number].inquiry, ends[number].inquiry.again
            assert request is not None
            if inquiry.stage.approval:
                agreed = await self._agreed(replace(inquiry, requests=(request,)))
                if not agreed.requests:
                    waits = self._unsent(agreed, ends[number].results)
                    is_refused = waits.result.error_class == REFUSED
                    # Refused: what is there stays as it is.
                    kept = replace(ends[number], inquiry=replace(inquiry, withheld=(request,)))
                    found[number] = kept if is_refused else waits
                    return
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
        self._warn_of_size(family)
        self._beginning.add(number)

        async def work() -> None:
            try:
                await family.work(number)
            finally:
                self._first.pop(number, None)
                self._affinities.pop(number, None)
                self._asked(number)

        task = asyncio.create_task(work())
        self._open[task] = family.tokens
        task.add_done_callback(lambda _: self._changed.set())

    def _warn_of_size(self, family: Family) -> None:
        """Say once in a run that a chunk does not fit the KV cache, so that each question computes it."""
        bench = self._shard.bench
        room = bench.chunk_room
        if room is None or family.tokens <= room or next(bench.large_families):
            return
        logger.warning(
            "run_id=%s: a chunk of %s tokens is larger than the engine's KV cache of %s tokens holds"
            " beside a question: it is asked about alone, and computed again for each question; lower"
            " chunk.max_tokens (said once)",
            bench.job.run_id,
            f"{family.tokens:,}",
            f"{(bench.cache_tokens or 0) // bench.route.num_replicas:,}",
        )

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
        if self._shard.desk is None:
            request = replace(request, batch_api=None)
        arriving = self._results.get(request.request_key)
        if arriving is not None:
            self._asked(family)
            # Not to be cancelled with the first that gives up.
            result = await asyncio.shield(arriving)
            progress.add_repeated(result)
            return result
        arriving = asyncio.get_running_loop().create_future()
        self._results[request.request_key] = arriving
        ledger = self._shard.ledger
        known = ledger.find(request.request_key, fresh=inquiry.is_fresh)
        known = known or await self._from_elsewhere(inquiry, request, family)
        if known is not None:
            paid = ledger.has_paid(request.request_key)
            (progress.add_result if paid else progress.add_repeated)(known)
            arriving.set_result(known)
            return known
        document = inquiry.document
        if request.images and document:
            # Of a document that was not read again they are in the sink only.
            lake, key = self._shard.bench.lake, document.document_key
            await asyncio.to_thread(fetch_images, lake, key, request.images)
        await self._led(inquiry, request, family)
        place = next(self._pushed)
        if family not in self._affinities:
            self._affinities[family] = content_key("prefix", request.material)
        request = replace(request, priority=family, affinity=self._affinities[family])
        if inquiry.is_fresh:
            ledger.steps.begin_anew(request.request_key)
        self._agents.expect(request, inquiry)
        heapq.heappush(self._ready, (family, place, request))
        self._asked(family)
        return await arriving

    async def _led(self, inquiry: Inquiry, request: Request, family: int) -> None:
        """Wait for the first answer about the same material, where the engine gains by it."""
        firsts, material = (
            self._first.setdefault(family, {}),
            # An engine keeps a cache for each adapter.
            hash((request.adapter, request.material)),
        )
        first = firsts.setdefault(material, self._results[request.request_key])
        leaders = self._shard.bench.leaders
        sent: Sent = "first" if first is self._results[request.request_key] else "beside"
        if sent == "beside" and leaders.leads and not first.done():
            await asyncio.wait({first})
        if sent == "beside" and first.done():
            sent = "after"
        shared = self._shard.bench.asker.instructions_tokens + inquiry.material_tokens
        self._sent[request.request_key] = (sent, shared / max(1, request.prompt_tokens))

    async def _from_elsewhere(
        self, inquiry: Inquiry, request: Request, family: int
    ) -> Result | None:
        """Return what another shard or sink is or was answered; None where this shard is to send it."""
        shard, flights = self._shard, self._shard.bench.flights
        while (flight := flights.board(request.request_key)) is not None:
            self._asked(family)
            if shard.desk is not None and request.batch_api is not None:
                shard.desk.join(request.request_key)
            try:
                answer = await asyncio.wrap_future(flight)
            except Withdrawn:
                continue
            shard.ledger.take_over(answer)
            return answer.result
        shard.boarded.add(request.request_key)
        # A shard that had it under way may have been committed a moment ago.
        known = await _from_copy(shard, inquiry, request.request_key)
        if known is None and not inquiry.is_fresh:
            known = await self._from_cache(inquiry, request, family)
        if known is not None:
            flights.land(shard.ledger.answer(request.request_key))
        return known

    async def _from_cache(self, inquiry: Inquiry, request: Request, family: int) -> Result | None:
        """Return what the cache has; None where the request is to be sent."""
        replays, key = self._shard.replays, request.request_key
        document_key = inquiry.document.document_key if inquiry.document else ""
        # About documents it was looked at as they were read.
        if not document_key and not replays.has_looked(document_key, key):
            self._asked(family)
            await asyncio.to_thread(replays.look, document_key, key)
        found = replays.find(document_key, request)
        if found is None or (inquiry.stage.approval and found.result.outcome != "succeeded"):
            # A person has agreed that it is asked, though one that did not succeed is there.
            return None
        return self._shard.ledger.replay(found)

    def _arrived(self, result: Result) -> None:
        bench = self._shard.bench
        bench.flights.land(self._shard.ledger.answer(result.request_key))
        bench.progress.add_result(result)
        self._agents.done(result.request_key)
        sent, shared = self._sent.pop(result.request_key)
        if result.attempts == 1 and result.fallback is None:
            usage = result.usage
            # By the engine's own count, since ours may be an estimate.
            shared_tokens = int(shared * usage.prompt_tokens)
            bench.leaders.note(sent, shared_tokens=shared_tokens, cached_tokens=usage.cached_tokens)
        _log(bench, result)
        self._results[result.request_key].set_result(result)


def _doubts(ends: Sequence[Answered]) -> dict[int, str]:
    """Return which ends are asked again and why; no more than their stages allow.

    Which of a stage's are most in doubt is known when none of its answers waits for a batch or a person any more.
    """
    waiting = {end.inquiry.stage.name for end in ends if end.result.error_class in AWAITED}
    asked = Counter(end.inquiry.stage.name for end in ends if end.inquiry.requests)
    doubts: dict[int, str] = {}
    taken: Counter[str] = Counter()
    for number, end in enumerate(ends):
        rule, name = end.inquiry.stage.escalate, end.inquiry.stage.name
        if rule is None or not end.inquiry.requests or end.inquiry.again is None or name in waiting:
            continue
        reason = doubt_about(rule, settle(end.inquiry.stage, end.results))
        if reason is not None and taken[name] < num_allowed(rule, asked[name]):
            taken[name] += 1
            doubts[number] = reason
    return doubts


async def _from_copy(shard: Shard, inquiry: Inquiry, request_key: str) -> Result | None:
    """Return what a shard that was committed since has been answered about a copy of the document."""
    copies = shard.bench.copies
    document_key = inquiry.document.document_key if inquiry.document else ""
    if copies.find(document_key) in {None, shard.plan.shard}:
        return None
    if shard.looked.get(document_key) != copies.num_commits:
        await asyncio.to_thread(take_over_answers, shard, document_key)
    return shard.ledger.find(request_key, fresh=inquiry.is_fresh)


def take_over_answers(shard: Shard, document_key: str) -> None:
    """Take what another shard was answered about a copy of the document."""
    # Counted first: what is committed from here on is looked for again.
    num_commits = shard.bench.copies.num_commits
    other = shard.bench.copies.find(document_key)
    if other is None or other == shard.plan.shard:
        return
    shard.looked[document_key] = num_commits
    for answer in load_answers(shard.bench.lake, other):
        if answer.document_key == document_key:
            shard.ledger.keep(answer)


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
