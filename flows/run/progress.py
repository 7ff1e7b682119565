"""Counts of a run while it goes on, shared by its shards and shown by the CLI and by Prefect."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from engine.request import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The counts at one moment."""

    phase: str
    num_documents: int
    num_documents_read: int
    num_chunks: int
    num_requests: int
    num_results: int
    num_unanswered: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    elapsed_s: float
    remaining_s: float | None
    """Estimate from the pace so far; None until there is one."""

    @property
    def fraction(self) -> float:
        """Share of the work that is done, by the requests known and to be expected."""
        expected = _expected_requests(self)
        return min(1.0, self.num_results / expected) if expected else 0.0


def _expected_requests(snapshot: Snapshot) -> float:
    if not snapshot.num_documents_read:
        return 0.0
    return snapshot.num_requests * max(1.0, snapshot.num_documents / snapshot.num_documents_read)


Listener = Callable[[Snapshot], None]


class Progress:
    """Thread-safe counters; the listener is called at most once per interval, and at phases."""

    def __init__(self, listener: Listener | None = None, interval_s: float = 0.5) -> None:
        self._listener = listener
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._told = 0.0
        self._phase = "starting"
        self._counts = dict.fromkeys(
            (
                "documents",
                "read",
                "chunks",
                "requests",
                "results",
                "unanswered",
                "prompt",
                "cached",
                "output",
            ),
            0,
        )

    def enter(self, phase: str) -> None:
        """Name what is happening now."""
        with self._lock:
            self._phase = phase
        self._tell(force=True)

    def add(self, **counts: int) -> None:
        """Add to counters: documents, read, chunks, requests."""
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count
        self._tell()

    def add_result(self, result: Result) -> None:
        """Count one result and its tokens."""
        self.add(
            results=1,
            unanswered=int(result.outcome != "succeeded"),
            prompt=result.usage.prompt_tokens,
            cached=result.usage.cached_tokens or 0,
            output=result.usage.completion_tokens,
        )

    def snapshot(self) -> Snapshot:
        """Return the counts now."""
        with self._lock:
            counts, phase = dict(self._counts), self._phase
        elapsed = time.monotonic() - self._started
        snapshot = Snapshot(
            phase=phase,
            num_documents=counts["documents"],
            num_documents_read=counts["read"],
            num_chunks=counts["chunks"],
            num_requests=counts["requests"],
            num_results=counts["results"],
            num_unanswered=counts["unanswered"],
            prompt_tokens=counts["prompt"],
            cached_tokens=counts["cached"],
            completion_tokens=counts["output"],
            elapsed_s=elapsed,
            remaining_s=None,
        )
        done = snapshot.fraction
        if done <= 0.02:
            return snapshot
        return _with_remaining(snapshot, elapsed * (1 - done) / done)

    def _tell(self, *, force: bool = False) -> None:
        if self._listener is None:
            return
        now = time.monotonic()
        with self._lock:
            if not force and now - self._told < self._interval_s:
                return
            self._told = now
        self._listener(self.snapshot())


def _with_remaining(snapshot: Snapshot, remaining_s: float) -> Snapshot:
    values = {name: getattr(snapshot, name) for name in Snapshot.__slots__}
    return Snapshot(**{**values, "remaining_s": remaining_s})
