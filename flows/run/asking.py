"""Asks all stages about the documents of a shard.

All stages are asked about a chunk before the next one, and about a document as soon as its chunks are
done, while the next documents are still being read.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from config.pipeline import StageConfig
from engine.tokens.counter import BYTES_PER_TOKEN
from flows.run.bench import Bench
from flows.run.families import Family, Scheduler
from flows.run.graph import levels, phases
from flows.run.in_order import MAX_INQUIRIES, in_order
from flows.run.reading import ReadDocument
from flows.run.reduce import Ask, Members, members_of, reduce_all
from flows.run.rows import Answered, Inquiry
from flows.run.units import DOCUMENT, UNPAID, Reply, Row, Subject, inputs_of

if TYPE_CHECKING:
    from flows.run.shard import Shard

ROWS_PER_FAMILY = 16
"""Few, so that what the engine holds of earlier ones is still there; enough to fill places."""


async def ask_all(shard: Shard, reading: Sequence[Future[ReadDocument]]) -> list[ReadDocument]:
    """Ask every stage about every unit, chunk by chunk while reading goes on."""
    documents: list[ReadDocument] = []

    async def arriving() -> AsyncIterator[ReadDocument]:
        for future in reading:
            read = await asyncio.wrap_future(future)
            documents.append(read)
            yield read

    async def arrived() -> AsyncIterator[ReadDocument]:
        for read in documents:
            yield read

    scheduler = Scheduler(shard)
    own = [stage for stage in shard.bench.job.pipeline.stages if not stage.is_gathered]
    if not own:
        # Agents over the corpus look at what is read; nobody asks anything before.
        return [read async for read in arriving()]
    for number, stages in enumerate(phases(own)):
        phase = _Phase(shard=shard, scheduler=scheduler, stages=stages)
        await scheduler.work_off(phase.families(arriving() if number == 0 else arrived()))
        await phase.end(documents)
    return documents


@dataclass(slots=True, kw_only=True)
class _Phase:
    """Stages that are asked about a chunk, and about a document, without a break."""

    shard: Shard
    scheduler: Scheduler
    stages: Sequence[StageConfig]
    _left: dict[str, int] = field(default_factory=dict)
    """Families that have not ended, by path."""
    _asked: dict[tuple[str, int], asyncio.Event] = field(default_factory=dict)
    """Set when a chunk's own questions are answered, by path and number."""

    async def families(self, documents: AsyncIterator[ReadDocument]) -> AsyncIterator[Family]:
        """Yield a document's families: one for each chunk, then those of its rows.

        The last that ends goes on with the document.
        """
        async for read in documents:
            if read.document.status == "rejected":
                continue
            num_families = len(read.chunks) if self._over("chunk") else 0
            if self._over("rows"):
                num_families += math.ceil(len(read.turns) / ROWS_PER_FAMILY)
            self._left[read.document.source.path] = num_families
            if not num_families:
                yield Family(tokens=0, work=partial(self._about_document, read))
                continue
            # One by one: a sheet has thousands, and each is weighed.
            for family in itertools.chain(self._chunk_families(read), self._row_families(read)):
                yield family

    def _over(self, over: str) -> list[StageConfig]:
        return [stage for stage in self.stages if stage.over == over]

    def _chunk_families(self, read: ReadDocument) -> Iterator[Family]:
        if not self._over("chunk"):
            return
        for number, chunk in enumerate(read.chunks):
            self._asked[read.document.source.path, number] = asyncio.Event()
            work = partial(self._about_chunk, read, number)
            yield Family(tokens=chunk.num_tokens, work=work)

    def _row_families(self, read: ReadDocument) -> Iterator[Family]:
        """Yield families of rows that are asked about one after the other, and begin alike."""
        if not self._over("rows"):
            return
        for start in range(0, len(read.turns), ROWS_PER_FAMILY):
            places = read.turns[start : start + ROWS_PER_FAMILY]
            yield Family(
                tokens=_held_tokens(read, places), work=partial(self._about_rows, read, places)
            )

    async def end(self, documents: Sequence[ReadDocument]) -> None:
        """Ask again what is doubtful, which takes all answers of a stage."""
        for stage in self.stages:
            if stage.escalate is None:
                continue
            if stage.over == "document":
                ask = partial(
                    in_order, self.scheduler, max_in_flight=self.shard.bench.max_in_flight
                )
                await _reduce(self.shard, stage, documents, ask)
                continue
            places = [(read, at) for read in documents for at in sorted(read.answers[stage.name])]
            first = [read.answers[stage.name][at] for read, at in places]
            ends = await self.scheduler.ask_again(first)
            for (read, at), found in zip(places, ends, strict=True):
                read.answers[stage.name][at] = found

    async def _about_chunk(self, read: ReadDocument, number: int, family: int) -> None:
        """Ask about a chunk, level by level."""
        await self._ask(self._over("chunk"), read, (number, number), row=None, family=family)
        self._asked[read.document.source.path, number].set()
        await self._ended(read, family)

    async def _about_rows(self, read: ReadDocument, places: Sequence[int], family: int) -> None:
        """Ask about rows, each level by level as soon as its chunk's answers are there."""
        stages = self._over("rows")
        chunk_stages = {stage.name for stage in self._over("chunk")}
        waits = any(not chunk_stages.isdisjoint(stage.needs) for stage in stages)

        async def ask(place: int) -> None:
            row = read.rows[place]
            asked = self._asked.get((read.document.source.path, row.chunk))
            if waits and asked is not None and not asked.is_set():
                self.scheduler.wait_for_earlier(family)
                await asked.wait()
            await self._ask(stages, read, (row.chunk, place), row=row, family=family)

        await asyncio.gather(*map(ask, places))
        await self._ended(read, family)

    async def _ask(
        self,
        stages: Sequence[StageConfig],
        read: ReadDocument,
        place: tuple[int, int],
        *,
        row: Row | None,
        family: int,
    ) -> None:
        """Ask stages about a chunk or row; `place`: numbers of the chunk, and of the row or chunk."""
        for level in levels(stages):
            inquiries = [self._inquiry(stage, read, place, row) for stage in level]
            ends = await asyncio.gather(*(self.scheduler.ask(one, family) for one in inquiries))
            for stage, end in zip(level, ends, strict=True):
                read.answers[stage.name][place[1]] = end

    async def _ended(self, read: ReadDocument, family: int) -> None:
        """Take down that a family has ended, and go on with its document if it was the last."""
        path = read.document.source.path
        self._left[path] -= 1
        if not self._left[path]:
            await self._about_document(read, family)

    def _inquiry(
        self, stage: StageConfig, read: ReadDocument, place: tuple[int, int], row: Row | None
    ) -> Inquiry:
        bench, (number, _) = self.shard.bench, place
        return bench.asker.about_chunk(
            stage,
            read.document,
            read.chunks[number],
            upstream=_upstream(bench, stage, read, place),
            media_dir=read.media_dir,
            row=row,
        )

    async def _about_document(self, read: ReadDocument, family: int) -> None:
        async def ask(inquiries: Iterator[Inquiry]) -> AsyncGenerator[Answered, None]:
            while some := [*islice(inquiries, MAX_INQUIRIES)]:
                asked = (self.scheduler.ask(one, family) for one in some)
                for end in await asyncio.gather(*asked):
                    yield end

        for stages in levels([stage for stage in self.stages if stage.over == "document"]):
            for stage in stages:
                if stage.escalate is None:
                    await _reduce(self.shard, stage, [read], ask)


def _held_tokens(read: ReadDocument, places: Sequence[int]) -> int:
    """Return about how many tokens rows take in the engine's cache, what they share counted once."""
    rows = [read.rows[place] for place in places]
    shared = sum(len(row.beginning.encode()) for row in rows[1:])
    return (sum(len(row.shown.text.encode()) for row in rows) - shared) // BYTES_PER_TOKEN


async def _reduce(
    shard: Shard, stage: StageConfig, documents: Sequence[ReadDocument], ask: Ask
) -> None:
    readable = [read for read in documents if read.document.status != "rejected"]

    def members() -> Iterator[Members]:
        when = shard.bench.asker.stages[stage.name].when
        for read in readable:
            replies = [_reply(end) for need in stage.needs for end in read.ends(need)]
            inputs = list(inputs_of(replies, when, titled=False))
            subject = Subject(
                stage=stage,
                name=DOCUMENT,
                document=read.document,
                left_out=bool(replies) and not inputs,
                is_unpaid=any(reply.error_class in UNPAID for reply in replies),
            )
            yield members_of(shard, subject, inputs)

    def done(number: int, end: Answered) -> None:
        readable[number].answers[stage.name][0] = end

    def part(number: int, end: Answered) -> None:
        readable[number].parts[stage.name].append(end)

    await reduce_all(shard, members(), (done, part), ask)


def _reply(end: Answered) -> Reply:
    inquiry = end.inquiry
    return Reply(
        stage=inquiry.stage.name,
        path=inquiry.document.source.path if inquiry.document else "",
        unit=inquiry.unit,
        error_class=end.result.error_class,
        given=end.given,
    )


def _upstream(
    bench: Bench, stage: StageConfig, read: ReadDocument, place: tuple[int, int]
) -> dict[str, Answered]:
    """Return the answers that a stage needs; `place`: numbers of the chunk, and of the row or chunk."""
    chunk, unit = place
    overs = {one.name: one.over for one in bench.job.pipeline.stages}
    return {
        need: read.answers[need][unit if overs[need] == stage.over else chunk]
        for need in stage.needs
    }
