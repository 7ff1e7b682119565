"""Looks at the calls a model has written, before anything is run.

About one call in eight of a large run is broken in some way (schema accuracy of K2-Thinking under vLLM:
87.22 %, K2 Vendor Verifier, 2025-11-15): a name that nobody declared, arguments that are no JSON or do not
follow the schema. What is wrong goes back to the model in words it can act on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.modes.dialogue import misfit
from engine.reply import ToolCall
from engine.steps import AskedCall
from engine.tool import ToolSpec

_ODD_IN_NAME = re.compile(r"[^A-Za-z0-9_-]")
_MAX_NAME = 64
_MAX_QUOTED = 200
_LEAKED = re.compile(
    r"<\|tool_call_begin\|>\s*(?P<id>[^<]*?)\s*<\|tool_call_argument_begin\|>(?P<arguments>.*?)"
    r"(?:<\|tool_call_end\|>|$)",
    re.DOTALL,
)
"""K2.5's own marks, where the host has no tool parser."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What became of looking at one call."""

    arguments: Mapping[str, Any] | None = None
    """None where there is something wrong."""
    failure: str | None = None
    """undeclared, not_json or schema."""
    error: str = ""
    """For the model."""


def named_calls(calls: Sequence[ToolCall], num_before: int) -> tuple[AskedCall, ...]:
    """Return the calls under ids that count on from those before in the conversation."""
    named = [(plain_name(call.name or call.call_id), call.arguments) for call in calls]
    return tuple(
        AskedCall(call_id=f"functions.{name}:{num_before + number}", name=name, arguments=arguments)
        for number, (name, arguments) in enumerate(named)
    )


def plain_name(name: str) -> str:
    """Return a tool's name without what K2.5 puts around it, in the form that hosts accept in history."""
    bare = name.strip().removeprefix("functions.").partition(":")[0]
    return _ODD_IN_NAME.sub("_", bare)[:_MAX_NAME] or "unnamed"


def leaked_calls(content: str) -> tuple[ToolCall, ...]:
    """Return the calls that stand in the content with K2.5's marks, where no parser took them out."""
    return tuple(
        ToolCall(call_id="", name=match["id"], arguments=match["arguments"].strip())
        for match in _LEAKED.finditer(content)
    )


def check(call: AskedCall, specs: Mapping[str, ToolSpec]) -> Checked:
    """Return the call's arguments, or what is wrong with it."""
    spec = specs.get(call.name)
    if spec is None:
        return Checked(
            failure="undeclared",
            error=f"there is no tool {call.name!r}; the tools are {', '.join(specs) or 'none'}",
        )
    arguments, problem = arguments_of(call.arguments)
    if arguments is None:
        return Checked(failure="not_json", error=f"{problem}; call {call.name!r} again")
    try:
        wrong = misfit(spec.parameters, arguments)
    except RecursionError:
        wrong = "the arguments are nested too deeply"
    if wrong is not None:
        return Checked(
            failure="schema",
            error=f"the arguments of {call.name!r} do not follow its schema: {wrong}; call it again",
        )
    return Checked(arguments=arguments)


def arguments_of(text: str) -> tuple[Mapping[str, Any] | None, str]:
    """Return the object that a call's arguments are, or None and why they are none.

    Nothing at all is an empty object; an object written as a JSON string is taken out of it.
    """
    if not text.strip():
        return {}, ""
    try:
        value = json.loads(text)
        if isinstance(value, str):
            value = json.loads(value)
        # Half of a surrogate pair, which an escape can stand for, has no UTF-8: no later turn could be sent.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as exc:
        return None, f"the arguments are not JSON ({exc}): {text[:_MAX_QUOTED]!r}"
    if not isinstance(value, dict):
        return None, f"the arguments are no JSON object: {text[:_MAX_QUOTED]!r}"
    return value, ""
