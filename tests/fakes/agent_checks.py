"""What a strict host refuses with 400, as Moonshot's API does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tests.fakes.agent_script import Body, is_thinking, object_of, text_of

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9-_]{0,63}")
_NATIVE = re.compile(r"functions\.[\w-]+:\d+")
MAX_TOOLS = 128


def refusal(body: Body) -> str | None:
    """Return why a strict host refuses the body; None where it takes it."""
    return _of_tools(body) or _of_messages(body["messages"], is_on=is_thinking(body))


def num_foreign_ids(body: Body) -> int:
    """Return how many calls of the history have an id that is not `functions.name:idx`."""
    return sum(
        _NATIVE.fullmatch(str(call.get("id"))) is None
        for message in body["messages"]
        if message["role"] == "assistant"
        for call in message.get("tool_calls") or ()
    )


def _of_tools(body: Body) -> str | None:
    tools = body.get("tools") or ()
    if len(tools) > MAX_TOOLS:
        return f"too many tools: {len(tools)}, at most {MAX_TOOLS} are allowed"
    for tool in tools:
        function = tool["function"]
        if not _NAME.fullmatch(function["name"]):
            return f"function name {function['name']!r} is invalid"
        if (function.get("parameters") or {}).get("type") != "object":
            return f"parameters of function {function['name']!r} must be of type object"
    choice = body.get("tool_choice", "auto")
    if is_thinking(body) and choice not in ("auto", "none"):
        return f"tool_choice {choice!r} is incompatible with thinking enabled"
    return None


def _of_messages(messages: Sequence[Mapping[str, Any]], *, is_on: bool) -> str | None:
    waiting: list[str] = []
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            call_id = message.get("tool_call_id")
            if call_id not in waiting:
                return f"tool_call_id {call_id!r} of the message at index {index} is not found"
            waiting.remove(call_id)
            continue
        if waiting:
            return _unanswered(waiting)
        if message["role"] == "assistant":
            calls = message.get("tool_calls") or ()
            why = _of_assistant(message, calls, index, is_on=is_on)
            if why is not None:
                return why
            waiting = [call["id"] for call in calls]
    return _unanswered(waiting) if waiting else None


def _unanswered(waiting: Sequence[str]) -> str:
    return (
        "an assistant message with 'tool_calls' must be followed by tool messages responding to each"
        " 'tool_call_id'. The following tool_call_ids did not have response messages: "
        + ", ".join(waiting)
    )


def _of_assistant(
    message: Mapping[str, Any], calls: Sequence[Mapping[str, Any]], index: int, *, is_on: bool
) -> str | None:
    if not calls:
        empty = not text_of(message).strip()
        return (
            f"the message at position {index} with role 'assistant' must not be empty"
            if empty
            else None
        )
    if is_on and not (message.get("reasoning_content") or message.get("reasoning")):
        return (
            "thinking is enabled but reasoning_content is missing in assistant tool call message"
            f" at index {index}"
        )
    ids = [call.get("id") for call in calls]
    if not all(isinstance(i, str) and i for i in ids) or len(set(ids)) < len(ids):
        return f"tool calls of the message at index {index} need an id each, and no id twice"
    for call in calls:
        if object_of(call["function"].get("arguments")) is None:
            return (
                f"function.arguments of tool call {call['id']!r} of the message at index {index} must"
                " be a JSON object"
            )
    return None
