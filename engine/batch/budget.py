"""What a run may still spend: each call reserves its worst case first and returns the rest after.

Shared by all shards of a process, each with an event loop of its own; so it is guarded by a lock and
waits by polling.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import BudgetReached, EngineMisconfigured
from engine.profile import Prices
from engine.request import Usage
from engine.tokens import BYTES_PER_TOKEN, MOST_IMAGE_TOKENS

_POLL_S = 0.05
_MARGIN_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """Tokens, prompt and answer together, and their price."""

    tokens: int = 0
    usd: float = 0.0

    def __add__(self, other: Amount) -> Amount:
        """Return the sum."""
        return Amount(tokens=self.tokens + other.tokens, usd=self.usd + other.usd)

    def __sub__(self, other: Amount) -> Amount:
        """Return the difference."""
        return Amount(tokens=self.tokens - other.tokens, usd=self.usd - other.usd)


class Budget:
    """Limits on tokens, dollars and time; without limits it only counts."""

    def __init__(
        self,
        *,
        max_usd: float | None = None,
        max_tokens: int | None = None,
        max_seconds: float | None = None,
        spent: Amount | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with what earlier attempts of the run have spent; its time begins now."""
        self._max_usd, self._max_tokens, self._max_seconds = max_usd, max_tokens, max_seconds
        self._clock, self._started = clock, clock()
        self._lock = threading.Lock()
        self._spent = spent or Amount()
        self._reserved = Amount()
        self._num_reserved = 0
        self._reached = False

    @property
    def is_reached(self) -> bool:
        """Tell whether a request was turned away; from then on all are."""
        return self._reached

    @property
    def spent(self) -> Amount:
        """Return what has been spent so far."""
        with self._lock:
            return self._spent

    async def reserve(self, body: Mapping[str, Any], prices: Prices | None) -> Amount:
        """Return the worst case of a call, set aside until `settle`.

        Waits while calls under way may still return enough of what they reserved.

        Raises:
            BudgetReached: It does not fit into what is left, or the time is over.
            EngineMisconfigured: There is a limit in dollars, and the host has no prices.
        """
        if self._max_usd is not None and prices is None:
            raise EngineMisconfigured(
                "budget.usd is set, but the engine's profile has no prices; set budget.tokens"
                " instead, or add `prices` to the profile"
            )
        prompt = worst_prompt_tokens(body)
        usage = Usage(prompt_tokens=prompt, completion_tokens=int(body["max_tokens"]))
        amount = amount_of(usage, prices)
        while not self._try(amount):
            await asyncio.sleep(_POLL_S)
        return amount

    def _try(self, amount: Amount) -> bool:
        if self._is_late():
            self._reached = True
            raise BudgetReached(
                f"the {self._max_seconds:,g} seconds of the budget are over; what is under way was"
                " let come to its end"
            )
        with self._lock:
            whole = self._spent + self._reserved + amount
            fits = (self._max_usd is None or whole.usd <= self._max_usd) and (
                self._max_tokens is None or whole.tokens <= self._max_tokens
            )
            if fits and not self._reached:
                self._reserved += amount
                self._num_reserved += 1
                return True
            if self._num_reserved and not self._reached:
                return False
            self._reached = True
        raise BudgetReached(
            f"a call of up to {amount.tokens:,} tokens does not fit into the budget"
            f" ({self._limits()}), of which {self._spent.tokens:,} tokens are spent"
        )

    def _is_late(self) -> bool:
        limit = self._max_seconds
        return limit is not None and self._clock() - self._started >= limit

    def settle(self, reserved: Amount, used: Amount) -> None:
        """Return a reservation and count what the call really took."""
        with self._lock:
            self._reserved -= reserved
            self._num_reserved -= 1
            self._spent += used

    def _limits(self) -> str:
        parts = [f"{self._max_usd} USD"] if self._max_usd is not None else []
        parts += [f"{self._max_tokens:,} tokens"] if self._max_tokens is not None else []
        return ", ".join(parts)


def amount_of(usage: Usage, prices: Prices | None) -> Amount:
    """Return the tokens of a call and their price, 0 where prices are not known."""
    return Amount(
        tokens=usage.prompt_tokens + usage.completion_tokens, usd=cost_usd(usage, prices) or 0.0
    )


def cost_usd(usage: Usage, prices: Prices | None) -> float | None:
    """Return the price of a call's tokens in dollars; None where prices are not known."""
    if prices is None:
        return None
    return prices.usd(
        prompt=usage.prompt_tokens,
        cached=usage.cached_tokens or 0,
        output=usage.completion_tokens,
    )


def worst_prompt_tokens(body: Mapping[str, Any]) -> int:
    """Return more tokens than the messages can have, by their length in bytes."""
    tokens = _MARGIN_TOKENS
    for message in body["messages"]:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            if part["type"] == "text":
                tokens += -(-len(part["text"].encode()) // BYTES_PER_TOKEN)
            else:
                tokens += MOST_IMAGE_TOKENS
    return tokens
