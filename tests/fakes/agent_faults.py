"""What goes wrong at a scripted model: by a hash of the messages and how often the body came, so never by
chance or order, and a second try of the same body has a draw of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tests.fakes.agent_script import Body, ScriptedCall, parameters_of
from tests.fakes.agent_worlds import pick

CallFault = Literal[
    "not_json",
    "empty_arguments",
    "wrong_types",
    "missing_required",
    "undeclared_tool",
    "foreign_id",
    "no_id",
]
CALL_FAULTS: tuple[CallFault, ...] = (
    "not_json",
    "empty_arguments",
    "wrong_types",
    "missing_required",
    "undeclared_tool",
    "foreign_id",
    "no_id",
)
ReplyFault = Literal["empty_body", "blank_answer", "stall", "too_many", "server_error"]
REPLY_FAULTS: tuple[ReplyFault, ...] = (
    "empty_body",
    "blank_answer",
    "stall",
    "too_many",
    "server_error",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Rates of what goes wrong, each from 0 to 1; none by default.

    The first seven are shares of all calls of tools, and exclude each other; the next five are shares of
    all requests, and exclude each other.
    """

    seed: int = 0
    not_json: float = 0.0
    """Arguments that break off in the middle."""
    empty_arguments: float = 0.0
    """Arguments `""`."""
    wrong_types: float = 0.0
    """One argument of another type than the schema's."""
    missing_required: float = 0.0
    """One required argument left out."""
    undeclared_tool: float = 0.0
    """A name that the body does not declare."""
    foreign_id: float = 0.0
    """An id such as `call_0a1b2c`."""
    no_id: float = 0.0
    """No id at all."""
    empty_body: float = 0.0
    """200 without a body, as a host under load was seen to answer."""
    blank_answer: float = 0.0
    """No content and no call, right after the thinking."""
    stall: float = 0.0
    """Silence of `stall_s`: after the first event of a stream, or in front of a whole answer."""
    too_many: float = 0.0
    """429 with a Retry-After of `retry_after_s`."""
    server_error: float = 0.0
    """500."""
    stall_s: float = 5.0
    retry_after_s: float = 0.1

    @classmethod
    def broken_calls(cls, rate: float = 0.12, *, seed: int = 0, **others: Any) -> Faults:
        """Return faults of which each kind of broken call has the same share of the rate."""
        return cls(seed=seed, **dict.fromkeys(CALL_FAULTS, rate / len(CALL_FAULTS)), **others)

    def of_reply(self, body: Body, nth: int) -> ReplyFault | None:
        """Return what goes wrong with a request, which comes for the nth time (from 0)."""
        drawn = self._draw("reply", body["messages"], nth)
        return self._pick(drawn, REPLY_FAULTS)  # type: ignore[return-value]

    def of_call(self, body: Body, nth: int, number: int) -> CallFault | None:
        """Return what goes wrong with one call of an answer."""
        drawn = self._draw("call", body["messages"], nth, number)
        return self._pick(drawn, CALL_FAULTS)  # type: ignore[return-value]

    def _draw(self, *parts: object) -> float:
        return pick(self.seed, *parts) / 2**64

    def _pick(self, drawn: float, kinds: tuple[str, ...]) -> str | None:
        for kind in kinds:
            drawn -= getattr(self, kind)
            if drawn < 0:
                return kind
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds that answers take: log-normal, drawn by a hash of the messages."""

    median_s: float
    sigma: float = 0.5
    seed: int = 0

    def of(self, body: Body, nth: int) -> float:
        """Return the seconds of one request."""
        first, second = (
            (pick(self.seed, part, body["messages"], nth) + 1) / (2**64 + 2) for part in "ab"
        )
        normal = math.sqrt(-2 * math.log(first)) * math.cos(2 * math.pi * second)
        return self.median_s * math.exp(self.sigma * normal)


def wire_call(
    call: ScriptedCall, call_id: str, fault: CallFault | None, body: Body
) -> dict[str, Any]:
    """Return a call as it goes over the wire, with what goes wrong with it."""
    name, arguments = call.name, json.dumps(dict(call.arguments))
    schema = parameters_of(body, call.name)
    if fault == "not_json":
        arguments = arguments[: max(1, len(arguments) // 2)]
    elif fault == "empty_arguments":
        arguments = ""
    elif fault == "wrong_types":
        arguments = json.dumps(_wrong(call.arguments))
    elif fault == "missing_required":
        arguments = json.dumps(_lacking(call.arguments, schema))
    elif fault == "undeclared_tool":
        name = _undeclared(name, body)
    wire: dict[str, Any] = {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
    if fault == "foreign_id":
        wire["id"] = f"call_{pick(call_id, body['messages']) % 16**24:024x}"
    elif fault == "no_id":
        del wire["id"]
    return wire


def _wrong(arguments: Mapping[str, Any]) -> object:
    """Return the arguments with the first in another type, or a list where there is none."""
    if not arguments:
        return []
    first = next(iter(arguments))
    value = arguments[first]
    return {**arguments, first: str(value) if isinstance(value, list) else [value]}


def _lacking(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> object:
    """Return the arguments without the first required one, or a list where none is required."""
    required = [name for name in schema.get("required", ()) if name in arguments]
    gone = required[:1] or list(arguments)[:1]
    return {k: v for k, v in arguments.items() if k not in gone} if gone else []


def _undeclared(name: str, body: Body) -> str:
    declared = {tool["function"]["name"] for tool in body.get("tools") or ()}
    name += "_all"
    while name in declared:
        name += "_all"
    return name
