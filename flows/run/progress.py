"""Counts of a run while it goes on, shared by its shards and shown by the CLI and by Prefect."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine.request import Result
from flows.report.words import outcome_word

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
    """None where no endpoint has told it."""
    completion_tokens: int
    outcomes: Mapping[str, int]
    """Results by outcome, what waits for a person or a batch apart: see flows.report.words.outcome_word."""
    num_expected: int
    """Requests to expect of the documents read so far."""
    cost_usd: float | None
    """Price of the tokens so far; None where the profile has no prices."""
    gpu_seconds: float | None
    """GPU time of the tokens so far; None where the profile has no `gpus` or no `throughput`."""
    batches: Sequence[Mapping[str, Any]]
    """The host's batches that the run waits for just now."""
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


@dataclass(slots=True, kw_only=True)
class _Tally:
    """What has been counted."""

    counts: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    cost_usd: float | None = None
    gpu_seconds: float | None = None
    cached_tokens: int | None = None

    def add(self, more: _Tally, sign: int = 1) -> None:
        """Add what else was counted; `sign` -1: take it back."""
        for name, count in more.counts.items():
            self.counts[name] += sign * count
        for name, count in more.outcomes.items():
            self.outcomes[name] += sign * count
        if more.cost_usd is not None:
            self.cost_usd = (self.cost_usd or 0.0) + sign * more.cost_usd
        if more.gpu_seconds is not None:
            self.gpu_seconds = (self.gpu_seconds or 0.0) + sign * more.gpu_seconds
        if more.cached_tokens is not None:
            self.cached_tokens = (self.cached_tokens or 0) + sign * more.cached_tokens


class Progress:  # noqa: PLR0904 - all that is counted of a run
    """Thread-safe counters; the listener is called at most once per interval, and at phases."""

    def __init__(self, listener: Listener | None = None, interval_s: float = 0.5) -> None:
        self._listeners = [listener] if listener is not None else []
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._begun = self._started
        self._told = 0.0
        self._phase = "starting"
        self._batches: tuple[Mapping[str, Any], ...] = ()
        self._tally = _Tally()

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

    def wait_for(self, words: str, batches: Sequence[Mapping[str, Any]]) -> None:
        """Say how far the host's batches are that the run waits for; `batches`: each of them."""
        with self._lock:
            self._batches = tuple(batches)
        self.enter(f"waiting for {words}")

    def add(self, **counts: int) -> None:
        """Add to counters: documents, read, chunks, expected, requests."""
        self.count(_Tally(counts=Counter(counts)))

    def add_result(self, result: Result) -> None:
        """Count one result, its tokens and their price."""
        usage = result.usage
        counts = _ended(result) | {"prompt": usage.prompt_tokens, "output": usage.completion_tokens}
        self.count(
            _Tally(
                counts=Counter(counts),
                outcomes=Counter([outcome_word(result.outcome, result.error_class)]),
                cost_usd=result.cost_usd,
                gpu_seconds=result.gpu_seconds,
                cached_tokens=usage.cached_tokens,
            )
        )

    def add_repeated(self, result: Result) -> None:
        """Count the result of a question that has been asked already; it took no tokens."""
        word = outcome_word(result.outcome, result.error_class)
        self.count(_Tally(counts=Counter(_ended(result)), outcomes=Counter([word])))

    def count(self, more: _Tally, sign: int = 1) -> None:
        """Add what was counted; `sign` -1: take it back."""
        with self._lock:
            self._tally.add(more, sign)
        self._tell()

    def part(self) -> ProgressPart:
        """Return counters that add to these, and whose share can be taken back."""
        return ProgressPart(self)

    def snapshot(self) -> Snapshot:
        """Return the counts now."""
        with self._lock:
            counts, phase, tally = Counter(self._tally.counts), self._phase, self._tally
            outcomes, cost_usd = dict(+tally.outcomes), tally.cost_usd
            cached_tokens, gpu_seconds = tally.cached_tokens, tally.gpu_seconds
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
            cached_tokens=cached_tokens,
            completion_tokens=counts["output"],
            outcomes=outcomes,
            num_expected=counts["expected"],
            cost_usd=cost_usd,
            gpu_seconds=gpu_seconds,
            batches=self._batches if phase.startswith("waiting") else (),
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


class ProgressPart(Progress):
    """What one shard adds to a run's counters; taken back, where it is to be asked about once more."""

    def __init__(self, whole: Progress) -> None:
        super().__init__()
        self._whole = whole

    def count(self, more: _Tally, sign: int = 1) -> None:
        """Add what was counted, here and to the run's."""
        super().count(more, sign)
        self._whole.count(more, sign)

    def withdraw(self) -> None:
        """Take all of it back from the run's; what is counted afterwards stays."""
        with self._lock:
            tally, self._tally = self._tally, _Tally()
        self._whole.count(tally, -1)


def _ended(result: Result) -> dict[str, int]:
    return {"results": 1, "unanswered": int(result.outcome != "succeeded")}
