"""Takes the lines of a run's shards to the host in batches, and has what became of them.

All shards of a process share one desk. Which line is in which batch is known from the sink alone, so that
any later process goes on with what an earlier one has submitted: a line that is in a batch is not sent
again before the batch has ended without an answer to it.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from engine.batch.amount import Amount
from engine.batch.budget import Budget, Reservation
from engine.batch.call import RetryRule
from engine.batch.hosted import Line, LineEnd, Waiting, prefix_of
from engine.batch_api.ends import line_end
from engine.batch_api.host import BatchHost
from engine.batch_api.index import Index
from engine.batch_api.limits import BatchLimits
from engine.batch_api.outbox import Outbox, OutFile
from engine.batch_api.record import BatchRecord, HeldRecord, Store
from engine.batch_api.submission import Submission
from engine.batch_api.watch import Watch
from engine.endpoint import Endpoint
from engine.errors import EngineError, EngineUnavailable
from engine.request import content_key

logger = logging.getLogger(__name__)

_KEY_CHARS = 32
_TO_BE_SENT = Waiting(told="it goes into the next batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """Where a desk keeps what it knows."""

    store: Store
    folder: str
    """Of the store."""
    scratch: Path
    """Folder of this machine for lines that are not sent yet."""


class Desk:  # noqa: PLR0904 - all that a run does with its batches
    """The batches of one run at one host."""

    def __init__(
        self,
        endpoint: Endpoint,
        limits: BatchLimits,
        keeping: Keeping,
        budget: Budget,
        *,
        run_id: str,
        retry: RetryRule | None = None,
    ) -> None:
        self.base_url, self._limits, self._scratch = endpoint.base_url, limits, keeping.scratch
        self._budget, self._run_id = budget, run_id
        self._host = BatchHost(endpoint, retry or RetryRule())
        self._submission = Submission(self._host, limits.list_lag_s)
        self._index = Index(keeping.store, keeping.folder, endpoint.base_url)
        self._watch = Watch(self._host, self._index, limits.poll_s)
        self._lock = threading.RLock()
        self._outboxes: dict[str, Outbox] = {}
        self._reserved: dict[str, Reservation] = {}
        self._billed: dict[str, str] = {}
        """Which shard has the bill of a line."""
        self._sharers: dict[str, set[str]] = defaultdict(set)
        """Shards whose rows will rest on a request's lines, by what their ids begin with."""
        self._joined: dict[str, set[str]] = defaultdict(set)
        """The same, by shard."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._host.close()

    def stop(self) -> None:
        """Wait for nothing any more: the run ends."""
        self._host.stop()

    def begin(self, finished: Collection[str]) -> None:
        """Read what the sink knows, and set aside what the run has with the host.

        Args:
            finished: Shards of the run in which nothing is left to ask.
        """
        for held in self._index.load():
            record = held.record
            if record.state == "ended" and record.shard in finished:
                self._retire(held)
                continue
            self._join(record.shard, map(_prefix, record.lines))
            if record.run_id == self._run_id:
                self._hold(record.stage, record.lines)

    def open(self, shard: str) -> ShardDesk:
        """Return the desk of a shard whose claim is held, after what a killed process has left is in order.

        Raises:
            EngineMisconfigured: The host has no batch API, or refuses the key.
            SinkChanged: The claim is lost.
        """
        self._index.begin(shard)
        for held in self._index.load(shard):
            self._join(shard, map(_prefix, held.record.lines))
            if held.record.state in {"waiting", "ended"}:
                continue
            try:
                is_there = self._submission.recover(held)
            except EngineUnavailable as exc:
                logger.warning("batch %s: %s", held.record.batch_key, exc)
                self._index.unsent[shard] = str(exc)
                is_there = held.record.state == "submitting"
            if not is_there:
                self._index.forget(held)
                self._free(held.record.lines)
        return ShardDesk(self, shard)

    def find(self, line_id: str, shard: str) -> LineEnd | Waiting | None:
        """Return what became of a line, for a shard; None where it has never been sent."""
        self._join(shard, [_prefix(line_id)])
        held = self._index.of_line(line_id)
        if held is None:
            with self._lock:
                outbox = self._outboxes.get(shard)
                return _TO_BE_SENT if outbox is not None and outbox.has(line_id) else None
        if held.record.state != "ended":
            self._index.await_(shard, held)
            return Waiting(told=_told(held.record))
        return line_end(held.record, self._index.ends(held).get(line_id))

    def take(self, line: Line, reservation: Reservation, shard: str) -> Waiting:
        """Take a line of a shard that is to be sent.

        Raises:
            RequestRejected: It is too large for any file.
        """
        try:
            with self._lock:
                if shard not in self._outboxes:
                    self._outboxes[shard] = Outbox(self._scratch / f"batch-{shard}", self._limits)
                self._outboxes[shard].add(line, reservation.amount)
                self._hold(line.stage, {line.line_id: reservation.amount})
        finally:
            self._budget.settle(reservation, Amount())
        return _TO_BE_SENT

    def join(self, shard: str, request_key: str) -> None:
        """Take down that rows of a shard rest on a request that another shard sends."""
        self._join(shard, [prefix_of(request_key)])

    def _join(self, shard: str, prefixes: Iterable[str]) -> None:
        with self._lock:
            for prefix in prefixes:
                self._sharers[prefix].add(shard)
                self._joined[shard].add(prefix)

    def bill(self, line_id: str, stage: str, used: Amount, shard: str) -> bool:
        """Count what a line took, in place of what is set aside for it, and tell whether the shard has the bill."""
        with self._lock:
            if line_id in self._billed:
                return self._billed[line_id] == shard
            self._billed[line_id] = shard
            # Where another run has sent it, nothing is set aside: who has the answer has the bill.
            reserved = self._reserved.pop(line_id, None) or self._budget.hold(stage, Amount())
        self._budget.settle(reserved, used)
        return True

    def submit(self, shard: str) -> None:
        """Send the lines of a shard whose claim is held; those that the host does not take are freed.

        Raises:
            EngineMisconfigured: The host has no batch API, or refuses the key.
            SinkChanged: The claim is lost.
        """
        with self._lock:
            outbox = self._outboxes.pop(shard, None)
        for file in outbox.empty() if outbox else ():
            try:
                self._submit(shard, file)
            except EngineUnavailable as exc:
                logger.warning(
                    "shard=%s: %d requests are not in a batch yet: %s", shard, len(file.lines), exc
                )
                self._index.unsent[shard] = str(exc)
                self._free(file.lines)

    def _submit(self, shard: str, file: OutFile) -> None:
        """Send one file.

        Raises:
            EngineUnavailable: The host has not taken it.
        """
        num_open = sum(held.record.state != "ended" for held in self._index.records())
        if num_open >= self._limits.max_files:
            raise EngineUnavailable(
                f"{num_open:,} files lie at the host, which takes {self._limits.max_files:,}; more go out"
                " as batches end"
            )
        terms = (self.base_url, file.model, file.window)
        record = BatchRecord(
            batch_key=content_key("batch", *terms, sorted(file.lines))[:_KEY_CHARS],
            shard=shard,
            stage=file.stage,
            run_id=self._run_id,
            base_url=self.base_url,
            model=file.model,
            window=file.window,
            lines=dict(file.lines),
        )
        held = self._index.create(record)
        try:
            self._submission.submit(held, file.path)
        except EngineUnavailable as exc:
            if held.record.state != "submitting":
                self._index.forget(held)
                raise
            # Its lines wait until it is known whether the host has begun it.
            self._index.unsent[shard] = str(exc)
        self._index.await_(shard, held)

    def close(self, shard: str, unfinished: Collection[str]) -> None:
        """Remove what is not needed any more of a shard that has been committed.

        Args:
            shard: The shard.
            unfinished: Keys of its requests that are to be carried out once more.
        """
        needed = {prefix_of(key) for key in unfinished}
        with self._lock:
            finished = self._joined[shard] - needed
            self._joined[shard] -= finished
            for prefix in finished:
                self._sharers[prefix].discard(shard)
                if not self._sharers[prefix]:
                    del self._sharers[prefix]
        for held in self._index.of(shard, finished):
            record = held.record
            # Another shard's rows may rest on the same question.
            done = [line for line in record.lines if _prefix(line) not in self._sharers]
            self._free(done)
            if record.state == "ended" and len(done) == len(record.lines):
                self._retire(held)
        self._index.let_go(shard)

    def _retire(self, held: HeldRecord) -> None:
        """Remove a record whose answers are kept elsewhere, and what the host has of it: it takes only so much."""
        for file_id in (held.record.file_id, *held.record.host_files):
            if file_id is not None:
                with suppress(EngineError):
                    self._host.remove_file(file_id)
        held.remove()
        self._index.forget(held)

    @property
    def is_idle(self) -> bool:
        """Tell whether nothing is out that shards wait for, and nothing is left to be sent."""
        return not self._index.awaited() and not self._index.unsent

    def waiting(self) -> list[dict[str, Any]]:
        """Return the batches that have not ended and that the run waits for, oldest first."""
        return self._watch.waiting()

    def wait(
        self,
        shards: Collection[str],
        *,
        until_s: float | None,
        is_cancelled: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> list[str]:
        """Return those of the shards that have something to go on with; see `Watch.wait`."""
        return self._watch.wait(shards, until_s=until_s, is_cancelled=is_cancelled, tell=tell)

    def _hold(self, stage: str, lines: Mapping[str, Amount]) -> None:
        with self._lock:
            for line_id, worst in lines.items():
                if line_id not in self._reserved:
                    self._reserved[line_id] = self._budget.hold(stage, worst)

    def _free(self, lines: Collection[str]) -> None:
        for line_id in lines:
            with self._lock:
                reserved = self._reserved.pop(line_id, None)
            if reserved is not None:
                self._budget.settle(reserved, Amount())


@dataclass(frozen=True, slots=True)
class ShardDesk:
    """The desk for the requests of one shard."""

    desk: Desk
    shard: str

    @property
    def base_url(self) -> str:
        """Return the address of the one host that it sends to."""
        return self.desk.base_url

    def find(self, line_id: str) -> LineEnd | Waiting | None:
        """Return what became of a line; None where it has never been sent."""
        return self.desk.find(line_id, self.shard)

    def take(self, line: Line, reservation: Reservation) -> Waiting:
        """Take a line that is to be sent.

        Raises:
            RequestRejected: It is too large for any file.
        """
        return self.desk.take(line, reservation, self.shard)

    def bill(self, line_id: str, stage: str, used: Amount) -> bool:
        """Count what a line took, in place of what is set aside for it, and tell whether this shard has the bill."""
        return self.desk.bill(line_id, stage, used, self.shard)

    def join(self, request_key: str) -> None:
        """Take down that rows of the shard rest on a request that another shard sends."""
        self.desk.join(self.shard, request_key)


def _prefix(line_id: str) -> str:
    """Return what the ids of all lines of a line's request begin with."""
    return line_id.rpartition("-")[0]


def _told(record: BatchRecord) -> str:
    if record.state != "waiting":
        return "it is in a batch of which the host has not said yet whether it has begun it"
    return f"it waits in batch {record.batch_id}, since {record.since}"
