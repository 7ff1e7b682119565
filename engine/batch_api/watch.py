"""Looks at the host's batches until some that shards wait for have ended."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from engine.batch_api.collect import collect
from engine.batch_api.host import ENDED, BatchHost
from engine.batch_api.index import Index
from engine.batch_api.record import HeldRecord, SinkChanged
from engine.errors import EngineUnavailable

logger = logging.getLogger(__name__)

_POLL_GROWTH = 1.5
_MOST_POLL_FACTOR = 10.0
_STEP_S = 0.2
_NOT_FOUND = 404
_LOOKS_IN_VAIN = 3
"""Looks at which a host must know nothing of a batch, or of its answers, before that is believed."""


class Watch:
    """Watches the batches of one host."""

    def __init__(self, host: BatchHost, index: Index, poll_s: float) -> None:
        self._host, self._index, self._poll_s = host, index, poll_s
        self._interval_s = poll_s
        self._in_vain: Counter[str] = Counter()

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
        while True:
            self._look_at(shards)
            if ready := [shard for shard in shards if self._has_news(shard)]:
                self._interval_s = self._poll_s
                return ready
            tell(in_words(self.waiting()))
            interval_s = self._interval_s
            is_late = until_s is not None and time.monotonic() + interval_s > until_s
            if is_late or not _pause(interval_s, is_cancelled):
                return []
            self._interval_s = min(_MOST_POLL_FACTOR * self._poll_s, interval_s * _POLL_GROWTH)
            if unsent := [shard for shard in shards if shard in self._index.unsent]:
                return unsent

    def waiting(self) -> list[dict[str, Any]]:
        """Return the batches that have not ended and that shards wait for, oldest first."""
        found = [held.record for held in self._index.awaited() if held is not None]
        left = [record for record in found if record.state != "ended"]
        return [record.as_told() for record in sorted(left, key=lambda one: (one.since, one.path))]

    def _has_news(self, shard: str) -> bool:
        """Tell whether all batches of one of the shard's stages have ended."""
        by_stage: dict[str, bool] = {}
        # One that waits for none of its own asks what another shard has sent.
        awaited = self._index.awaited([shard]) or self._index.awaited()
        if not awaited:
            return shard not in self._index.unsent
        for held in awaited:
            if held is None:
                return True
            stage, has_ended = held.record.stage, held.record.state == "ended"
            by_stage[stage] = by_stage.get(stage, True) and has_ended
        return any(by_stage.values())

    def _look_at(self, shards: Collection[str]) -> None:
        for held in self._index.awaited(shards):
            if held is None or held.record.state != "waiting":
                continue
            try:
                self._look(held)
            except EngineUnavailable as exc:
                logger.warning("batch %s: %s", held.record.batch_id, exc)
                if exc.status == _NOT_FOUND:
                    self._missed(held)
            except SinkChanged:
                # Another process has seen it end as well.
                self._index.reload(held)

    def _look(self, held: HeldRecord) -> None:
        record = held.record
        assert record.batch_id is not None
        batch = self._host.look(record.batch_id)
        if batch is None:
            self._missed(held)
            return
        if batch.status in ENDED:
            collect(self._host, held, batch)
            return
        del self._in_vain[record.path]
        held.record = replace(
            record,
            status=batch.status,
            num_answered=batch.num_answered,
            num_failed=batch.num_failed,
        )

    def _missed(self, held: HeldRecord) -> None:
        """Take down that the host has nothing of a batch, or not its answers; believe it after some looks."""
        path = held.record.path
        self._in_vain[path] += 1
        # Another process may have taken the answers, and removed them there and the record in the sink.
        found = self._index.reload(held)
        if found is None or found.record.state == "ended" or self._in_vain[path] < _LOOKS_IN_VAIN:
            return
        with suppress(SinkChanged):
            # No ends are put: another process may just be putting those that it has found.
            found.change(state="ended", status="gone")


def _pause(interval_s: float, is_cancelled: Callable[[], bool]) -> bool:
    """Wait so long, and tell whether to look again."""
    end = time.monotonic() + interval_s
    while (left := end - time.monotonic()) > 0:
        if is_cancelled():
            return False
        time.sleep(min(_STEP_S, left))
    return not is_cancelled()


def in_words(waiting: Sequence[Mapping[str, Any]]) -> str:
    """Return how far the batches are that a run waits for."""
    if not waiting:
        return "the host to take more requests"
    lines, done = (sum(one[name] for one in waiting) for name in ("lines", "answered"))
    batches = "1 batch" if len(waiting) == 1 else f"{len(waiting):,} batches"
    return f"{batches} at the host, {done:,} of {lines:,} requests answered"
