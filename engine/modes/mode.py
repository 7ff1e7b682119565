"""The protocol that every mode follows, and what a mode hands back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from engine.endpoint import Endpoint
from engine.reply import Reply
from engine.request import ModeName, Outcome, Request

Send = Callable[[Mapping[str, Any]], Awaitable[Reply]]
"""Sends one request body and returns the reply; retries and limits are the caller's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a request ended, before the batch adds times, tokens and attempts."""

    outcome: Outcome
    output: Mapping[str, Any] | None = None
    error_class: str | None = None
    error: str | None = None
    mode_observed: ModeName | None = None
    mode_notes: tuple[str, ...] = ()
    reasoning: str | None = None
    finish_reason: str | None = None


class Mode(Protocol):
    """One way of carrying out a request."""

    async def carry_out(self, request: Request, endpoint: Endpoint, send: Send) -> Ending:
        """Return how it ended; raise only what `send` raises."""
