"""Brings one file to the host as one batch, however often the process that does it is killed.

The record is written before each call to the host and after it. A call whose answer is not known is never
made again before the host's lists have been looked at: its files by their name, its batches by the key in
their metadata or, where the host keeps none, by the file that they are made of.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from engine.batch_api.host import BatchHost, HostBatch
from engine.batch_api.record import HeldRecord
from engine.errors import EngineError, EngineUnavailable, RequestRejected

logger = logging.getLogger(__name__)

_BUSY = 429


class Submission:
    """Submits batches to one host."""

    def __init__(self, host: BatchHost, list_lag_s: float) -> None:
        """Take the host.

        Args:
            host: Where to.
            list_lag_s: Seconds after which its list names all that it has taken.
        """
        self._host, self._list_lag_s = host, list_lag_s

    def submit(self, held: HeldRecord, file: Path) -> None:
        """Have the host begin a batch, or refuse it.

        Raises:
            EngineUnavailable: It has not begun it, and the record is gone; or it may have, and the record
                stays `submitting`.
            SinkChanged: Somebody else has the shard.
        """
        try:
            file_id = self._host.upload(held.record.file_name, file)
        except RequestRejected as exc:
            self._refused(held, exc)
            return
        except EngineUnavailable:
            # A file alone is not paid for.
            self._drop(held)
            raise
        held.change(state="submitting", file_id=file_id)
        self._begin(held, is_new=True)

    def recover(self, held: HeldRecord) -> bool:
        """Bring a batch to where it would be if the process had not been killed; its shard is ours.

        Return whether there is such a batch; otherwise its record is gone, and its lines may be sent.

        Raises:
            EngineUnavailable: As for `submit`.
            SinkChanged: Somebody else has the shard.
        """
        record = held.record
        if record.state == "intended":
            self._drop(held)
            return False
        found = self._find(held)
        if found is not None:
            self._taken(held, found)
            return True
        return self._begin(held, is_new=False)

    def _begin(self, held: HeldRecord, *, is_new: bool) -> bool:
        """Have the host begin a batch whose file it has, and tell whether there is a batch, or a refusal.

        Raises:
            EngineUnavailable: As for `submit`.
            AssertionError: Never.
        """
        record = held.record
        assert record.file_id is not None
        for is_last in (False, True):
            try:
                batch = self._host.begin(record.batch_key, record.file_id, record.window)
            except RequestRejected as exc:
                if is_new:
                    self._refused(held, exc)
                    return True
                # The file may be gone; its lines go into a new one.
                self._drop(held)
                return False
            except EngineUnavailable as exc:
                if exc.status == _BUSY:
                    self._drop(held)
                    raise
                logger.warning(
                    "batch %s: not known whether it has begun: %s", record.batch_key, exc
                )
                found = self._find(held)
                if found is None and is_last:
                    raise
                if found is None:
                    continue
                batch = found
            self._taken(held, batch)
            return True
        raise AssertionError("unreachable: the last try returns or raises")

    def _find(self, held: HeldRecord) -> HostBatch | None:
        """Return the batch by the host's list, looked at again when it must have it.

        Raises:
            EngineUnavailable: The list cannot be read.
        """
        record = held.record
        assert record.file_id is not None
        found = self._host.find_batch(record.batch_key, record.file_id)
        if found is not None or not self._list_lag_s:
            return found
        self._host.pause(self._list_lag_s)
        return self._host.find_batch(record.batch_key, record.file_id)

    def _taken(self, held: HeldRecord, batch: HostBatch) -> None:
        held.change(
            state="waiting",
            batch_id=batch.batch_id,
            status=batch.status,
            since=told_time(batch.created_at) or told_time(datetime.now(UTC).timestamp()),
            expires=told_time(batch.expires_at),
        )
        record = held.record
        logger.info(
            "shard=%s stage=%s: batch %s with %d requests waits at %s",
            record.shard,
            record.stage,
            record.batch_id,
            len(record.lines),
            record.base_url,
        )

    def _refused(self, held: HeldRecord, exc: RequestRejected) -> None:
        # No ends are put: another process may have taken the shard over, and put those that it has found.
        held.change(state="ended", status="refused", refusal=str(exc), refusal_status=exc.status)

    def _drop(self, held: HeldRecord) -> None:
        """Forget a batch that the host has not begun, and the file that it may have of it."""
        record = held.record
        # First of all: whoever has the shard now may be about to begin it.
        held.change(state="intended")
        with suppress(EngineError):
            file_id = record.file_id or self._host.find_file(record.file_name)
            if file_id is not None:
                self._host.remove_file(file_id)
        held.remove()


def told_time(seconds: float) -> str:
    """Return a time as ISO 8601, UTC; empty for 0."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else ""
