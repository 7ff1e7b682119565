"""Processes one shard: claim, read, chunk, ask, write. The unit of work of a Prefect task.

A document's chunks are asked about while the next documents are still being read. Nothing is
written before every inquiry of the shard has its end, and counts are checked before the parts are
put, so a shard's parts are complete or absent.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from config.pipeline import StageConfig
from connectors.chunker import ChunkRule, chunk_document
from connectors.document import Chunk, Document, SourceRef, Unit
from connectors.errors import DocumentRejected, StorageError, StorageUnavailable
from connectors.storage import fetch
from engine.batch import run as run_batch
from engine.request import Request, Result
from flows.run.bench import NUM_READERS, Bench, Room
from flows.run.claims import Claim
from flows.run.commit import commit_shard
from flows.run.counts import ShardReport, left_alone
from flows.run.doubt import Settled, decide, doubt_about, num_allowed, settle
from flows.run.flights import Withdrawn
from flows.run.graph import levels
from flows.run.held import HeldShard, fetch_images, load_held
from flows.run.ledger import Ledger, load_answers
from flows.run.plan import ShardPlan
from flows.run.rows import Answered, Inquiry, close

logger = logging.getLogger(__name__)

_CANCEL_POLL_S = 0.2
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
    answers: dict[str, list[Answered]] = field(default_factory=lambda: defaultdict(list))
    """By stage, in reading order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A shard in work."""

    bench: Bench
    plan: ShardPlan
    claim: Claim
    ledger: Ledger
    held: HeldShard
    boarded: set[str] = field(default_factory=set)
    """Requests that are this shard's to send, among all shards of the process."""


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
        yield Shard(bench=bench, plan=plan, claim=claim, ledger=ledger, held=held)


def _process(shard: Shard) -> ShardReport:
    bench, plan, ledger = shard.bench, shard.plan, shard.ledger
    try:
        with ThreadPoolExecutor(NUM_READERS, thread_name_prefix=f"read-{plan.shard}") as threads:
            reading = [threads.submit(read, shard, source) for source in plan.sources]
            try:
                documents = asyncio.run(_until_cancelled(shard, ask_all(shard, reading)))
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
        _take_over_answers(shard, document.document_key)
    asked = min(len(chunks), bench.job.pipeline.chunk.max_per_document or len(chunks))
    expected = sum(
        stage.samples * (asked if stage.over == "chunk" else bool(chunks))
        for stage in bench.job.pipeline.stages
    )
    bench.progress.add(read=1, chunks=len(chunks), expected=expected)
    return found


def _take_over_answers(shard: Shard, document_key: str) -> None:
    """Take what another shard was answered about a copy of the document."""
    other = shard.bench.copies.find(document_key)
    if other is None or other == shard.plan.shard:
        return
    for key, result in load_answers(shard.bench.lake, other):
        if key == document_key:
            shard.ledger.keep(result)


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


async def _until_cancelled(
    shard: Shard, work: Coroutine[None, None, list[ReadDocument]]
) -> list[ReadDocument]:
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
    """Ask every stage about every unit, level by level; the first level while reading goes on."""
    documents: list[ReadDocument] = []

    async def arriving() -> AsyncIterator[ReadDocument]:
        for future in reading:
            read = await asyncio.wrap_future(future)
            documents.append(read)
            yield read

    async def arrived() -> AsyncIterator[ReadDocument]:
        for read in documents:
            yield read

    for number, stages in enumerate(levels(shard.bench.job.pipeline.stages)):
        await _ask_level(shard, stages, arriving() if number == 0 else arrived())
    return documents


async def _ask_level(
    shard: Shard, stages: Sequence[StageConfig], documents: AsyncIterator[ReadDocument]
) -> None:
    """Ask one level's inquiries, then those again whose answer is doubtful, and close them all."""
    waiting: list[tuple[ReadDocument, Inquiry]] = []
    ledger = shard.ledger

    async def first() -> AsyncIterator[Request]:
        async for document in documents:
            for inquiry in _inquiries(shard.bench, stages, document):
                waiting.append((document, inquiry))
                for request in inquiry.requests:
                    if document.is_held and request.images and not ledger.find(request.request_key):
                        key = document.document.document_key
                        await asyncio.to_thread(fetch_images, shard.bench.lake, key, request.images)
                    yield request

    await _send(shard, first())
    settled = [
        settle(inquiry.stage, _found(inquiry.requests, ledger)) if inquiry.requests else None
        for _, inquiry in waiting
    ]
    doubts = _doubts([inquiry for _, inquiry in waiting], settled)

    async def again() -> AsyncIterator[Request]:
        for request, _ in doubts.values():
            yield request

    await _send(shard, again())
    for number, (document, inquiry) in enumerate(waiting):
        end = settled[number]
        if end is not None and number in doubts:
            request, reason = doubts[number]
            end = decide(end, _found([request], ledger)[0], reason)
        document.answers[inquiry.stage.name].append(close(inquiry, end))


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


async def _send(shard: Shard, requests: AsyncIterator[Request]) -> None:
    """Send the requests that have no answer yet and that no other shard is sending."""
    bench, ledger = shard.bench, shard.ledger
    elsewhere: list[tuple[Request, Future[Result]]] = []

    async def unanswered() -> AsyncIterator[Request]:
        seen: set[str] = set()
        async for request in requests:
            # Two copies of a document ask the same question: it is sent once.
            if request.request_key in seen:
                continue
            seen.add(request.request_key)
            bench.progress.add(requests=1)
            known = ledger.find(request.request_key)
            if known is not None:
                bench.progress.add_result(known)
                continue
            flight = bench.flights.board(request.request_key)
            if flight is not None:
                elsewhere.append((request, flight))
                continue
            shard.boarded.add(request.request_key)
            yield request

    await _send_batch(shard, unanswered())
    left = await _arrived_elsewhere(shard, elsewhere)

    async def withdrawn() -> AsyncIterator[Request]:
        for request in left:
            yield request

    if left:
        await _send_batch(shard, withdrawn())


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


def _inquiries(
    bench: Bench, stages: Sequence[StageConfig], read: ReadDocument
) -> Iterable[Inquiry]:
    """Yield the inquiries of one level about one document, all stages of a chunk together."""
    if read.document.status == "rejected":
        return
    for index, chunk in enumerate(read.chunks):
        for stage in stages:
            if stage.over == "chunk":
                upstream = {need: read.answers[need][index] for need in stage.needs}
                yield bench.asker.about_chunk(
                    stage, read.document, chunk, upstream=upstream, media_dir=read.media_dir
                )
    for stage in stages:
        if stage.over == "document":
            answers = {need: read.answers[need] for need in stage.needs}
            yield bench.asker.about_document(stage, read.document, answers)
