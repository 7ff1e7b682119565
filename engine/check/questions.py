"""The requests of a check: long ones about made-up documents, short ones, some that think, some that call tools."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engine.batch.amount import Amount, amount_of, worst_usage
from engine.check.documents import KINDS, LongDocuments, lines_of
from engine.check.plan import (
    LONG_ANSWER_TOKENS,
    SHORT_ANSWER_TOKENS,
    THINKING_TOKENS,
    TOOL_ANSWER_TOKENS,
    CheckPlan,
)
from engine.endpoint import Endpoint
from engine.prompt import CONSTANT, user_text
from engine.request import JsonSchema, ModeName, Request, content_key
from engine.tool import ToolSpec
from engine.wire import Turn, body_of, opening, opening_messages, prompt_overhead

_SHORT_LINES = 12
_LONGER = 1.2
"""Tokens of a few lines at most, in parts of their average: they differ by names and digits."""


def _object(properties: Mapping[str, Any]) -> JsonSchema:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


_KIND: Mapping[str, Any] = {"type": "string", "enum": list(KINDS)}
_HALF = _object({
    "largest": _KIND,
    "trend": {"type": "string", "enum": ["rising", "falling", "steady"]},
    "is_complete": {"type": "boolean"},
})  # fmt: skip

LONG_SCHEMA = _object(dict.fromkeys(("first", "second", "third", "fourth", "last"), _KIND))
"""An answer of about 50 tokens on any model: choices only, so that none can run on."""
SHORT_SCHEMA = _object(dict.fromkeys(("first_half", "second_half", "whole_year"), _HALF))
"""A nested answer of about 80 tokens, by which the pace of generating is measured."""
THINKING_SCHEMA = _object({"largest": _KIND, "is_certain": {"type": "boolean"}})

TOOLS = (
    ToolSpec(
        name="search",
        description="Finds lines of the ledger by words.",
        parameters=_object({
            "words": {"type": "array", "items": _KIND, "minItems": 1, "maxItems": 3},
            "limit": {"type": "integer", "minimum": 1, "maximum": 20},
        }),
    ),
    ToolSpec(
        name="sum_payments",
        description="Adds up the payments of one kind.",
        parameters=_object({
            "kind": _KIND,
            "period": _object({
                "from_month": {"type": "integer", "minimum": 1, "maximum": 12},
                "to_month": {"type": "integer", "minimum": 1, "maximum": 12},
            }),
            "only_open": {"type": "boolean"},
        }),
    ),
    ToolSpec(
        name="compare",
        description="Compares two kinds of payment.",
        parameters=_object({
            "first": _KIND,
            "second": _KIND,
            "by": {"type": "string", "enum": ["total", "number", "average"]},
        }),
    ),
)  # fmt: skip
"""Three tools with what real ones have: choices, ranges, lists, an object inside."""

_ASKED = (
    "Find the lines about dredging or fuel. Call the tool search.",
    "How much was paid for cranes from March to June? Call the tool sum_payments.",
    "Was more paid for storage or for insurance? Call the tool compare.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One call that a check makes."""

    request: Request
    turn: Turn
    body: Mapping[str, Any]


class Questions:
    """All requests of one check, made when they are sent: long ones are large."""

    def __init__(self, endpoint: Endpoint, plan: CheckPlan) -> None:
        """Make the text that the long ones share."""
        self.endpoint, self.plan = endpoint, plan
        question = _long_question()
        beside = prompt_overhead(endpoint, CONSTANT, question, LONG_SCHEMA, mode=plan.mode)
        room = plan.context_tokens - beside - LONG_ANSWER_TOKENS - self._reasoning(plan.mode)
        self.documents = LongDocuments(endpoint, seed=plan.seed, room_tokens=max(64, room))
        self.prompt_tokens = beside + self.documents.num_tokens
        """Of a long prompt, as counted here; the margin for the chat template is in it."""
        few_tokens = beside + int(_LONGER * _SHORT_LINES * self.documents.line_tokens)
        # Twice: hosts show tools with names and descriptions, and as they like.
        shown = json.dumps([dict(spec.parameters) for spec in TOOLS])
        tool_tokens = endpoint.counter.count(shown) if endpoint.profile.capabilities.tools else 0
        self._prompt_tokens = {"long": self.prompt_tokens, "tools": few_tokens + 2 * tool_tokens}
        self._few_tokens = few_tokens

    def long(self) -> Iterator[Asked]:
        """Yield the long requests; all begin alike."""
        for number in range(self.plan.num_requests):
            yield self._asked(
                "long", number, material=self.documents.text(number), question=_long_question(),
                schema=LONG_SCHEMA, mode=self.plan.mode,
            )  # fmt: skip

    def short(self) -> Iterator[Asked]:
        """Yield the short ones with a nested answer."""
        for number in range(self.plan.num_short):
            yield self._asked(
                "short", number, material=self._few_lines("short", number),
                question="For each half and the whole year: which kind of payment is the largest, and how does it go on?",
                schema=SHORT_SCHEMA, mode=self.plan.mode,
            )  # fmt: skip

    def thinking(self) -> Iterator[Asked]:
        """Yield those that are to think first."""
        for number in range(self.plan.num_thinking):
            yield self._asked(
                "thinking", number, material=self._few_lines("thinking", number),
                question="Add the payments up by kind. Which kind is the largest?",
                schema=THINKING_SCHEMA, mode="thinking",
            )  # fmt: skip

    def tools(self) -> Iterator[Asked]:
        """Yield those that are to call a tool: first those that are forced to."""
        profile = self.endpoint.profile
        mode = profile.turn_mode("agent", think=True)
        for number in range(self.plan.num_forced + self.plan.num_free):
            request = self._request(
                "tools", number, material=self._few_lines("tools", number),
                question=_ASKED[number % len(_ASKED)], schema={"type": "object"}, mode=mode,
                max_output_tokens=TOOL_ANSWER_TOKENS,
            )  # fmt: skip
            thinking = self._reasoning(mode)
            turn = Turn(
                mode=mode,
                messages=opening_messages(request, user_text(request.material, request.question)),
                max_tokens=TOOL_ANSWER_TOKENS + thinking,
                thinking_tokens=thinking or None,
                tools=TOOLS,
                must_call=number < self.plan.num_forced,
            )
            body = body_of(turn, request, self.endpoint)
            yield Asked(request=request, turn=turn, body=body)

    def worst(self) -> Amount:
        """Return the most that all of them can take together: nothing cached, the longest answers."""
        total = Amount()
        first_long = next(self.long())
        for count, asked in (
            (self.plan.num_requests, first_long),
            *((1, one) for one in (*self.short(), *self.thinking(), *self.tools())),
        ):
            usage = worst_usage(asked.body, asked.request)
            one = amount_of(usage, self.endpoint.profile)
            total += Amount(
                tokens=count * one.tokens, usd=count * one.usd, gpu_seconds=count * one.gpu_seconds
            )
        return total

    def _few_lines(self, kind: str, number: int) -> str:
        return "\n".join(lines_of(f"{self.plan.seed}/{kind}/{number}", _SHORT_LINES)) + "\n"

    def _asked(self, kind: str, number: int, *, material: str, question: str, schema: JsonSchema,
               mode: ModeName) -> Asked:  # fmt: skip
        tokens = LONG_ANSWER_TOKENS if kind == "long" else SHORT_ANSWER_TOKENS
        request = self._request(
            kind, number, material=material, question=question, schema=schema, mode=mode,
            max_output_tokens=tokens,
        )  # fmt: skip
        turn = opening(request, self.endpoint)
        return Asked(request=request, turn=turn, body=body_of(turn, request, self.endpoint))

    def _request(self, kind: str, number: int, **parts: Any) -> Request:  # noqa: ANN401 - fields of Request
        return Request(
            request_key=content_key("check", kind, number, self.plan.seed),
            stage=kind,
            instructions=CONSTANT,
            max_reasoning_tokens=self._reasoning(parts["mode"]),
            prompt_tokens=self._prompt_tokens.get(kind, self._few_tokens),
            **parts,
        )

    def _reasoning(self, mode: ModeName) -> int:
        if mode != "thinking":
            return 0
        return min(THINKING_TOKENS, self.endpoint.profile.modes["thinking"].reasoning_tokens)


def _long_question() -> str:
    return "For which kind of payment was most paid, second, third, fourth and least of all?"
