"""A circuit breaker: an endpoint that fails again and again is left alone, and tried from time to time.

Shared by all shards of a process, each with an event loop of its own; so it is guarded by a lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Admission = Literal["go", "wait", "give_up"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerRule:
    """When an endpoint is left alone, and for how long."""

    max_failures: int = 8
    """Failed calls in a row that open the circuit; more than a burst of one lost connection."""
    first_open_s: float = 1.0
    """Seconds it stays open at first; doubled with every probe that fails."""
    max_open_s: float = 30.0
    give_up_s: float = 300.0
    """Seconds of failures in a row after which waiting requests fail; a restarted engine is back in
    one to four minutes."""


class Breaker:
    """Says whether a call may go out to an endpoint, from how the last ones ended."""

    def __init__(
        self, rule: BreakerRule | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rule = rule or BreakerRule()
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._down_since = 0.0
        self._open_until = 0.0
        self._open_s = self._rule.first_open_s
        self._probing = False
        self.last_failure = ""
        """What the last failed call said."""

    @property
    def is_open(self) -> bool:
        """Tell whether calls are held back."""
        return self._failures >= self._rule.max_failures

    def look(self) -> Admission:
        """Return what `admit` would, without a call being admitted."""
        with self._lock:
            return self._look()

    def admit(self) -> Admission:
        """Return whether a call may go out now; with the circuit open one at a time may, as a probe."""
        with self._lock:
            answer = self._look()
            self._probing |= answer == "go" and self.is_open
            return answer

    def _look(self) -> Admission:
        if not self.is_open:
            return "go"
        now = self._clock()
        if not self._probing and now >= self._open_until:
            return "go"
        return "give_up" if now - self._down_since > self._rule.give_up_s else "wait"

    def succeeded(self) -> bool:
        """Take note of an answer, whatever it says: the endpoint is alive. Return whether that is news."""
        with self._lock:
            was_open = self.is_open
            self._failures = 0
            self._open_s = self._rule.first_open_s
            self._probing = False
            return was_open

    def failed(self, why: str) -> None:
        """Take note of a call without an answer."""
        with self._lock:
            self.last_failure = why
            now = self._clock()
            if self._failures == 0:
                self._down_since = now
            self._failures += 1
            if not self.is_open:
                return
            if self._probing:
                self._open_s = min(2 * self._open_s, self._rule.max_open_s)
            self._probing = False
            self._open_until = now + self._open_s

    def withdrawn(self) -> None:
        """Take note that an admitted call ended without telling anything, such as on Ctrl-C."""
        with self._lock:
            self._probing = False
