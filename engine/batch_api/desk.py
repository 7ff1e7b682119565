"""Takes the lines of a run's shards to the host in batches, and has what became of them.

All shards of a process share one desk. Which line is in which batch is known from the sink alone, so that
any later process goes on with what an earlier one has submitted: a line that is in a batch is not sent
again before the batch has ended without an answer to it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from engine.batch.amount import Amount
from engine.batch.budget import Budget, Reservation
from engine.batch.call import RetryRule
from engine.batch.hosted import Line, LineEnd, Waiting, prefix_of
from engine.batch_api.collect import collect
from engine.batch_api.ends import line_end
from engine.batch_api.host import ENDED, BatchHost
from engine.batch_api.limits import BatchLimits
from engine.batch_api.outbox import Outbox, OutFile
from engine.batch_api.record import BatchRecord, HeldRecord, SinkChanged, Store
from engine.batch_api.submission import Submission
from engine.endpoint import Endpoint
from engine.errors import EngineUnavailable, RequestRejected
from engine.request import content_key

logger = logging.getLogger(__name__)

_LOADED_AT_ONCE = 16
_POLL_GROWTH = 1.5
_MOST_POLL_FACTOR = 10.0
_KEY_CHARS = 32
_STEP_S = 0.2
_LOOKS_IN_VAIN = 3
"""Looks at which a host must know nothing of a batch before that is believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """Where a desk keeps what it knows."""

    store: Store
    folder: str
    """Of the store."""
    scratch: Path
    """Folder of this machine for lines that are not sent yet."""


@dataclass(slots=True)
class _ShardState:
    """What the desk knows of one shard in this process."""

    outbox: Outbox | None = None
    awaited: set[str] = field(default_factory=set)
    """Paths of records whose end its requests wait for."""
    unsent: str = ""
    """Why lines of it could not be sent."""


class Desk:  # noqa: PLR0904 - all that is known of a run's batches
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
        self._base_url, self._limits, self._keeping = endpoint.base_url, limits, keeping
        self._budget, self._run_id = budget, run_id
        self._host = BatchHost(endpoint.base_url, endpoint.api_key, retry or RetryRule())
        self._stopped = threading.Event()
        self._submission = Submission(self._host, limits.list_lag_s, self._stopped)
        self._lock = threading.RLock()
        self._held: dict[str, HeldRecord] = {}
        self._of_line: dict[str, str] = {}
        self._ends: dict[str, Mapping[str, Any]] = {}
        self._reserved: dict[str, Reservation] = {}
        self._billed: set[str] = set()
        self._shards: dict[str, _ShardState] = defaultdict(_ShardState)
        self._in_vain: dict[str, int] = defaultdict(int)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        self._host.__exit__(kind, exc, traceback)

    def stop(self) -> None:
        """Wait for nothing any more: the run ends."""
        self._stopped.set()
        self._host.stop()

    def begin(self, finished: Collection[str]) -> None:
        """Read what the sink knows, and set aside what the run has with the host.

        Args:
            finished: Shards of the run in which nothing is left to ask.
        """
        with ThreadPoolExecutor(_LOADED_AT_ONCE) as threads:
            for held in threads.map(self._load, self._paths("")):
                if held is None:
                    continue
                record = held.record
                if record.state == "ended" and record.shard in finished:
                    held.remove()
                    continue
                self._index(held)
                if record.run_id == self._run_id:
                    self._hold(record.stage, record.lines)

    def _paths(self, shard: str) -> list[str]:
        """Return the paths of the records of a shard, or of all, in the store."""
        prefix = f"{self._keeping.folder}/{shard}".rstrip("/")
        listed = self._keeping.store.list(f"{prefix}/")
        return [item.path for item in listed if item.path.endswith(".json")]

    def _load(self, path: str) -> HeldRecord | None:
        held = HeldRecord.find(self._keeping.store, path, self._keeping.folder)
        return held if held is not None and held.record.base_url == self._base_url else None

    def _index(self, held: HeldRecord) -> None:
        with self._lock:
            self._held[held.record.path] = held
            for line_id in held.record.lines:
                self._of_line[line_id] = held.record.path

    def _hold(self, stage: str, lines: Mapping[str, Amount]) -> None:
        with self._lock:
            for line_id, worst in lines.items():
                if line_id not in self._reserved:
                    self._reserved[line_id] = self._budget.hold(stage, worst)

    def _forget(self, path: str) -> None:
        """Forget a record that has gone; what was set aside for its lines is free."""
        with self._lock:
            held = self._held.pop(path, None)
            self._ends.pop(path, None)
            for line_id in held.record.lines if held else ():
                if self._of_line.get(line_id) == path:
                    del self._of_line[line_id]
                self._free(line_id)

    def _free(self, line_id: str) -> None:
        with self._lock:
            reserved = self._reserved.pop(line_id, None)
        if reserved is not None:
            self._budget.settle(reserved, Amount())

    def open(self, shard: str) -> ShardDesk:
        """Return the desk of a shard whose claim is held, after what a killed process has left is in order.

        Raises:
            EngineMisconfigured: The host has no batch API, or refuses the key.
            SinkChanged: The claim is lost.
        """
        with self._lock:
            self._shards[shard] = _ShardState()
        for path in self._paths(shard):
            held = self._load(path)
            if held is None:
                continue
            self._index(held)
            if held.record.state in {"waiting", "ended"}:
                continue
            try:
                is_there = self._submission.recover(held)
            except EngineUnavailable as exc:
                self._shards[shard].unsent = str(exc)
                logger.warning("batch %s: %s", held.record.batch_key, exc)
                is_there = held.record.state == "submitting"
            if not is_there:
                self._forget(held.record.path)
        return ShardDesk(self, shard)

    def find(self, line_id: str, shard: str) -> LineEnd | Waiting | None:
        """Return what became of a line, for a shard; None where it has never been sent."""
        with self._lock:
            path = self._of_line.get(line_id)
            held = None if path is None else self._held.get(path)
            if path is None or held is None:
                outbox = self._shards[shard].outbox
                return _TO_BE_SENT if outbox is not None and outbox.has(line_id) else None
            if held.record.state != "ended":
                self._shards[shard].awaited.add(path)
                return Waiting(told=_told(held.record))
            ends = self._ends.get(path)
        if ends is None:
            ends = held.load_ends()
            with self._lock:
                self._ends[path] = ends
        return line_end(held.record, ends.get(line_id))

    def take(self, line: Line, reservation: Reservation, shard: str) -> Waiting:
        """Take a line of a shard that is to be sent.

        Raises:
            RequestRejected: It is too large for any file.
        """
        with self._lock:
            state = self._shards[shard]
            if state.outbox is None:
                state.outbox = Outbox(self._keeping.scratch / f"batch-{shard}", self._limits)
            try:
                state.outbox.add(line, reservation.amount)
            except RequestRejected:
                self._budget.settle(reservation, Amount())
                raise
            self._hold(line.stage, {line.line_id: reservation.amount})
        self._budget.settle(reservation, Amount())
        return _TO_BE_SENT

    def bill(self, line_id: str, stage: str, used: Amount) -> None:
        """Count what a line took, in place of what is set aside for it; only once in a process."""
        with self._lock:
            if line_id in self._billed:
                return
            self._billed.add(line_id)
            # Where another run has sent it, nothing is set aside: who has the answer has the bill.
            reserved = self._reserved.pop(line_id, None) or self._budget.hold(stage, Amount())
        self._budget.settle(reserved, used)

    def submit(self, shard: str) -> None:
        """Send the lines of a shard whose claim is held; those that the host does not take are freed.

        Raises:
            EngineMisconfigured: The host has no batch API, or refuses the key.
            SinkChanged: The claim is lost.
        """
        state = self._shards[shard]
        outbox, state.outbox = state.outbox, None
        for file in outbox.empty() if outbox else ():
            try:
                self._submit(shard, file)
            except EngineUnavailable as exc:
                logger.warning(
                    "shard=%s: %d requests are not in a batch yet: %s", shard, len(file.lines), exc
                )
                state.unsent = str(exc)
                for line_id in file.lines:
                    self._free(line_id)

    def _submit(self, shard: str, file: OutFile) -> None:
        """Send one file.

        Raises:
            EngineUnavailable: The host has not taken it.
        """
        num_open = sum(held.record.state != "ended" for held in self._records())
        if num_open >= self._limits.max_files:
            raise EngineUnavailable(
                f"{num_open:,} files lie at the host, which takes {self._limits.max_files:,}; more go out"
                " as batches end"
            )
        terms = (self._base_url, file.model, file.window)
        record = BatchRecord(
            batch_key=content_key("batch", *terms, sorted(file.lines))[:_KEY_CHARS],
            shard=shard,
            stage=file.stage,
            run_id=self._run_id,
            base_url=self._base_url,
            model=file.model,
            window=file.window,
            lines=dict(file.lines),
        )
        held = HeldRecord.create(self._keeping.store, record, self._keeping.folder)
        self._index(held)
        state = self._shards[shard]
        try:
            self._submission.submit(held, file.path)
        except EngineUnavailable as exc:
            if held.record.state != "submitting":
                self._forget(record.path)
                raise
            state.unsent = str(exc)
        # Where it is not known whether it has begun, its lines wait until that is.
        state.awaited.add(record.path)

    def _records(self) -> list[HeldRecord]:
        with self._lock:
            return list(self._held.values())

    def close(self, shard: str, unfinished: Collection[str]) -> None:
        """Remove what is not needed any more of a shard that has been committed.

        Args:
            shard: The shard.
            unfinished: Keys of its requests that are to be carried out once more.
        """
        needed = {prefix_of(key) for key in unfinished}
        for held in self._records():
            if held.record.shard != shard:
                continue
            is_needed = False
            for line_id in held.record.lines:
                if line_id.rpartition("-")[0] in needed:
                    is_needed = True
                else:
                    self._free(line_id)
            if held.record.state == "ended" and not is_needed:
                held.remove()
                self._forget(held.record.path)
            with self._lock:
                self._ends.pop(held.record.path, None)

    def waiting(self) -> list[dict[str, Any]]:
        """Return the batches that have not ended and that the run waits for, oldest first."""
        with self._lock:
            awaited = {path for state in self._shards.values() for path in state.awaited}
        found = [h.record for h in self._records() if h.record.path in awaited]
        left = [record for record in found if record.state != "ended"]
        return [record.as_told() for record in sorted(left, key=lambda one: (one.since, one.path))]

    def wait(
        self,
        shards: Collection[str],
        *,
        until_s: float | None,
        is_cancelled: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> list[str]:
        """Return those of the shards that have something to go on with, as soon as one has.

        Args:
            shards: Shards with requests that wait.
            until_s: When to give up, by `time.monotonic`; none is returned then. None: never.
            is_cancelled: Whether the run ends.
            tell: Is told how far the batches are.

        Raises:
            EngineMisconfigured: The host refuses the key.
        """
        looked = Looks(self._limits.poll_s)
        while True:
            self._look_at_all(shards)
            ready = [shard for shard in shards if self._has_news(shard)]
            if ready:
                return ready
            tell(in_words(self.waiting()))
            late = until_s is not None and time.monotonic() + looked.interval_s > until_s
            if late or not looked.pause(is_cancelled):
                return []
            retried = [shard for shard in shards if self._shards[shard].unsent]
            if retried:
                return retried

    def _has_news(self, shard: str) -> bool:
        """Tell whether all batches of one of the shard's stages have ended."""
        state = self._shards[shard]
        with self._lock:
            awaited = [self._held.get(path) for path in state.awaited]
        by_stage: dict[str, bool] = {}
        for held in awaited:
            if held is None:
                return True
            stage, has_ended = held.record.stage, held.record.state == "ended"
            by_stage[stage] = by_stage.get(stage, True) and has_ended
        if not by_stage:
            return not state.unsent
        return any(by_stage.values())

    def _look_at_all(self, shards: Collection[str]) -> None:
        with self._lock:
            awaited = {path for shard in shards for path in self._shards[shard].awaited}
        for held in self._records():
            if held.record.path in awaited and held.record.state == "waiting":
                try:
                    self._look_at(held)
                except EngineUnavailable as exc:
                    logger.warning("batch %s: %s", held.record.batch_id, exc)
                except SinkChanged:
                    # Another process has seen it end as well.
                    self._reload(held)

    def _look_at(self, held: HeldRecord) -> None:
        record = held.record
        assert record.batch_id is not None
        batch = self._host.look(record.batch_id)
        if batch is None:
            self._in_vain[record.path] += 1
            if self._in_vain[record.path] >= _LOOKS_IN_VAIN:
                held.put_ends(b"")
                held.change(state="ended", status="gone")
            return
        self._in_vain.pop(record.path, None)
        if batch.status in ENDED:
            collect(self._host, held, batch)
            return
        held.record = replace(
            record,
            status=batch.status,
            num_answered=batch.num_answered,
            num_failed=batch.num_failed,
        )

    def _reload(self, held: HeldRecord) -> None:
        found = self._load(f"{self._keeping.folder}/{held.record.path}")
        if found is None:
            self._forget(held.record.path)
        else:
            self._index(found)


@dataclass(frozen=True, slots=True)
class ShardDesk:
    """The desk for the requests of one shard."""

    desk: Desk
    shard: str

    def find(self, line_id: str) -> LineEnd | Waiting | None:
        """Return what became of a line; None where it has never been sent."""
        return self.desk.find(line_id, self.shard)

    def take(self, line: Line, reservation: Reservation) -> Waiting:
        """Take a line that is to be sent.

        Raises:
            RequestRejected: It is too large for any file.
        """
        return self.desk.take(line, reservation, self.shard)

    def bill(self, line_id: str, stage: str, used: Amount) -> None:
        """Count what a line took, in place of what is set aside for it; only once in a process."""
        self.desk.bill(line_id, stage, used)


class Looks:
    """How long is paused between two looks at the host."""

    def __init__(self, first_s: float) -> None:
        self.interval_s = first_s
        self._most_s = _MOST_POLL_FACTOR * first_s

    def pause(self, is_cancelled: Callable[[], bool]) -> bool:
        """Pause, and tell whether to look again."""
        end = time.monotonic() + self.interval_s
        while (left := end - time.monotonic()) > 0:
            if is_cancelled():
                return False
            time.sleep(min(_STEP_S, left))
        self.interval_s = min(self._most_s, self.interval_s * _POLL_GROWTH)
        return not is_cancelled()


def in_words(waiting: Sequence[Mapping[str, Any]]) -> str:
    """Return how far the batches are that a run waits for."""
    if not waiting:
        return "the host has not taken the requests yet"
    lines, done = (sum(one[name] for one in waiting) for name in ("lines", "answered"))
    batches = "1 batch" if len(waiting) == 1 else f"{len(waiting)} batches"
    return f"{batches} at the host, {done:,} of {lines:,} requests answered"


_TO_BE_SENT = Waiting(told="it goes into the next batch")


def _told(record: BatchRecord) -> str:
    if record.state != "waiting":
        return "it is in a batch of which the host has not said yet that it has it"
    return f"it waits in batch {record.batch_id}, since {record.since}"
