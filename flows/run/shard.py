"""Processes one shard: read, chunk, ask, write. The unit of work of a Prefect task.

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
from dataclasses import dataclass, field
from pathlib import Path

from config.pipeline import StageConfig
from connectors.chunker import ChunkRule, chunk_document
from connectors.document import Chunk, Document, SourceRef, Unit
from connectors.errors import DocumentRejected, StorageError, StorageUnavailable
from connectors.storage import fetch
from engine.batch import run as run_batch
from engine.request import Request, Result
from flows.run.answers import Answers
from flows.run.bench import NUM_READERS, Bench, Room
from flows.run.commit import ShardReport, commit_shard, left_alone
from flows.run.doubt import Settled, decide, doubt_about, num_allowed, settle
from flows.run.graph import levels
from flows.run.plan import ShardPlan
from flows.run.rows import Answered, Inquiry, close

logger = logging.getLogger(__name__)

_CANCEL_POLL_S = 0.2


@dataclass(slots=True, kw_only=True)
class ReadDocument:
    """A document in work: its chunks, its media on disk, and its answers so far."""

    document: Document
    chunks: Sequence[Chunk]
    media_dir: Path
    answers: dict[str, list[Answered]] = field(default_factory=lambda: defaultdict(list))
    """By stage, in reading order."""


def process_shard(bench: Bench, plan: ShardPlan) -> ShardReport:
    """Return the counts of the shard, after its parts are in the lake.

    A shard that finds the budget reached is left alone. One that is interrupted saves the answers it
    has, for the run's next attempt.

    Raises:
        StorageUnavailable: Source or sink does not answer.
        EngineMisconfigured: The endpoint refuses every request.
    """
    with bench.in_work():
        return _process(bench, plan)


def _process(bench: Bench, plan: ShardPlan) -> ShardReport:
    if bench.budget.is_reached:
        return left_alone(plan)
    answers = Answers(bench.lake, bench.job.run_id, plan.shard)
    answers.load(bench.job.start)
    with ThreadPoolExecutor(NUM_READERS, thread_name_prefix=f"read-{plan.shard}") as threads:
        reading = [threads.submit(read, bench, plan.shard, source) for source in plan.sources]
        try:
            work = ask_all(bench, reading, answers)
            documents = asyncio.run(_until_cancelled(bench, work))
        finally:
            answers.save()
            for future in reading:
                future.cancel()
    report = commit_shard(bench, plan, documents)
    logger.info(
        "run_id=%s shard=%s documents=%d chunks=%d committed",
        bench.job.run_id,
        plan.shard,
        len(documents),
        report.num_chunks,
    )
    return report


def read(bench: Bench, shard: str, source: SourceRef) -> ReadDocument:
    """Return one object's document and chunks; a bad object becomes a rejected document."""
    document, chunks, media_dir = read_chunks(bench, shard, source, bench.rule)
    asked = min(len(chunks), bench.job.pipeline.chunk.max_per_document or len(chunks))
    expected = sum(
        stage.samples * (asked if stage.over == "chunk" else bool(chunks))
        for stage in bench.job.pipeline.stages
    )
    bench.progress.add(read=1, chunks=len(chunks), expected=expected)
    return ReadDocument(document=document, chunks=chunks, media_dir=media_dir)


def read_chunks(
    room: Room, shard: str, source: SourceRef, rule: ChunkRule
) -> tuple[Document, list[Chunk], Path]:
    """Fetch and read one object and cut it into chunks; return also where its JPEGs lie."""
    folder = room.scratch / shard / hashlib.sha256(source.path.encode()).hexdigest()[:16]
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
    bench: Bench, work: Coroutine[None, None, list[ReadDocument]]
) -> list[ReadDocument]:
    """Do the work, but give up soon after the bench has been closed."""
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.wait({task}, timeout=_CANCEL_POLL_S)
        if bench.cancelled.is_set():
            task.cancel()
    return task.result()


async def ask_all(
    bench: Bench, reading: Sequence[Future[ReadDocument]], answers: Answers
) -> list[ReadDocument]:
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

    for number, stages in enumerate(levels(bench.job.pipeline.stages)):
        await _ask_level(bench, stages, arriving() if number == 0 else arrived(), answers)
    return documents


async def _ask_level(
    bench: Bench,
    stages: Sequence[StageConfig],
    documents: AsyncIterator[ReadDocument],
    answers: Answers,
) -> None:
    """Ask one level's inquiries, then those again whose answer is doubtful, and close them all."""
    waiting: list[tuple[ReadDocument, Inquiry]] = []

    async def first() -> AsyncIterator[Request]:
        async for document in documents:
            for inquiry in _inquiries(bench, stages, document):
                waiting.append((document, inquiry))
                for request in inquiry.requests:
                    yield request

    await _send(bench, first(), answers)
    settled = [
        settle(inquiry.stage, _found(inquiry.requests, answers)) if inquiry.requests else None
        for _, inquiry in waiting
    ]
    doubts = _doubts([inquiry for _, inquiry in waiting], settled)

    async def again() -> AsyncIterator[Request]:
        for request, _ in doubts.values():
            yield request

    await _send(bench, again(), answers)
    for number, (document, inquiry) in enumerate(waiting):
        end = settled[number]
        if end is not None and number in doubts:
            request, reason = doubts[number]
            end = decide(end, _found([request], answers)[0], reason)
        document.answers[inquiry.stage.name].append(close(inquiry, end))


def _found(requests: Sequence[Request], answers: Answers) -> list[Result]:
    results = [answers.find(request.request_key) for request in requests]
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


async def _send(bench: Bench, requests: AsyncIterator[Request], answers: Answers) -> None:
    """Send the requests that have no answer yet, and keep what comes back."""

    async def unanswered() -> AsyncIterator[Request]:
        sent: set[str] = set()
        async for request in requests:
            # Two copies of a document ask the same question: it is sent once.
            if request.request_key in sent:
                continue
            sent.add(request.request_key)
            bench.progress.add(requests=1)
            known = answers.find(request.request_key)
            if known is None:
                yield request
            else:
                bench.progress.add_result(known)

    limit, budget = bench.max_in_flight, bench.budget
    batch = run_batch(unanswered(), bench.route, max_in_flight=limit, budget=budget)
    async for result in batch:
        answers.add(result)
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
