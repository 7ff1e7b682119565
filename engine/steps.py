"""What an agent has done so far, event by event: the one record that resuming, transcripts and figures are views of.

An agent's state is nothing but its events in order. Each is on record before the agent goes on, so that a
process that takes the request up again pays for no model turn twice and runs no finished tool call again.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Protocol

from engine.request import Request, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedCall:
    """A call as the model wrote it, under the id that this conversation gives it."""

    call_id: str
    """`functions.NAME:NUMBER`, the number counted over the whole conversation: K2.5's own form, which
    survives in its history where others confuse it (facts on tool ids: Kimi-K2 tool_call_guidance)."""
    name: str
    arguments: str
    """Meant to be a JSON object; may be anything."""


def call_number(call_id: str) -> str:
    """Return the number in a call's id, which is also that of the sub-agent behind it."""
    return call_id.rpartition(":")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turned:
    """The model has answered."""

    kind: ClassVar[str] = "turn"
    content: str
    reasoning: str
    calls: tuple[AskedCall, ...] = ()
    finish_reason: str
    notes: tuple[str, ...] = ()
    usage: Usage
    cost_usd: float | None = None
    gpu_seconds: float | None = None
    seconds: float
    """From before the call to its end, waiting included."""
    engine: str
    at: float = field(default_factory=time.time)
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A call whose repetition would matter is about to be made."""

    kind: ClassVar[str] = "begun"
    call_id: str
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """A call has ended, well or badly."""

    kind: ClassVar[str] = "returned"
    call_id: str
    text: str
    """Whole; the model is shown the beginning of a long one."""
    failure: str | None = None
    """Why there is no result: undeclared, not_json, schema, tool_error, timeout, unknown_end, refused,
    closed, limit or crashed."""
    seconds: float = 0.0
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compacted:
    """The conversation so far has been put into notes, which take its place."""

    kind: ClassVar[str] = "compacted"
    notes: str
    usage: Usage
    cost_usd: float | None = None
    gpu_seconds: float | None = None
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nudged:
    """The agent was told something between two turns."""

    kind: ClassVar[str] = "nudged"
    why: str
    """repeated_call, nothing_new, off_goal, empty, answer or stopped."""
    text: str
    cause: str | None = None
    """Why it was stopped."""
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A question that a tool put to the model has been answered; kept under the question's key."""

    kind: ClassVar[str] = "answered"
    text: str
    usage: Usage
    cost_usd: float | None = None
    gpu_seconds: float | None = None
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """Texts have been made into vectors for a tool, which keeps them itself."""

    kind: ClassVar[str] = "embedded"
    num_texts: int
    usage: Usage
    cost_usd: float | None = None
    gpu_seconds: float | None = None
    engine: str
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A person has decided on a call."""

    kind: ClassVar[str] = "decided"
    call_id: str
    is_approved: bool
    by: str = ""
    reason: str = ""
    at: float = field(default_factory=time.time)


Paid = Turned | Compacted | Answered | Embedded
"""Events that a call to the model was paid for."""
Event = Turned | Begun | Returned | Compacted | Nudged | Answered | Embedded | Decided

_KINDS: Mapping[str, type[Any]] = {
    event.kind: event
    for event in (Turned, Begun, Returned, Compacted, Nudged, Answered, Embedded, Decided)
}


def to_json(event: Event) -> dict[str, Any]:
    """Return an event as JSON can hold it."""
    return {"kind": event.kind, **asdict(event)}


def from_json(value: Mapping[str, Any]) -> Event:
    """Return the event that `to_json` made the value of."""
    data = dict(value)
    kind = _KINDS[data.pop("kind")]
    if "usage" in data:
        data["usage"] = Usage(**data["usage"])
    if kind is Turned:
        data["calls"] = tuple(AskedCall(**call) for call in data["calls"])
        data["notes"] = tuple(data["notes"])
    event: Event = kind(**data)
    return event


class StepLog(Protocol):
    """Where events outlast the process."""

    def events(self, key: str) -> Sequence[Event]:
        """Return what is on record under a key, oldest first."""

    async def add(self, key: str, event: Event) -> None:
        """Return when the event is on record; it survives the end of this process."""

    def paid(self) -> Sequence[Paid]:
        """Return what the request has paid for so far, whatever it is kept under, and no bill has in it yet.

        Bills are those of other runs and earlier commits.
        """


class MemoryLog:
    """Events of this process only: for tests, and for trying a single question."""

    def __init__(self) -> None:
        self._events: dict[str, list[Event]] = defaultdict(list)
        self._paid: dict[str, list[Paid]] = defaultdict(list)

    def of(self, request: Request) -> StepLog:
        """Return the log of one request; what is under one key is the same for all."""
        return _MemoryLogOfOne(self, self._paid[request.request_key])

    def events(self, key: str) -> Sequence[Event]:
        """Return what is on record under a key, oldest first."""
        return list(self._events.get(key, ()))

    async def add(self, key: str, event: Event) -> None:
        """Keep the event."""
        self._events[key].append(event)


class _MemoryLogOfOne:
    """One request's view of a log."""

    def __init__(self, log: MemoryLog, paid: list[Paid]) -> None:
        self._log, self._paid = log, paid

    def events(self, key: str) -> Sequence[Event]:
        return self._log.events(key)

    async def add(self, key: str, event: Event) -> None:
        if isinstance(event, Paid):
            self._paid.append(event)
        await self._log.add(key, event)

    def paid(self) -> Sequence[Paid]:
        return list(self._paid)
