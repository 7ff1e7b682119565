"""Keeps calls within a host's limits per minute, and holds them back when it says that it is busy.

Shared by all shards of a process, each with an event loop of its own; so it is guarded by a lock and
waits by polling.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable

from engine.profile import RateTier

WINDOW_S = 60.0
_POLL_S = 0.05


class Pace:
    """Lets calls out as a tier's limits allow."""

    def __init__(self, tier: RateTier, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tier = tier
        self._clock = clock
        self._lock = threading.Lock()
        self._sent: deque[tuple[float, int]] = deque()
        self._tokens = 0
        self._held_until = 0.0

    async def take(self, tokens: int) -> None:
        """Wait until a call of so many tokens may go out, and count it.

        A call larger than the limit itself waits for an empty minute and goes out then: the host
        decides about it.
        """
        while not self._try(tokens):
            await asyncio.sleep(_POLL_S)

    def hold(self, seconds: float) -> None:
        """Hold all calls back for so long, since the host said that it is busy."""
        with self._lock:
            self._held_until = max(self._held_until, self._clock() + seconds)

    def _try(self, tokens: int) -> bool:
        tier = self._tier
        with self._lock:
            now = self._clock()
            if now < self._held_until:
                return False
            if tier.requests_per_minute is None and tier.tokens_per_minute is None:
                return True
            while self._sent and self._sent[0][0] <= now - WINDOW_S:
                self._tokens -= self._sent.popleft()[1]
            fits = not self._sent or (
                len(self._sent) < (tier.requests_per_minute or len(self._sent) + 1)
                and self._tokens + tokens <= (tier.tokens_per_minute or self._tokens + tokens)
            )
            if fits:
                self._sent.append((now, tokens))
                self._tokens += tokens
            return fits
