"""Processes one shard: claim, read, chunk, ask, write. The unit of work of a Prefect task.

All stages are asked about a chunk before the next one, and about a document as soon as its chunks are
done, while the next documents are still being read. Nothing is written before every inquiry of the shard has its end, and counts are checked before the parts are
put, so a shard's parts are complete or absent.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import math
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from config.pipeline import StageConfig
from connectors.chunker import ChunkRule, chunk_document
from connectors.document import Chunk, Document, SourceRef, Unit
from connectors.errors import DocumentRejected, StorageError, StorageUnavailable
from connectors.storage import fetch
from engine.tokens.counter import BYTES_PER_TOKEN
from flows.run.bench import NUM_READERS, Bench, Room
from flows.run.cache import Replays
from flows.run.claims import Claim
from flows.run.commit import commit_shard
from flows.run.counts import ShardReport, left_alone
from flows.run.families import Family, Scheduler, take_over_answers
from flows.run.graph import levels, phases
from flows.run.held import HeldShard, load_held
from flows.run.in_order import MAX_INQUIRIES, in_order
from flows.run.ledger import Ledger
from flows.run.plan import ShardPlan
from flows.run.reduce import Ask, Members, members_of, reduce_all
from flows.run.rows import Answered, Inquiry
from flows.run.units import DOCUMENT, UNPAID, Reply, Row, Subject, inputs_of, rows_of

logger = logging.getLogger(__name__)

_Done = TypeVar("_Done")

_CANCEL_POLL_S = 0.2
ROWS_PER_FAMILY = 16
"""Few, so that what the engine holds of earlier ones is still there; enough to fill places."""
_LOST = (
    "shard {shard}: its claim could not be renewed in time, so another run may have taken it over;"
    " answers so far are kept. Resume the run"
)


@dataclass(slots=True, kw_only=True)
class ReadDocument:
    """A document in work: its chunks, its media on disk, and its answers so far."""

    document: Document
    chunks: Sequence[Chunk]
    media_dir: Path
    is_held: bool = False
    """Whether it comes from the sink's own parts, and its media are there too."""
    answers: dict[str, dict[int, Answered]] = field(default_factory=lambda: defaultdict(dict))
    """By stage and the number of the chunk or row; 0 for the document."""
    parts: dict[str, list[Answered]] = field(default_factory=lambda: defaultdict(list))
    """Answers to parts of the document, by stage, where it was more than one request can hold."""
    rows: Sequence[Row] = ()
    """Of its tables in reading order, where a stage asks about them."""
    turns: Sequence[int] = ()
    """Their places, in the order in which they are asked about."""

    def ends(self, stage: str) -> list[Answered]:
        """Return a stage's answers in reading order."""
        found = self.answers[stage]
        return [found[number] for number in sorted(found)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A shard in work."""

    bench: Bench
    plan: ShardPlan
    claim: Claim
    ledger: Ledger
    held: HeldShard
    replays: Replays
    boarded: set[str] = field(default_factory=set)
    """Requests that are this shard's to send, among all shards of the process."""
    looked: dict[str, int] = field(default_factory=dict)
    """How many commits were known when a copy of a document was last looked for, by document."""


def process_shard(bench: Bench, plan: ShardPlan, *, wait: bool = False) -> ShardReport:
    """Return the counts of the shard, after its parts are in the lake.

    A shard that finds the budget reached, or the run hopeless, is left alone. One that is interrupted
    keeps the answers it has, for whoever takes it up.

    Args:
        bench: What the run works with.
        plan: The shard.
        wait: Whether to wait for a shard that somebody else works on.

    Raises:
        ShardClaimed: Another run works on it.
        StorageUnavailable: Source or sink does not answer.
        EngineMisconfigured: The endpoint refuses every request.
    """
    with bench.in_work():
        if bench.budget.is_reached or bench.hopeless.is_set():
            return left_alone(plan.shard, len(plan.sources))
        with open_shard(bench, plan, wait=wait) as shard:
            return _process(shard)


@contextmanager
def open_shard(bench: Bench, plan: ShardPlan, *, wait: bool = False) -> Iterator[Shard]:
    """Claim a shard and open what is known of it, and give it back.

    Raises:
        ShardClaimed: Another run works on it.
        StorageError: The sink cannot be read or written.
    """
    with bench.claims.take(plan.shard, wait=wait) as claim:
        ledger = Ledger(bench.lake, bench.job.run_id, bench.job.start, claim)
        held = load_held(bench.lake, plan.shard, bench.reading_key)
        if bench.claims.has_met_others:
            # They may have asked about copies since this run began.
            bench.copies.refresh()
        replays = Replays(bench.cache)
        yield Shard(bench=bench, plan=plan, claim=claim, ledger=ledger, held=held, replays=replays)


def _process(shard: Shard) -> ShardReport:
    bench, plan, ledger = shard.bench, shard.plan, shard.ledger
    try:
        with ThreadPoolExecutor(NUM_READERS, thread_name_prefix=f"read-{plan.shard}") as threads:
            reading = [threads.submit(read, shard, source) for source in plan.sources]
            try:
                documents = asyncio.run(until_cancelled(shard, ask_all(shard, reading)))
            finally:
                ledger.save()
                for future in reading:
                    future.cancel()
        report = commit_shard(shard, documents)
    finally:
        bench.flights.leave(shard.boarded)
    logger.info(
        "run_id=%s shard=%s documents=%d chunks=%d committed",
        bench.job.run_id,
        plan.shard,
        len(documents),
        report.num_chunks,
    )
    return report


def read(shard: Shard, source: SourceRef) -> ReadDocument:
    """Return one object's document and chunks; a bad object becomes a rejected document."""
    bench = shard.bench
    held = shard.held.find(source)
    if held is not None:
        media_dir = _folder(bench, shard.plan.shard, source) / "media"
        media_dir.mkdir(parents=True, exist_ok=True)
        document, chunks = held
        found = ReadDocument(document=document, chunks=chunks, media_dir=media_dir, is_held=True)
    else:
        document, chunks, media_dir = read_chunks(bench, shard.plan.shard, source, bench.rule)
        found = ReadDocument(document=document, chunks=chunks, media_dir=media_dir)
        take_over_answers(shard, document.document_key)
    commit = shard.held.commit
    if chunks and (held is None or commit is None or commit.work_key != bench.work_key):
        # Here and not when it is asked about, so that nobody waits for it.
        shard.replays.look(document.document_key)
    asked = min(len(chunks), bench.job.pipeline.chunk.max_per_document or len(chunks))
    if any(stage.over == "rows" for stage in bench.job.pipeline.stages):
        rows = rows_of(chunks, bench.job.pipeline.rows.order)
        found.rows, found.turns = rows.rows, rows.turns
    num_rows = sum(row.chunk < asked for row in found.rows)
    units = {"chunk": asked, "rows": num_rows, "document": int(bool(chunks))}
    expected = sum(stage.samples * units.get(stage.over, 0) for stage in bench.job.pipeline.stages)
    bench.progress.add(read=1, chunks=len(chunks), expected=expected)
    return found


def _folder(room: Room, shard: str, source: SourceRef) -> Path:
    return room.scratch / shard / hashlib.sha256(source.path.encode()).hexdigest()[:16]


def read_chunks(
    room: Room, shard: str, source: SourceRef, rule: ChunkRule
) -> tuple[Document, list[Chunk], Path]:
    """Fetch and read one object and cut it into chunks; return also where its JPEGs lie."""
    folder = _folder(room, shard, source)
    media_dir = folder / "media"
    media_dir.mkdir(parents=True, exist_ok=True)
    document = _read_document(room, source, folder, media_dir)
    if document.content is None:
        return document, [], media_dir
    return document, chunk_document(document.document_key, document.content, rule), media_dir


def _read_document(room: Room, source: SourceRef, folder: Path, media_dir: Path) -> Document:
    key = hashlib.sha256(f"{source.etag}:{source.size_bytes}".encode()).hexdigest()
    try:
        file = folder / "object"
        key = fetch(_pieces(room, source), file)
        content = room.readers.read(
            file,
            Path(source.path).name,
            media_dir,
            password=room.passwords.find(source.path),
        )
    except DocumentRejected as exc:
        logger.info("document %s rejected: %s: %s", source.path, exc.reason, exc)
        return Document(
            source=source,
            document_key=key,
            status="rejected",
            content=None,
            error_class=exc.reason,
            error=str(exc),
        )
    finally:
        (folder / "object").unlink(missing_ok=True)
    failed = [unit for unit in content.units if unit.status == "failed"]
    return Document(
        source=source,
        document_key=key,
        status="partial" if failed else "read",
        content=content,
        error_class="units_failed" if failed else None,
        error=_failed_units(failed, len(content.units)) if failed else None,
    )


def _pieces(room: Room, source: SourceRef) -> Iterator[bytes]:
    try:
        yield from room.source.stream(source.path)
    except StorageUnavailable:
        raise
    except StorageError as exc:
        raise DocumentRejected(str(exc), reason="unreadable_object") from exc


def _failed_units(failed: Sequence[Unit], total: int) -> str:
    names = ", ".join(f"{unit.name} ({unit.error})" for unit in failed[:3])
    more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
    return f"{len(failed)} of {total} units could not be read: {names}{more}"


async def until_cancelled(shard: Shard, work: Coroutine[None, None, _Done]) -> _Done:
    """Do the work, but give up soon after the bench has been closed or the claim is lost.

    Raises:
        StorageError: The journal cannot be written, or the claim is lost.
    """
    task = asyncio.ensure_future(work)
    flushing = asyncio.ensure_future(shard.ledger.keep_flushing())
    try:
        while not task.done():
            await asyncio.wait(
                {task, flushing}, timeout=_CANCEL_POLL_S, return_when="FIRST_COMPLETED"
            )
            if shard.bench.cancelled.is_set() or shard.claim.is_lost or flushing.done():
                task.cancel()
                await asyncio.wait({task})
                break
        if flushing.done():
            flushing.result()
        if shard.claim.is_lost:
            raise StorageError(_LOST.format(shard=shard.plan.shard), uri=shard.bench.lake.url)
        return task.result()
    finally:
        flushing.cancel()
        await asyncio.wait({flushing})


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
