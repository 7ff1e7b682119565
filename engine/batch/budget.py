"""What a run and its stages may still spend: each call reserves its worst case and returns the rest.

Shared by all shards of a process, each with an event loop of its own; so it is guarded by a lock, and
wakes those that wait in their own loops. They are let on in the order in which they came: none is passed
by a call that waits for the same limit, so that a large one is not put off for ever by small ones.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from engine.batch.amount import Amount, amount_of
from engine.errors import BudgetAwaited, BudgetReached, EngineMisconfigured
from engine.profile import Profile
from engine.request import Usage

Unit = Literal["usd", "tokens", "gpu_seconds"]
_UNITS: tuple[Unit, ...] = ("usd", "tokens", "gpu_seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """The most that a run, or one of its stages, may spend; None: no limit."""

    usd: float | None = None
    tokens: int | None = None
    gpu_seconds: float | None = None

    def passed_by(self, amount: Amount) -> Unit | None:
        """Return the first limit that the amount is beyond; None where it is within all of them."""
        for unit in _UNITS:
            limit = getattr(self, unit)
            if limit is not None and getattr(amount, unit) > limit:
                return unit
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What is set aside for one call until it is settled."""

    stage: str
    amount: Amount
    is_parked: bool = False
    """Whether it is for a line of a batch that the host answers later, perhaps in days."""


@dataclass(slots=True, kw_only=True)
class _Account:
    """The limits of a run or a stage, and what is spent and set aside of them."""

    key: str
    """Of the pipeline, under which the limits stand: `budget`, or `stages.NAME.budget`."""
    name: str
    """For messages."""
    limits: Caps
    spent: Amount = field(default_factory=Amount)
    reserved: Amount = field(default_factory=Amount)
    num_reserved: int = 0
    parked: Amount = field(default_factory=Amount)
    """Set aside for what a host answers later: nobody waits for it to come back."""
    num_parked: int = 0
    reached: Unit | Literal["seconds"] | None = None
    """The limit at which a call was turned away; from then on all are."""

    def settle(self, reserved: Amount, used: Amount) -> None:
        self.num_reserved -= 1
        # Sums of fractions leave a rest, on which somebody might wait for ever.
        self.reserved = self.reserved - reserved if self.num_reserved else Amount()
        self.spent += used

    def park(self, amount: Amount) -> None:
        self.num_parked += 1
        self.parked += amount

    def settle_parked(self, parked: Amount, used: Amount) -> None:
        self.num_parked -= 1
        self.parked = self.parked - parked if self.num_parked else Amount()
        self.spent += used

    def reserve(self, amount: Amount) -> None:
        self.num_reserved += 1
        self.reserved += amount

    def fits(self, amount: Amount) -> bool:
        """Tell whether a call can go out beside those under way."""
        taken = self.spent + self.reserved + self.parked + amount
        return self.limits.passed_by(taken) is None

    def refusal(self, amount: Amount) -> BudgetReached | None:
        """Return why a call can never go out, whatever those under way return; None where it can."""
        unit = self.limits.passed_by(self.spent + amount)
        if self.reached is None:
            self.reached = unit
        elif unit is None and self.reached != "seconds":
            unit = self.reached
        if unit is None:
            return self._refusal_for_now(amount)
        limit, spent, call = (
            _shown(getattr(one, unit), unit) for one in (self.limits, self.spent, amount)
        )
        return BudgetReached(
            f"the budget of {self.name} is reached: {spent} of {limit} {_WORDS[unit]} are spent, and a"
            f" call of up to {call} was not sent; a higher {self.key}.{unit} lets it go on"
        )

    def _refusal_for_now(self, amount: Amount) -> BudgetReached | None:
        """Return why a call cannot go out before a batch has ended; None where it need not wait for one."""
        unit = self.limits.passed_by(self.spent + self.parked + amount)
        if unit is None:
            return None
        limit, parked = (_shown(getattr(one, unit), unit) for one in (self.limits, self.parked))
        return BudgetAwaited(
            f"of the budget of {self.name}, {limit} {_WORDS[unit]}, up to {parked} are set aside for lines"
            f" of batches that the host has not answered; this call can go out when they are, or with a"
            f" higher {self.key}.{unit}"
        )


_WORDS: Mapping[Unit, str] = {"usd": "USD", "tokens": "tokens", "gpu_seconds": "GPU-seconds"}


def _shown(value: float, unit: Unit) -> str:
    return f"{value:,}" if unit == "tokens" else f"{value:,.6g}"


@dataclass(slots=True, eq=False, kw_only=True)
class _Waiter:
    """A call that asks for its worst case, and how it is told in its own loop."""

    stage: str
    amount: Amount
    told: asyncio.Future[None] | None = None
    """None until it has to wait."""
    is_granted: bool = False
    refusal: BudgetReached | None = None

    def wake(self) -> None:
        told = self.told
        if told is not None:
            # The loop of a call that was cancelled may be closed by now; it has taken its leave.
            with suppress(RuntimeError):
                told.get_loop().call_soon_threadsafe(_resolve, told)


class Budget:  # noqa: PLR0904 - all that is known of what a run spends
    """Caps on dollars, tokens, GPU time and time, of a run and of its stages; without, it counts."""

    def __init__(
        self,
        limits: Caps | None = None,
        *,
        stages: Mapping[str, Caps] | None = None,
        max_seconds: float | None = None,
        spent: Mapping[str, Amount] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to count.

        Args:
            limits: Of all stages together.
            stages: Of single stages, by name, within those of the run.
            max_seconds: Time until the last call is begun; it begins now.
            spent: What earlier attempts of the run took, by stage.
            clock: Tells seconds.
        """
        self._max_seconds = max_seconds
        self._clock, self._started = clock, clock()
        self._lock = threading.Lock()
        self._stage_limits = dict(stages or {})
        self._run = _Account(key="budget", name="the run", limits=limits or Caps())
        self._stages: dict[str, _Account] = {}
        for stage, amount in (spent or {}).items():
            self._of(stage).spent = amount
            self._run.spent += amount
        self._queue: deque[_Waiter] = deque()

    @property
    def is_reached(self) -> bool:
        """Tell whether a call was turned away by a limit of the run; from then on all are."""
        return self._run.reached is not None

    @property
    def reached(self) -> list[str]:
        """Return the limits at which calls were turned away, as keys of the pipeline."""
        with self._lock:
            accounts = [self._run, *(self._stages[name] for name in sorted(self._stages))]
            return [f"{one.key}.{one.reached}" for one in accounts if one.reached]

    @property
    def spent(self) -> Amount:
        """Return what has been spent so far, by earlier attempts too."""
        with self._lock:
            return self._run.spent

    @property
    def spent_by_stage(self) -> dict[str, Amount]:
        """Return what each stage has spent so far, by earlier attempts too."""
        with self._lock:
            return {name: account.spent for name, account in self._stages.items()}

    @property
    def reserved(self) -> Amount:
        """Return what is set aside for calls under way."""
        with self._lock:
            return self._run.reserved

    async def reserve(
        self, stage: str, worst: Usage, profile: Profile, *, price_factor: float = 1.0
    ) -> Reservation:
        """Return what is set aside for a call until `settle`.

        Waits while calls under way may still return enough of what they reserved.

        Args:
            stage: Who asks.
            worst: The most that the call can take.
            profile: Of the host that it goes to.
            price_factor: Share of the profile's prices that it costs.

        Raises:
            BudgetReached: It does not fit into what the run or the stage has left, or time is over.
            EngineMisconfigured: There is a limit in a unit of which the profile knows nothing.
            CancelledError: The caller was cancelled; nothing is set aside.
        """
        self._check_units(stage, profile)
        waiter = _Waiter(stage=stage, amount=amount_of(worst, profile, price_factor))
        with self._lock:
            self._queue.append(waiter)
            self._serve()
            if not waiter.is_granted and waiter.refusal is None:
                waiter.told = asyncio.get_running_loop().create_future()
        if waiter.told is not None:
            try:
                await waiter.told
            except asyncio.CancelledError:
                self._withdraw(waiter)
                raise
        if waiter.refusal is not None:
            raise waiter.refusal
        return Reservation(stage=stage, amount=waiter.amount)

    def settle(self, reservation: Reservation, used: Amount) -> None:
        """Return a reservation and count what the call really took."""
        with self._lock:
            for account in (self._run, self._of(reservation.stage)):
                if reservation.is_parked:
                    account.settle_parked(reservation.amount, used)
                else:
                    account.settle(reservation.amount, used)
            self._serve()

    def hold(self, stage: str, amount: Amount) -> Reservation:
        """Set aside what is with a host already, whatever the limits are, until `settle`.

        No call waits for it to come back: one that does not fit beside it is turned away for now.
        """
        with self._lock:
            for account in (self._run, self._of(stage)):
                account.park(amount)
        return Reservation(stage=stage, amount=amount, is_parked=True)

    def _withdraw(self, waiter: _Waiter) -> None:
        """Forget a call whose caller has gone, perhaps just when its turn had come."""
        with self._lock:
            if waiter.is_granted:
                for account in (self._run, self._of(waiter.stage)):
                    account.settle(waiter.amount, Amount())
            elif waiter in self._queue:
                self._queue.remove(waiter)
            self._serve()

    def _of(self, stage: str) -> _Account:
        if stage not in self._stages:
            self._stages[stage] = _Account(
                key=f"stages.{stage}.budget",
                name=f"stage {stage!r}",
                limits=self._stage_limits.get(stage, Caps()),
            )
        return self._stages[stage]

    def _serve(self) -> None:
        """Let those on that can go, and turn away those that never can; the caller holds the lock."""
        waiting: list[_Waiter] = []
        # Accounts that somebody in front waits for.
        held: set[str] = set()
        while self._queue:
            waiter = self._queue.popleft()
            accounts = (self._run, self._of(waiter.stage))
            if held & {account.key for account in accounts}:
                waiting.append(waiter)
                continue
            was_reached = self.is_reached
            waiter.refusal = self._refusal(waiter, accounts)
            if waiter.refusal is None:
                full = [account for account in accounts if not account.fits(waiter.amount)]
                if full:
                    # The run only where its stage has room: others may go on beside a full stage.
                    held.add(full[-1].key)
                    waiting.append(waiter)
                    continue
                waiter.is_granted = True
                for account in accounts:
                    account.reserve(waiter.amount)
            elif self.is_reached and not was_reached:
                # Those in front that wait for their stage wait in vain.
                self._queue.extendleft(reversed(waiting))
                waiting, held = [], set()
            waiter.wake()
        self._queue.extend(waiting)

    def _refusal(
        self, waiter: _Waiter, accounts: tuple[_Account, _Account]
    ) -> BudgetReached | None:
        """Return why a call can never go out; None where it can, now or later."""
        if late := self._too_late():
            return late
        for account in accounts:
            if refusal := account.refusal(waiter.amount):
                return refusal
        return None

    def require_time(self) -> None:
        """Check that a call whose amount is reserved may still be begun.

        Raises:
            BudgetReached: The time is over.
        """
        with self._lock:
            late = self._too_late()
        if late:
            raise late

    def _too_late(self) -> BudgetReached | None:
        limit = self._max_seconds
        if limit is None or self._clock() - self._started < limit:
            return None
        self._run.reached = self._run.reached or "seconds"
        return BudgetReached(
            f"the {limit:,g} seconds of the budget are over; what is under way was let come to its end"
        )

    def _check_units(self, stage: str, profile: Profile) -> None:
        for key, limits in (
            ("budget", self._run.limits),
            (f"stages.{stage}.budget", self._stage_limits.get(stage, Caps())),
        ):
            problem = unknown_unit(key, limits, profile)
            if problem is not None:
                raise EngineMisconfigured(problem)


def _resolve(told: asyncio.Future[None]) -> None:
    if not told.done():
        told.set_result(None)


def unknown_unit(key: str, limits: Caps, profile: Profile) -> str | None:
    """Return what is wrong with a limit in a unit of which a profile knows nothing; None: nothing.

    Args:
        key: Where the limits stand in the pipeline: `budget`, or `stages.NAME.budget`.
        limits: What is set there.
        profile: Of an engine that calls go to.
    """
    needed: dict[Unit, tuple[str, ...]] = {
        "usd": ("prices",),
        "gpu_seconds": ("gpus", "throughput"),
    }
    for unit, names in needed.items():
        lacking = [name for name in names if getattr(profile, name) is None]
        if getattr(limits, unit) is not None and lacking:
            return (
                f"{key}.{unit} is set, but engine {profile.name!r} has no {' and no '.join(lacking)};"
                f" set {key}.tokens instead, or add {' and '.join(f'`{n}`' for n in lacking)} to its"
                " profile"
            )
    return None
