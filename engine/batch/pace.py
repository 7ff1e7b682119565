"""The one gate of an endpoint: how many calls are in flight, how many in a minute, and when none.

Shared by all shards of a process, each with an event loop of its own. Who waits is woken when its turn
comes, by priority and then arrival; nobody polls. (docs/decisions/0012-one-gate-per-endpoint.md)
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from engine.batch.width import Sent, Width
from engine.batch.window import MINUTE_S, TRANSIT_S, Slot, Window, transit_s
from engine.load import Load
from engine.profile import RateTier

READ_EVERY_S = 2.0
"""Seconds between two readings of an engine's load."""
READ_AGAIN_S = 60.0
"""Seconds until it is asked again where it told none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What may be sent: an account's tier, or this process's slice of it; 0: nothing."""

    max_in_flight: int
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    @classmethod
    def of(cls, tier: RateTier) -> Limits:
        """Return the limits of a whole tier."""
        return cls(
            max_in_flight=tier.max_in_flight,
            requests_per_minute=tier.requests_per_minute,
            tokens_per_minute=tier.tokens_per_minute,
        )

    @property
    def is_nothing(self) -> bool:
        """Tell whether no call at all may be sent."""
        return 0 in {self.max_in_flight, self.requests_per_minute, self.tokens_per_minute}

    def least(self, other: Limits) -> Limits:
        """Return the smaller of each."""
        return self._with(other, min)

    def most(self, other: Limits) -> Limits:
        """Return the larger of each."""
        return self._with(other, max)

    def minus(self, other: Limits) -> Limits:
        """Return what is left of each, 0 at least."""
        return self._with(other, lambda mine, its: max(0, mine - its))

    def _with(self, other: Limits, join: Callable[[int, int], int]) -> Limits:
        def joined(mine: int | None, its: int | None) -> int | None:
            return None if mine is None or its is None else join(mine, its)

        return Limits(
            max_in_flight=join(self.max_in_flight, other.max_in_flight),
            requests_per_minute=joined(self.requests_per_minute, other.requests_per_minute),
            tokens_per_minute=joined(self.tokens_per_minute, other.tokens_per_minute),
        )


@dataclass(slots=True, eq=False)
class _Waiter:
    place: Place
    loop: asyncio.AbstractEventLoop
    woken: asyncio.Future[None]
    is_gone: bool = False


class Pace:
    """Lets calls out as limits and host allow."""

    def __init__(
        self,
        tier: RateTier,
        *,
        clock: Callable[[], float] = time.monotonic,
        minute_s: float = MINUTE_S,
    ) -> None:
        """Start with the whole tier.

        Args:
            tier: Its limits are never exceeded.
            clock: Steady seconds.
            minute_s: How long a call counts, after it has arrived.
        """
        self.tier = Limits.of(tier)
        self._limits, self._valid_until_s = self.tier, math.inf
        self._clock = clock
        self._lock = threading.Lock()
        self._width = Width()
        self._window = Window(minute_s)
        self._num_in_flight = 0
        self._lingering: deque[float] = deque()
        self._held_until_s = 0.0
        self._waiters: list[tuple[int, int, _Waiter]] = []
        self._arrivals = itertools.count()
        self._timer: tuple[asyncio.AbstractEventLoop, float] | None = None
        self._next_reading_s = 0.0

    def place(self, tokens: int, priority: int = 0) -> Place:
        """Return a place for one call, to be entered with `async with` around the sending.

        A call larger than the limit of tokens itself waits for an empty minute and goes out then: the
        host decides about it.

        Args:
            tokens: Of its prompt, and most of its answer.
            priority: Lower goes first.
        """
        return Place(self, tokens, priority)

    def allow(self, limits: Limits, valid_until_s: float = math.inf) -> None:
        """Keep to a slice of the tier from now on, until `valid_until_s` by the clock; then to nothing."""
        with self._lock:
            self._limits, self._valid_until_s = limits, valid_until_s
            self._serve()

    @property
    def used(self) -> Limits:
        """Return what is in flight, and what was called in the last minute."""
        with self._lock:
            self._pass_time()
            return Limits(
                max_in_flight=self._num_in_flight,
                requests_per_minute=self._window.num_calls,
                tokens_per_minute=self._window.num_tokens,
            )

    @property
    def waiting_tokens(self) -> int | None:
        """Return the tokens of the call that is next; None where none waits."""
        with self._lock:
            head = self._head()
            return None if head is None else head.place.tokens

    def restart(self) -> None:
        """Begin slowly again, after the host was away."""
        with self._lock:
            self._width.restart(self._limits.max_in_flight)

    def begin_reading(self) -> bool:
        """Tell whether it is time to ask the engine for its load; the next time is in a while."""
        with self._lock:
            now = self._clock()
            if now < self._next_reading_s:
                return False
            self._next_reading_s = now + READ_EVERY_S
            return True

    def loaded(self, load: Load | None) -> None:
        """Take note of the engine's load; None where it tells none."""
        with self._lock:
            if load is None:
                self._next_reading_s = self._clock() + READ_AGAIN_S
                return
            self._width.loaded(load, self._limits.max_in_flight)
            self._serve()

    # What a Place asks; the lock is held inside.

    def _enter(self, place: Place) -> _Waiter | None:
        """Let a call out, or have it wait."""
        with self._lock:
            if self._head() is None and self._delay_s(place.tokens) == 0:
                self._let_out(place)
                return None
            loop = asyncio.get_running_loop()
            waiter = _Waiter(place, loop, loop.create_future())
            heapq.heappush(self._waiters, (place.priority, next(self._arrivals), waiter))
            self._serve()
            return waiter

    def _give_up(self, waiter: _Waiter) -> None:
        with self._lock:
            waiter.is_gone = True
            if waiter.place.slot is not None:
                self._take_back(waiter.place)
            self._serve()

    def _leave(self, place: Place, *, is_ended: bool) -> None:
        """Free a place: at once where the host has ended the call, a transit later where we broke it off."""
        with self._lock:
            if place.slot is None or place.sent is None:
                return
            now = self._clock()
            self._width.ended(place.sent, place.wait_s)
            if place.slot.free_s is None:
                self._window.arrived(place.slot, now + (0.0 if is_ended else TRANSIT_S))
            if is_ended:
                self._num_in_flight -= 1
            else:
                self._lingering.append(now + TRANSIT_S)
            self._serve()

    def _unsent(self, place: Place) -> None:
        with self._lock:
            self._take_back(place)
            self._serve()

    def _sent(self, place: Place) -> None:
        with self._lock:
            assert place.slot is not None
            place.latest_s = self._clock() + transit_s(place.num_bytes)
            self._window.arrived(place.slot, place.latest_s)

    def _heard(self, place: Place, *, accepted: bool) -> None:
        with self._lock:
            assert place.slot is not None
            assert place.sent is not None
            now = self._clock()
            latest_s = now if place.latest_s is None else min(now, place.latest_s)
            self._window.arrived(place.slot, latest_s)
            if accepted:
                self._width.accepted(place.sent, self._limits.max_in_flight, now)
                self._serve()

    def _refused(self, place: Place, retry_after_s: float | None) -> None:
        with self._lock:
            assert place.sent is not None
            now = self._clock()
            # Of calls that went out together the first may be the last to arrive.
            place.sent.level = max(place.sent.level, self._num_in_flight)
            hold_s = self._width.refused(place.sent, self._limits.max_in_flight, now, retry_after_s)
            self._held_until_s = max(self._held_until_s, now + hold_s)

    # The lock is held by who calls these.

    def _let_out(self, place: Place) -> None:
        self._num_in_flight += 1
        place.sent = self._width.sent(self._num_in_flight)
        place.slot = self._window.take(place.tokens)

    def _take_back(self, place: Place) -> None:
        assert place.slot is not None
        assert place.sent is not None
        self._width.ended(place.sent)
        self._window.drop(place.slot)
        self._num_in_flight -= 1
        place.slot = None

    def _head(self) -> _Waiter | None:
        while self._waiters and self._waiters[0][-1].is_gone:
            heapq.heappop(self._waiters)
        return self._waiters[0][-1] if self._waiters else None

    def _pass_time(self) -> float:
        now = self._clock()
        while self._lingering and self._lingering[0] <= now:
            self._lingering.popleft()
            self._num_in_flight -= 1
        self._window.pass_time(now)
        return now

    def _delay_s(self, tokens: int) -> float | None:
        """Return in how many seconds a call may go out, 0: now; None: when something else has ended."""
        now, limits = self._pass_time(), self._limits
        if now >= self._valid_until_s:
            return None
        if now < self._held_until_s:
            return self._held_until_s - now
        if not self._width.has_room(self._num_in_flight, limits.max_in_flight):
            return self._lingering[0] - now if self._lingering else None
        if self._fits(tokens):
            return 0
        free_s = self._window.next_free_s
        return None if free_s is None else free_s - now

    def _fits(self, tokens: int) -> bool:
        """Tell whether a call fits into the minute."""
        limits, window = self._limits, self._window
        most_calls = _or_infinite(limits.requests_per_minute)
        most_tokens = _or_infinite(limits.tokens_per_minute)
        if tokens > most_tokens:
            # One that is larger than a slice waits until this process has the whole.
            return limits.tokens_per_minute == self.tier.tokens_per_minute and not window.num_calls
        return window.num_calls < most_calls and window.num_tokens + tokens <= most_tokens

    def _serve(self) -> None:
        """Let out who may go, in turn, and have the clock watched for who is next."""
        while (head := self._head()) is not None:
            delay_s = self._delay_s(head.place.tokens)
            if delay_s is None:
                return
            if delay_s > 0:
                head.is_gone = not self._is_watched(head.loop, delay_s)
                if head.is_gone:
                    continue
                return
            heapq.heappop(self._waiters)
            self._let_out(head.place)
            try:
                head.loop.call_soon_threadsafe(_wake, head.woken)
            except RuntimeError:
                # Its loop has been closed, and who waited went with it.
                self._take_back(head.place)

    def _is_watched(self, loop: asyncio.AbstractEventLoop, delay_s: float) -> bool:
        """Have a loop come back after a delay, unless it will before; False where it has been closed."""
        when_s = self._clock() + delay_s
        if self._timer is None or self._timer[0] is not loop or self._timer[1] > when_s:
            try:
                loop.call_soon_threadsafe(loop.call_later, delay_s, self._tick)
            except RuntimeError:
                return False
            self._timer = (loop, when_s)
        return True

    def _tick(self) -> None:
        with self._lock:
            self._timer = None
            self._serve()


class Place:
    """One call's place in the gate; tells it what became of the call."""

    __slots__ = (
        "_is_heard",
        "_pace",
        "latest_s",
        "num_bytes",
        "priority",
        "sent",
        "slot",
        "tokens",
        "wait_s",
    )

    def __init__(self, pace: Pace, tokens: int, priority: int) -> None:
        self._pace = pace
        self.tokens, self.priority = tokens, priority
        self.slot: Slot | None = None
        self.sent: Sent | None = None
        self.num_bytes = 0
        self.latest_s: float | None = None
        self.wait_s: float | None = None
        """For the first token; set by who has the answer."""
        self._is_heard = False

    async def __aenter__(self) -> Self:
        waiter = self._pace._enter(self)
        if waiter is not None:
            try:
                await waiter.woken
            except BaseException:
                self._pace._give_up(waiter)
                raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # What has a status was ended by the host; after anything else it may be at work still.
        is_ended = exc is None or getattr(exc, "status", None) is not None
        self._pace._leave(self, is_ended=is_ended)

    def withdraw(self) -> None:
        """Give it back: nothing was sent."""
        self._pace._unsent(self)

    def sending(self, num_bytes: int) -> None:
        """Take note that so many bytes more of the body are handed over."""
        if not self._is_heard:
            self.num_bytes += num_bytes
            self._pace._sent(self)

    def heard(self, status: int) -> None:
        """Take note that the answer begins."""
        if not self._is_heard:
            self._is_heard = True
            self._pace._heard(self, accepted=200 <= status < 300)

    def refused(self, retry_after_s: float | None) -> None:
        """Take note that the host said 'later'."""
        self._pace._refused(self, retry_after_s)


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


def _or_infinite(limit: int | None) -> float:
    return math.inf if limit is None else limit
