"""Processes one shard: claim, read, chunk, ask, write. The unit of work of a Prefect task.

Nothing is written before every inquiry of the shard has its end, and counts are checked before the
parts are put, so a shard's parts are complete or absent.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from connectors.document import SourceRef
from connectors.errors import StorageError
from engine.batch_api.desk import ShardDesk
from flows.run.asking import ask_all
from flows.run.bench import NUM_READERS, Bench
from flows.run.cache import Replays
from flows.run.claims import Claim
from flows.run.commit import commit_shard
from flows.run.corpus_view import ChunkCorpus
from flows.run.counts import UNANSWERED, ShardReport, left_alone
from flows.run.families import take_over_answers
from flows.run.held import HeldShard, load_held
from flows.run.job import Start
from flows.run.ledger import Ledger
from flows.run.plan import ShardPlan
from flows.run.reading import ReadDocument, make_media_dir, read_chunks
from flows.run.units import rows_of
from tools.corpus import Corpus

logger = logging.getLogger(__name__)

_Done = TypeVar("_Done")

_CANCEL_POLL_S = 0.2
_LOST = (
    "shard {shard}: its claim could not be renewed in time, so another run may have taken it over;"
    " answers so far are kept. Resume the run"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A shard in work."""

    bench: Bench
    plan: ShardPlan
    claim: Claim
    ledger: Ledger
    held: HeldShard
    replays: Replays
    desk: ShardDesk | None
    boarded: set[str] = field(default_factory=set)
    """Requests that are this shard's to send, among all shards of the process."""
    corpora: dict[str, Corpus] = field(default_factory=dict)
    """What agents see of a document, by its path; only where a stage has tools."""
    looked: dict[str, int] = field(default_factory=dict)
    """How many commits were known when a copy of a document was last looked for, by document."""


def process_shard(
    bench: Bench, plan: ShardPlan, *, wait: bool = False, again: bool = False
) -> ShardReport:
    """Return the counts of the shard, after its parts are in the lake.

    A shard that finds the budget reached, or the run hopeless, is left alone. One that is interrupted
    keeps the answers it has, for whoever takes it up.

    Args:
        bench: What the run works with.
        plan: The shard.
        wait: Whether to wait for a shard that somebody else works on.
        again: Whether this process has asked about it before, and some of it waited for a batch or a person.

    Raises:
        ShardClaimed: Another run works on it.
        StorageUnavailable: Source or sink does not answer.
        EngineMisconfigured: The endpoint refuses every request.
    """
    bench = bench.at(plan.sources)
    with bench.in_work():
        if bench.budget.is_reached or bench.hopeless.is_set():
            return left_alone(plan.shard, len(plan.sources))
        with open_shard(bench, plan, wait=wait, again=again) as shard:
            return _process(shard)


@contextmanager
def open_shard(
    bench: Bench, plan: ShardPlan, *, wait: bool = False, again: bool = False
) -> Iterator[Shard]:
    """Claim a shard and open what is known of it, and give it back.

    Raises:
        ShardClaimed: Another run works on it.
        StorageError: The sink cannot be read or written.
    """
    with bench.claims.take(plan.shard, wait=wait) as claim:
        start: Start = "resume" if again else bench.job.start
        job = bench.job
        ledger = Ledger(bench.lake, job.run_id, start, claim, has_agents=job.pipeline.has_agents)
        held = load_held(bench.lake, plan.shard, bench.reading_key)
        if bench.claims.has_met_others:
            # They may have asked about copies since this run began.
            bench.copies.refresh()
        yield Shard(
            bench=bench,
            plan=plan,
            claim=claim,
            ledger=ledger,
            held=held,
            replays=Replays(bench.cache),
            desk=bench.desk.open(plan.shard) if bench.desk else None,
        )


def _process(shard: Shard) -> ShardReport:
    bench, plan = shard.bench, shard.plan
    try:
        documents = _answered(shard)
        if documents is None:
            return left_alone(plan.shard, len(plan.sources))
        send_batches(shard)
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


def send_batches(shard: Shard) -> None:
    """Send what the shard has for the host's batch API, all of it that can be asked now.

    Raises:
        StorageError: The claim is lost.
        EngineMisconfigured: The host has no batch API, or refuses the key.
    """
    if shard.bench.desk is None:
        return
    if shard.claim.is_lost:
        raise StorageError(_LOST.format(shard=shard.plan.shard), uri=shard.bench.lake.url)
    shard.bench.desk.submit(shard.plan.shard)


def _answered(shard: Shard) -> list[ReadDocument] | None:
    """Return the documents with their answers; None where the run has come to its end meanwhile."""
    bench, name = shard.bench, shard.plan.shard
    with ThreadPoolExecutor(NUM_READERS, thread_name_prefix=f"read-{name}") as threads:
        reading = _begin_reading(shard, threads)
        try:
            with _place(shard, bench.asking):
                if bench.budget.is_reached or bench.hopeless.is_set():
                    return None
                return asyncio.run(until_cancelled(shard, ask_all(shard, reading)))
        finally:
            shard.ledger.save()
            for future in reading:
                future.cancel()


def _begin_reading(shard: Shard, threads: ThreadPoolExecutor) -> list[Future[ReadDocument]]:
    """Return the documents to come, once there is a place; it is free again when all are read or given up."""
    places = shard.bench.reading
    _wait_for(shard, places)
    reading = [threads.submit(read, shard, source) for source in shard.plan.sources]
    if not reading:
        places.release()
    left = itertools.count(len(reading) - 1, -1)

    def ended(_: Future[ReadDocument]) -> None:
        if next(left) == 0:
            places.release()

    for future in reading:
        future.add_done_callback(ended)
    return reading


@contextmanager
def _place(shard: Shard, places: threading.Semaphore) -> Iterator[None]:
    """Hold a place while the block runs, once there is one."""
    _wait_for(shard, places)
    try:
        yield
    finally:
        places.release()


def _wait_for(shard: Shard, places: threading.Semaphore) -> None:
    """Wait for a place, but give up soon after the bench has been closed or the claim is lost.

    Raises:
        CancelledError: The bench has been closed.
        StorageError: The claim is lost.
    """
    while not places.acquire(timeout=_CANCEL_POLL_S):
        if shard.bench.cancelled.is_set():
            raise asyncio.CancelledError
        if shard.claim.is_lost:
            raise StorageError(_LOST.format(shard=shard.plan.shard), uri=shard.bench.lake.url)


def read(shard: Shard, source: SourceRef) -> ReadDocument:
    """Return one object's document and chunks; a bad object becomes a rejected document."""
    bench = shard.bench
    held = shard.held.find(source)
    if held is not None:
        media_dir = make_media_dir(bench, shard.plan.shard, source)
        document, chunks = held
        found = ReadDocument(document=document, chunks=chunks, media_dir=media_dir, is_held=True)
    else:
        document, chunks, media_dir = read_chunks(bench, shard.plan.shard, source, bench.rule)
        found = ReadDocument(document=document, chunks=chunks, media_dir=media_dir)
        take_over_answers(shard, document.document_key)
    commit = shard.held.commit
    is_done = held is not None and commit is not None and commit.work_key == bench.work_key
    if chunks and (not is_done or (commit and UNANSWERED & commit.outcomes.keys())):
        # Here and not when it is asked about, so that nobody waits for it.
        shard.replays.look(document.document_key)
    if bench.job.pipeline.has_agents:
        shard.corpora[source.path] = ChunkCorpus(document, chunks, found.media_dir, bench.lake)
    asked = min(len(chunks), bench.job.pipeline.chunk.max_per_document or len(chunks))
    if any(stage.over == "rows" for stage in bench.job.pipeline.stages):
        rows = rows_of(chunks, bench.job.pipeline.rows.order)
        found.rows, found.turns = rows.rows, rows.turns
    num_rows = sum(row.chunk < asked for row in found.rows)
    units = {"chunk": asked, "rows": num_rows, "document": int(bool(chunks))}
    expected = sum(stage.samples * units.get(stage.over, 0) for stage in bench.job.pipeline.stages)
    bench.progress.add(read=1, chunks=len(chunks), expected=expected)
    return found


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
