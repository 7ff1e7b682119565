"""Who works on a shard: a claim is taken before its first paid call and given back after its commit.

Claims are objects in the sink, taken and renewed by conditional puts. No clocks are compared: who
wants a shard takes it over when the claim has not changed for a while by the own steady clock, or at
once where its process has died on this very machine.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from connectors.errors import ConnectorError, StorageError, StorageUnavailable
from connectors.storage import STATE_PREFIX, Storage
from engine.process import ProcessMark, start_mark

logger = logging.getLogger(__name__)

LEASE_S = 30.0
"""Seconds without a sign of life after which others may take a claim over."""

CLAIMS = f"{STATE_PREFIX}/claims"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a claim."""

    run_id: str
    machine: str
    """Host name, boot and process namespace: the same where a process number means the same."""
    host: str
    pid: int
    pid_started: str
    token: str
    beat: int = 0
    """Goes up as long as the holder lives."""

    @property
    def has_died(self) -> bool:
        """Tell whether it was a process of this machine that has ended."""
        here = self.machine == machine_mark()
        return here and not ProcessMark(pid=self.pid, started=self.pid_started).is_alive


class ShardClaimed(ConnectorError):
    """Another run is at work on the shard; it goes on, and this one must wait for it."""

    def __init__(self, shard: str, holder: Holder) -> None:
        super().__init__(
            f"shard {shard} is being worked on by run {holder.run_id} (process {holder.pid} on"
            f" {holder.host}); what else there was to do is done and kept. Wait until that run has"
            " ended, then resume this one"
        )
        self.shard, self.holder = shard, holder

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.shard, self.holder))


@dataclass(slots=True)
class Claim:
    """One shard's claim, held by this process."""

    shard: str
    holder: Holder
    etag: str
    renewed_s: float = field(default_factory=time.monotonic)
    is_lost: bool = False
    """Whether somebody else may hold it: nothing more is to be paid for or written."""


class Claims:
    """The claims of one run in this process; a thread renews them."""

    def __init__(self, storage: Storage, run_id: str, lease_s: float = LEASE_S) -> None:
        self._storage, self._lease_s = storage, lease_s
        pid = os.getpid()
        self._me = Holder(
            run_id=run_id,
            machine=machine_mark(),
            host=platform.node(),
            pid=pid,
            pid_started=start_mark(pid),
            token="",
        )
        self.has_met_others = False
        """Whether another run is, or was, at work on the sink."""
        self._held: dict[str, Claim] = {}
        self._seen: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claims", daemon=True)

    def __enter__(self) -> Claims:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join(self._lease_s)
        for shard in list(self._held):
            self.give_back(shard)

    @contextmanager
    def take(self, shard: str, *, wait: bool) -> Iterator[Claim]:
        """Hold a shard's claim while the block runs.

        Args:
            shard: Which one.
            wait: Whether to wait until it is free, or its holder is known to be alive.

        Raises:
            ShardClaimed: Somebody else holds it.
        """
        claim = self._take(shard, wait=wait)
        with self._lock:
            self._held[shard] = claim
        try:
            yield claim
        finally:
            self.give_back(shard)

    def _take(self, shard: str, *, wait: bool) -> Claim:
        started = time.monotonic()
        first_beat: int | None = None
        while True:
            found = self._try(shard)
            if isinstance(found, Claim):
                return found
            if first_beat is None:
                first_beat = found.beat
            # Two beats, since a claim may be renewed once more by a process that is ending.
            lives = found.beat >= first_beat + 2 or time.monotonic() - started > 4 * self._lease_s
            if not wait or lives or self._closed.wait(min(1.0, self._lease_s / 10)):
                raise ShardClaimed(shard, found)

    def _try(self, shard: str) -> Claim | Holder:
        """Return the claim, or who holds it."""
        path = f"{CLAIMS}/{shard}.json"
        mine = replace(self._me, token=secrets.token_hex(8))
        etag = self._storage.put_if_absent(path, _as_bytes(mine))
        if etag is not None:
            return Claim(shard, mine, etag)
        found = self._storage.find(path)
        if found is None:
            return self._try(shard)
        holder = _holder(found.data, self._storage.uri(path))
        self.has_met_others |= holder.run_id != self._me.run_id
        seen = self._seen.get(shard)
        now = time.monotonic()
        if seen is None or seen[0] != found.etag:
            self._seen[shard] = seen = (found.etag, now)
        if not holder.has_died and now - seen[1] < self._lease_s:
            return holder
        etag = self._storage.put_if_match(path, _as_bytes(mine), found.etag)
        if etag is None:
            return self._try(shard)
        logger.warning(
            "shard=%s taken over from run %s, process %d on %s, which gives no sign of life",
            shard,
            holder.run_id,
            holder.pid,
            holder.host,
        )
        return Claim(shard, mine, etag)

    def give_back(self, shard: str) -> None:
        """Let others have the shard; a claim that is lost is left to who has it."""
        with self._lock:
            claim = self._held.pop(shard, None)
        if claim is None or claim.is_lost or not self._is_fresh(claim):
            return
        # Left behind, it is taken over when it has not changed for a while.
        with suppress(StorageUnavailable):
            self._storage.delete(f"{CLAIMS}/{shard}.json")

    def _is_fresh(self, claim: Claim) -> bool:
        """Tell whether nobody can have taken the claim over yet."""
        return time.monotonic() - claim.renewed_s < 0.8 * self._lease_s

    def _beat(self) -> None:
        while not self._closed.wait(self._lease_s / 6):
            for claim in list(self._held.values()):
                self._renew(claim)

    def _renew(self, claim: Claim) -> None:
        holder = replace(claim.holder, beat=claim.holder.beat + 1)
        started = time.monotonic()
        path = f"{CLAIMS}/{claim.shard}.json"
        with self._lock:
            if self._held.get(claim.shard) is not claim or claim.is_lost:
                return
            try:
                etag = self._storage.put_if_match(path, _as_bytes(holder), claim.etag)
            except StorageError as exc:
                logger.warning("shard=%s: claim not renewed: %s", claim.shard, exc)
                claim.is_lost = not self._is_fresh(claim)
                return
            if etag is None and not self._is_mine(claim, path):
                claim.is_lost = True
            elif etag is not None:
                claim.holder, claim.etag, claim.renewed_s = holder, etag, started

    def _is_mine(self, claim: Claim, path: str) -> bool:
        """Tell whether the claim is still this process's, and note the ETag that it has."""
        with suppress(StorageUnavailable):
            found = self._storage.find(path)
            if found is None or _holder(found.data, path).token != claim.holder.token:
                return False
            claim.etag = found.etag
        return True


def claimed(storage: Storage) -> set[str]:
    """Return the shards that are claimed, or were when their holder died."""
    return {Path(item.path).stem for item in storage.list(CLAIMS)}


class SinkInUse(ConnectorError):
    """A run is at work on the sink; what was asked for must wait for it."""


def require_idle(storage: Storage) -> None:
    """Check that no run is at work on a sink.

    Raises:
        SinkInUse: One is, or may be: its process is on another machine.
    """
    for shard in sorted(claimed(storage)):
        path = f"{CLAIMS}/{shard}.json"
        found = storage.find(path)
        if found is None:
            continue
        holder = _holder(found.data, storage.uri(path))
        if not holder.has_died:
            raise SinkInUse(
                f"run {holder.run_id} (process {holder.pid} on {holder.host}) is at work on sink"
                f" {storage.url!r}; wait until it has ended. If it was killed, go on with it first:"
                f" headrace run --resume {holder.run_id}"
            )


def _as_bytes(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _holder(data: bytes, uri: str) -> Holder:
    try:
        return Holder(**json.loads(data))
    except (ValueError, TypeError) as exc:
        raise StorageError(
            f"{uri} is no claim of this version; if no other run is at work, delete it", uri=uri
        ) from exc


def machine_mark() -> str:
    """Return the host name, boot and process namespace: one steady clock, and process numbers that are one's own."""
    boot, space = "", ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = str(Path("/proc/self/ns/pid").readlink())
    return f"{platform.node()}/{boot}/{space}"
