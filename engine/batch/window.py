"""The last minute as the host counts it: what was called in it, and when that leaves it again.

A host counts a call when it arrives, somewhere between the moment it is sent and the first byte of its
answer. A slot may be used again when the host's own minute has let the call go for sure, so its minute
begins at the latest moment at which the call can have arrived: the first byte of the answer, or the last
byte sent and `transit_s` later, whichever is earlier. Where answers take longer than that to begin, a slot
comes back after 60.4 s instead of 60: 0.7 % of a limit is given away, and none of it is exceeded.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass

MINUTE_S = 60.02
"""A minute, and what two steady clocks may drift apart in it (300 ppm, more than any crystal)."""

TRANSIT_S = 0.4
"""Longest way of a small request to the host: twice around the earth (0.2 s), or one lost packet that is
sent again (0.2 s at least under Linux)."""

UPLINK_BYTES_PER_S = 1e6
"""What a large body is sent with at least; the kernel takes megabytes before they are on their way."""


def transit_s(num_bytes: int) -> float:
    """Return the most seconds from handing a request to the kernel until the host has it."""
    return TRANSIT_S + num_bytes / UPLINK_BYTES_PER_S


@dataclass(slots=True, eq=False)
class Slot:
    """One call's share of the minute."""

    tokens: int
    free_s: float | None = None
    """When it can be used again; None while that is not known."""
    is_free: bool = False


class Window:
    """Calls and tokens of the last minute; not locked, its owner is."""

    def __init__(self, minute_s: float = MINUTE_S) -> None:
        self._minute_s = minute_s
        self.num_calls = 0
        self.num_tokens = 0
        self._ends: list[tuple[float, int, Slot]] = []
        self._order = itertools.count()

    def take(self, tokens: int) -> Slot:
        """Return a slot for a call that is about to be sent."""
        self.num_calls += 1
        self.num_tokens += tokens
        return Slot(tokens)

    def arrived(self, slot: Slot, at_s: float) -> None:
        """Take down that the host has the call at `at_s` at the latest; said again, the last one counts."""
        if not slot.is_free:
            slot.free_s = at_s + self._minute_s
            heapq.heappush(self._ends, (slot.free_s, next(self._order), slot))

    def drop(self, slot: Slot) -> None:
        """Give a slot back at once, since its call was not sent."""
        if not slot.is_free:
            slot.is_free = True
            self.num_calls -= 1
            self.num_tokens -= slot.tokens

    def pass_time(self, now: float) -> None:
        """Let go what is older than a minute."""
        while (free_s := self.next_free_s) is not None and free_s <= now:
            self.drop(heapq.heappop(self._ends)[2])

    @property
    def next_free_s(self) -> float | None:
        """Return when the next slot is free; None where none is known to be."""
        while self._ends and (
            self._ends[0][2].is_free or self._ends[0][0] != self._ends[0][2].free_s
        ):
            heapq.heappop(self._ends)
        return self._ends[0][0] if self._ends else None
