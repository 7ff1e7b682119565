"""How many calls a host takes at once, learned from how it answers: the adaptive part of a pace.

Additive increase, multiplicative decrease, as congestion control has it since 1988, in rounds: a round is
as many calls as may be in flight, sent since the last change. Not locked, its owner is.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from engine.load import Load

DECREASE = 0.7
"""What is left after a refusal. As in CUBIC (RFC 9438): with a half, more of what a host allows lies idle
while it is approached again."""

STEP = 1 / 16
"""Share of the limit that is added after each round without a refusal: from 0.7 of it to all in five."""

APPROACH = 2.0
"""How fast a level at which the host refused is approached, in parts of the way that is left per round: 86 % of it
are gone after the first round, and each further call takes longer."""

RESTART = 1 / 4
"""Share with which calls begin again after a Retry-After, or when a host that was away has answered one call;
each that is accepted lets one more go, so that twice the wait for a first token later all are in flight."""

FIRST_PATIENCE_S = 2.0
"""How long the level at which a host refused is kept clear of at first; doubled each time it refuses there
again, since then it is a limit that was not told, and each look at it costs a refused call."""
MAX_PATIENCE_S = 300.0
"""Longest such time: a limit that was raised is noticed within five minutes."""

MAX_DECREASES = 3
"""Decreases without a call accepted, down to a third, after which it is not about how many there are."""

REFUSED_HOLD = 0.25
"""A host that refuses everything is asked again after this share of the time for which it has: what it is
ready before that is lost, at most a fifth of the time that it was not."""
MIN_HOLD_S = 0.2
MAX_HOLD_S = 5.0
"""Bounds of that: five calls a second at most, and one in five seconds at least, harm nobody."""
MAX_RETRY_AFTER_S = 300.0
"""Longest Retry-After that is followed to the end."""

SLOW = 8.0
"""A wait for the first token so many times the best is a queue at the host, not a longer prompt."""
SLOW_S = 2.0
"""And so many seconds beyond it, or a host that answers in milliseconds would be slow at its first blink."""
SLOW_DECREASE = 0.9
MIN_WAITS = 8
"""Answers in a round below which its median says nothing."""
MIN_SHARE = 1 / 4
"""What slow answers leave of the limit at least: a queue at the host costs time, not answers, and too few in
flight would cost its throughput."""

FULL = 0.95
"""Share of the KV cache at which vLLM has no room for another long prompt."""
LOAD_DECREASE = 0.85
"""Decrease on each reading of a full engine, every two seconds: half after ten, before much is preempted."""


@dataclass(slots=True, eq=False)
class Sent:
    """What is remembered of a call in flight."""

    number: int
    """Calls are numbered as they go out."""
    level: int
    """Calls in flight when it went out, itself included."""


class Width:  # noqa: PLR0904 - one method more than the limit: all that can happen to a call
    """The number of calls that may be in flight; without bound until the host complains."""

    def __init__(self) -> None:
        self._level = math.inf
        self._target = math.inf
        """Up to where it grows by one with each accepted call."""
        self._good = 0
        """Highest level at which a whole round was accepted."""
        self._ceiling = math.inf
        """Level at which a call was refused."""
        self._patience_s = FIRST_PATIENCE_S
        self._probe_s = 0.0
        self._refused: tuple[int, float] | None = None
        """First call refused, and when; None when one that went out after it was accepted."""
        self._before = (math.inf, math.inf, 0, FIRST_PATIENCE_S)
        """Level, ceiling, good level and patience before that."""
        self._num_decreases = 0
        """Since then."""
        self._is_shut = False
        """Whether everything is refused, so that one call at a time is sent to see whether it still is."""
        self._scout: Sent | None = None
        """That call."""
        self._is_restarting = False
        self._began = self._next = 0
        self._num_accepted = self._highest = 0
        self._waits: list[float] = []
        self._best_wait_s = math.inf
        self._slow_wait_s = math.inf
        self._preemptions: float | None = None

    def allowed(self, most: int) -> int:
        """Return how many calls may be in flight, of at most `most`; never below 1 but for a `most` of 0."""
        return most if self._level >= most else max(min(1, most), int(self._level))

    def has_room(self, num_in_flight: int, most: int) -> bool:
        """Tell whether one more call may go out beside so many; not to be asked while they are held back."""
        if self._is_shut:
            return num_in_flight < most and self._scout is None
        if self._is_restarting:
            # What the host has been at all the while comes on top: it is used to that.
            self._is_restarting = False
            few = max(1, int(RESTART * min(self._target, most)))
            self._level = min(self._target, num_in_flight + few)
        return num_in_flight < self.allowed(most)

    def sent(self, num_in_flight: int) -> Sent:
        """Return the mark of a call that goes out as the last of so many in flight."""
        self._next += 1
        call = Sent(self._next - 1, num_in_flight)
        if self._is_shut:
            self._scout = call
        return call

    def ended(self, call: Sent, wait_s: float | None = None) -> None:
        """Take note that a call is over, however it ended, and of its wait for the first token."""
        if self._scout is call:
            self._scout = None
        if wait_s is not None:
            self._waits.append(wait_s)

    def accepted(self, call: Sent, most: int, now: float) -> None:
        """Take note that the host has begun to answer a call."""
        if self._refused is not None and call.number > self._refused[0]:
            self._is_restarting |= self._is_shut
            self._refused, self._is_shut = None, False
        if call.number < self._began:
            return
        if self._level < min(self._target, most):
            self._level += 1
            if self._level >= min(self._target, most):
                self._level = self._target
                self._new_round()
            return
        if 2 * call.level < self.allowed(most):
            # Too few are asked for to tell how many would be taken.
            return
        self._num_accepted += 1
        self._highest = max(self._highest, call.level)
        if self._level < self._ceiling - 1 < math.inf:
            self._level += APPROACH * (self._ceiling - 1 - self._level) / self._level
            if self._level > self._ceiling - 1.5:
                self._reach_ceiling(now)
        if self._num_accepted >= self.allowed(most):
            self._round_done(most, now)

    def refused(
        self, call: Sent, most: int, now: float, retry_after_s: float | None = None
    ) -> float:
        """Take note of a 'later' and return the seconds for which all calls are to be held back.

        Answers to calls that went out before the last decrease tell nothing new of the level.
        """
        hold_s = min(MAX_RETRY_AFTER_S, retry_after_s or 0.0)
        if call.number < self._began:
            return hold_s
        if self._refused is not None and self._num_decreases >= MAX_DECREASES:
            # Nothing sent since was accepted: that is not about how many there are, nor was the first of it.
            refused_s = now - self._refused[1]
            hold_s = max(hold_s, min(MAX_HOLD_S, max(MIN_HOLD_S, REFUSED_HOLD * refused_s)))
            self._is_shut = True
            self._level, self._ceiling, self._good, self._patience_s = self._before
            self._target = self._level
        else:
            if self._refused is None:
                self._refused, self._num_decreases = (call.number, now), 0
                level = self._level if self._level < most else math.inf
                self._before = (level, self._ceiling, self._good, self._patience_s)
            self._num_decreases += 1
            self._decrease(call, most, now)
        self._is_restarting |= bool(retry_after_s)
        self._new_round()
        return hold_s

    def _decrease(self, call: Sent, most: int, now: float) -> None:
        if 0 < self._good < call.level:
            # One more than what was seen to work: back to that.
            self._level = self._good
            self._patience_s = min(MAX_PATIENCE_S, 2 * self._patience_s)
        else:
            self._level = max(1, int(DECREASE * min(call.level, self.allowed(most))))
            self._good = 0
            self._patience_s = FIRST_PATIENCE_S
        self._target = self._level
        if self._num_decreases == 1:
            # Refusals in a row come at levels that the host took before: they say nothing of how many it takes.
            self._ceiling = max(2, call.level)
        self._probe_s = now + self._patience_s

    def restart(self, most: int) -> None:
        """Begin with few calls again, after the host was away."""
        self._target = self._level if self._level < most else math.inf
        self._is_restarting = True
        self._new_round()

    def loaded(self, load: Load, most: int) -> None:
        """Take note of what the engine says of its own queue; from then on rounds raise nothing."""
        before, self._preemptions = self._preemptions, load.num_preemptions
        preempts = before is not None and load.num_preemptions > before
        if preempts or (load.num_waiting > 0 and load.cache_used >= FULL):
            self._level = self._target = max(1, int(LOAD_DECREASE * self.allowed(most)))
            self._ceiling = math.inf
            self._new_round()
        elif self._level < most and self._ceiling == math.inf:
            self._raise(most)

    def _round_done(self, most: int, now: float) -> None:
        """Raise the level after a round without a refusal, or lower it after a slow one."""
        self._good = max(self._good, self._highest)
        if self._highest >= self._ceiling:
            self._ceiling, self._patience_s = math.inf, FIRST_PATIENCE_S
        if self._preemptions is None and self._is_slow():
            least = max(1, int(MIN_SHARE * most))
            self._level = max(least, int(SLOW_DECREASE * self.allowed(most)))
            self._target, self._ceiling = self._level, math.inf
        elif self._ceiling == math.inf:
            if self._preemptions is None:
                self._raise(most)
        elif self._level >= self._ceiling - 1 and now >= self._probe_s:
            self._level = self._target = self._ceiling
        self._new_round()

    def _reach_ceiling(self, now: float) -> None:
        """Stay one below the level at which the host refused, for a while."""
        self._level = self._target = self._ceiling - 1
        self._probe_s = now + self._patience_s
        self._new_round()

    def _raise(self, most: int) -> None:
        higher = self._level + max(1, int(STEP * most))
        self._level = self._target = math.inf if higher >= most else higher

    def _is_slow(self) -> bool:
        """Tell whether the last round waited far longer for first tokens than the best one."""
        if len(self._waits) < MIN_WAITS:
            return False
        wait_s = statistics.median(self._waits)
        if wait_s <= SLOW * self._best_wait_s + SLOW_S:
            self._best_wait_s = min(self._best_wait_s, wait_s)
            self._slow_wait_s = math.inf
            return False
        if wait_s >= SLOW_DECREASE * self._slow_wait_s:
            # Fewer calls did not make it shorter, so it is not for them: prompts are longer now.
            self._best_wait_s, self._slow_wait_s = wait_s, math.inf
            return False
        self._slow_wait_s = wait_s
        return True

    def _new_round(self) -> None:
        self._began = self._next
        self._num_accepted = self._highest = 0
        self._waits.clear()
