"""Counts of a run while it goes on, shared by its shards and shown by the CLI and by Prefect."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from engine.request import Result

MIN_RESULTS = 8
"""Results from which the time left is estimated; the first ones wait for the first documents."""


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
    cached_tokens: int | None
    """None as long as the endpoint has told none."""
    completion_tokens: int
    outcomes: Mapping[str, int]
    """Results by outcome."""
    num_expected: int
    """Requests to expect of the documents read so far."""
    cost_usd: float | None
    """Price of the tokens so far; None where the profile has no prices."""
    elapsed_s: float
    remaining_s: float | None
    """Estimate from the pace so far; None until there is one."""

    @property
    def fraction(self) -> float:
        """Share of the work that is done, by the requests known and to be expected."""
        # Units that are skipped are expected, but never asked about.
        if self.phase in {"reporting", "done"}:
            return 1.0
        expected = _expected_requests(self)
        return min(1.0, self.num_results / expected) if expected else 0.0


def _expected_requests(snapshot: Snapshot) -> float:
    if not snapshot.num_documents_read:
        return 0.0
    unread = max(1.0, snapshot.num_documents / snapshot.num_documents_read)
    return max(snapshot.num_requests, snapshot.num_expected * unread)


Listener = Callable[[Snapshot], None]


class Progress:
    """Thread-safe counters; the listener is called at most once per interval, and at phases."""

    def __init__(self, listener: Listener | None = None, interval_s: float = 0.5) -> None:
        self._listeners = [listener] if listener is not None else []
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._begun = self._started
        self._told = 0.0
        self._phase = "starting"
        self._counts = dict.fromkeys(
            (
                "documents",
                "read",
                "chunks",
                "expected",
                "requests",
                "results",
                "unanswered",
                "prompt",
                "cached",
                "output",
            ),
            0,
        )
        self._outcomes: Counter[str] = Counter()
        self._cost_usd: float | None = None
        self._tells_cached = False

    def listen(self, listener: Listener) -> None:
        """Tell this listener too."""
        self._listeners.append(listener)

    def enter(self, phase: str) -> None:
        """Name what is happening now."""
        with self._lock:
            self._phase = phase
            if phase == "processing":
                self._begun = time.monotonic()
        self._tell(force=True)

    def add(self, **counts: int) -> None:
        """Add to counters: documents, read, chunks, expected, requests."""
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count
        self._tell()

    def add_result(self, result: Result) -> None:
        """Count one result, its tokens and their price."""
        with self._lock:
            self._outcomes[result.outcome] += 1
            self._tells_cached |= result.usage.cached_tokens is not None
            if result.cost_usd is not None:
                self._cost_usd = (self._cost_usd or 0.0) + result.cost_usd
        self.add(
            results=1,
            unanswered=int(result.outcome != "succeeded"),
            prompt=result.usage.prompt_tokens,
            cached=result.usage.cached_tokens or 0,
            output=result.usage.completion_tokens,
        )

    def add_repeated(self, result: Result) -> None:
        """Count the result of a question that has been asked already; it took no tokens."""
        with self._lock:
            self._outcomes[result.outcome] += 1
        self.add(results=1, unanswered=int(result.outcome != "succeeded"))

    def snapshot(self) -> Snapshot:
        """Return the counts now."""
        with self._lock:
            counts, phase = dict(self._counts), self._phase
            outcomes, cost_usd = dict(self._outcomes), self._cost_usd
            cached = counts["cached"] if self._tells_cached else None
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
            cached_tokens=cached,
            completion_tokens=counts["output"],
            outcomes=outcomes,
            num_expected=counts["expected"],
            cost_usd=cost_usd,
            elapsed_s=elapsed,
            remaining_s=None,
        )
        done = snapshot.fraction
        if snapshot.num_results < MIN_RESULTS or not done:
            return snapshot
        worked_s = time.monotonic() - self._begun
        return replace(snapshot, remaining_s=worked_s * (1 - done) / done)

    def _tell(self, *, force: bool = False) -> None:
        if not self._listeners:
            return
        now = time.monotonic()
        with self._lock:
            if not force and now - self._told < self._interval_s:
                return
            self._told = now
        snapshot = self.snapshot()
        for listener in self._listeners:
            listener(snapshot)
