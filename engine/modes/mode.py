"""The protocol that every mode follows, what it is given, and what it hands back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from engine.endpoint import Endpoint
from engine.errors import (
    BudgetReached,
    EngineError,
    EngineUnavailable,
    RequestRejected,
    VectorsUnavailable,
)
from engine.reply import Reply
from engine.request import ModeName, Outcome, Request, Work
from engine.steps import AskedCall, Decided, Event, MemoryLog, Paid, StepLog
from engine.tool import Aside, ToolBox, ToolSpec

Send = Callable[[Mapping[str, Any]], Awaitable[Reply]]
"""Sends one request body and returns the reply; retries and limits are the caller's."""


class Approval(Protocol):
    """Asks a person whether a call may be made."""

    async def decide(
        self, request: Request, call: AskedCall, spec: ToolSpec, *, written_at: float
    ) -> Decided:
        """Return the decision on this one call, and on no other that looks like it.

        Args:
            request: Whose call it is; a sub-agent's under a key of its own.
            call: What the model wrote.
            spec: The tool's.
            written_at: When it wrote that, in seconds since 1970: an agent that begins anew calls anew.

        Raises:
            AwaitingApproval: Nobody has decided yet; the request is taken up again when somebody has.
        """


class AwaitingApproval(EngineError):
    """A person has to decide first; the request can be resumed."""


class LogFailed(EngineError):
    """What an agent has done cannot be put on record; the run must not go on."""


class HandedOver(EngineError):
    """An agent has lost its way here; the next engine of the route goes on with its work."""


_OF_REQUEST = (
    AwaitingApproval,
    BudgetReached,
    EngineUnavailable,
    RequestRejected,
    VectorsUnavailable,
)
"""Errors that end one request, and not the run."""


def raise_gravest(ends: Iterable[object]) -> None:
    """Raise the first error among what some calls came to; one that ends the run goes before all others.

    What ends the run must not be hidden behind what ends one request only.

    Raises:
        BaseException: One of them is an error.
    """
    failed = [end for end in ends if isinstance(end, BaseException)]
    for end in sorted(failed, key=lambda end: isinstance(end, _OF_REQUEST)):
        raise end


class NoTools:
    """The tool box of a stage that has none."""

    specs: Sequence[ToolSpec] = ()

    async def call(self, name: str, arguments: Mapping[str, Any], aside: Aside) -> Any:  # noqa: ANN401, D102
        raise AssertionError((name, arguments, aside))


def _no_aside(call_id: str) -> Aside:
    raise AssertionError(call_id)


class NoSteps:
    """The log of a request that is no agent's."""

    def events(self, key: str) -> Sequence[Event]:  # noqa: D102
        raise AssertionError(key)

    async def add(self, key: str, event: Event) -> None:  # noqa: D102
        raise AssertionError((key, event))

    def paid(self) -> Sequence[Paid]:  # noqa: D102
        raise AssertionError


def _nobody() -> bool:
    """Tell that no other engine could go on."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What a mode works with."""

    send: Send
    tools: ToolBox = field(default_factory=NoTools)
    steps: StepLog = field(default_factory=NoSteps)
    aside: Callable[[str], Aside] = _no_aside
    """Returns what the tool behind a call, by its id, asks the model with."""
    approval: Approval | None = None
    """None: calls that need it are refused."""
    can_hand_over: Callable[[], bool] = _nobody
    """Tells whether another engine of the route could go on now."""


def _no_tools(_request: Request) -> ToolBox:
    """Return a box with nothing in it."""
    return NoTools()


def _forgotten(request: Request) -> StepLog:
    """Return a log that ends with the process."""
    return MemoryLog().of(request)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What the agents of a batch work with."""

    tools: Callable[[Request], ToolBox] = _no_tools
    """Returns the tools that a request may call."""
    steps: Callable[[Request], StepLog] = _forgotten
    """Returns where a request's events are kept; what is under one key is the same for all requests."""
    approval: Approval | None = None


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
    work: Work | None = None


class Mode(Protocol):
    """One way of carrying out a request."""

    async def carry_out(self, request: Request, endpoint: Endpoint, means: Means) -> Ending:
        """Return how it ended; raise only what `means.send` raises, and the two errors above."""
