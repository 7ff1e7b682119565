"""The body of a call, field by field: what is sent to which host, and why."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.endpoint import TEMPLATE_MARGIN_TOKENS, Endpoint
from engine.grammar import inexpressible
from engine.profile import Profile
from engine.prompt import answer_text, repair_text, user_text
from engine.request import JsonSchema, ModeName, Request
from engine.tool import ToolSpec

Message = Mapping[str, Any]

WHY: Mapping[str, str] = {
    "model": "names the model, or the LoRA adapter that the stage asks for",
    "messages": "constant text and shared sub-prompts, then chunk, then question: one prefix for many"
    " requests",
    "max_tokens": "bounds the answer, and in Thinking the thinking in front of it; the older name,"
    " since Moonshot does not take `max_completion_tokens`",
    "temperature": "as the model's maker advises for the mode; never where the host fixes it",
    "top_p": "as the model's maker advises for the mode; never where the host fixes it",
    "chat_template_kwargs": "switches Thinking off under vLLM and SGLang: the template of K2.5 reads"
    " `thinking` and nothing else, that of K3 `thinking_effort`",
    "reasoning_effort": "how much Kimi K3 thinks on Moonshot's API, where it cannot be switched off",
    "thinking": "switches Thinking off on Moonshot's API",
    "thinking_token_budget": "ends the thinking by force, so that it cannot eat the answer's tokens;"
    " only where the host takes it",
    "response_format": "constrains the answer to the stage's JSON Schema; with a reasoning parser the"
    " grammar begins after the thinking",
    "tools": "what an agent may call; rendered in front of everything, so the same in every turn",
    "tool_choice": "`none` where an agent has to answer: the tools stay in the prompt and its prefix;"
    " `required` in the turns that must call a tool",
    "stream": "shows a stall and the first token; the answer is the same",
    "stream_options": "asks for the usage, which a stream leaves out otherwise",
    "stream_interval": "lets vLLM gather tokens into fewer events",
    "priority": "keeps the requests about one chunk together in the server's queue (lower is"
    " earlier)",
}
"""Every field that may be sent, with its reason; docs/modes.md shows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One call to be made for a request."""

    mode: ModeName
    messages: Sequence[Message]
    max_tokens: int
    """Most tokens generated, thinking included."""
    thinking_tokens: int | None = None
    """Most tokens of thinking, where the host can be told."""
    schema: JsonSchema | None = None
    """What the answer must follow; None for plain text."""
    tools: Sequence[ToolSpec] = ()
    """What may be called; they stand in front of the prompt, so they stay the same in all turns."""
    may_call: bool = True
    """Whether a tool may be called in this turn."""
    must_call: bool = False
    """Whether one must be called, where the host can force it; only beside `may_call`."""


def body_of(turn: Turn, request: Request, endpoint: Endpoint) -> dict[str, Any]:
    """Return the JSON of a call; nothing in it that the host refuses."""
    profile, can = endpoint.profile, endpoint.profile.capabilities
    settings = profile.modes[turn.mode]
    body: dict[str, Any] = {
        "model": request.adapter or endpoint.model,
        "messages": turn.messages,
        "max_tokens": turn.max_tokens,
        **settings.sampling,
        **settings.wire,
    }
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if turn.thinking_tokens is not None and can.thinking_budget:
        body["thinking_token_budget"] = turn.thinking_tokens
    if turn.schema is not None and can.structured_output:
        # Not the stage's name: the same question is the same bytes, whoever asks it.
        schema = {"name": "answer", "schema": dict(turn.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if turn.tools:
        body["tools"] = [_declared(spec, strict=can.strict_tools) for spec in turn.tools]
        body["tool_choice"] = _choice(turn, can_force=can.forced_calls)
    is_forced = body.get("tool_choice") == "required"
    if can.stream and (can.stream_forced_calls or not is_forced):
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        if can.stream_interval is not None:
            body["stream_interval"] = can.stream_interval
    return {name: value for name, value in body.items() if name not in profile.refuses}


def _choice(turn: Turn, *, can_force: bool) -> str:
    if not turn.may_call:
        return "none"
    return "required" if turn.must_call and can_force else "auto"


def _declared(spec: ToolSpec, *, strict: bool) -> dict[str, Any]:
    function: dict[str, Any] = {
        "name": spec.name,
        "description": spec.description,
        "parameters": dict(spec.parameters),
    }
    # vLLM builds the grammar of calls with xgrammar, whatever builds that of answers, and refuses a schema that
    # it cannot express (0.32, tool_parsers/structural_tag_registry.py): such a tool is checked here alone.
    if strict and inexpressible(spec.parameters, "xgrammar") is None:
        function["strict"] = True
    return {"type": "function", "function": function}


def opening(request: Request, endpoint: Endpoint) -> Turn:
    """Return a request's first call: for its answer, or to think on a host without a switch."""
    profile = endpoint.profile
    text = request.material, request.question, request.schema
    messages = opening_messages(request, opening_text(*text, mode=request.mode, profile=profile))
    if thinks_aloud(request.mode, profile):
        return Turn(mode="thinking", messages=messages, max_tokens=request.max_reasoning_tokens)
    think = request.limits is None or request.limits.think
    mode = profile.turn_mode(request.mode, think=think)
    thinking = request.max_reasoning_tokens if mode == "thinking" else 0
    return answering(request, mode, messages, thinking_tokens=thinking)


def answering(
    request: Request, mode: ModeName, messages: Sequence[Message], *, thinking_tokens: int = 0
) -> Turn:
    """Return a call for the request's answer; tokens for thinking come on top of the answer's."""
    return Turn(
        mode=mode,
        messages=messages,
        max_tokens=request.max_output_tokens + thinking_tokens,
        thinking_tokens=thinking_tokens if mode == "thinking" else None,
        schema=request.schema,
    )


def thinks_aloud(mode: ModeName, profile: Profile) -> bool:
    """Tell whether a request in a mode begins with a turn that only thinks: its host has no switch."""
    return mode == "thinking" and profile.modes["thinking"].by == "prompt"


def opening_text(
    material: str,
    question: str,
    schema: Mapping[str, Any] | None,
    *,
    mode: ModeName,
    profile: Profile,
) -> str:
    """Return what a request's first call says to the model behind the instructions.

    The schema is in it where no grammar enforces it, and for agents, whose turns have none.
    """
    if thinks_aloud(mode, profile):
        return user_text(material, f"{question.strip()}\n{THINK}")
    enforced = profile.capabilities.structured_output and mode not in {"agent", "swarm"}
    return user_text(material, question, None if enforced else schema)


def prompt_overhead(
    endpoint: Endpoint,
    instructions: str,
    question: str,
    schema: Mapping[str, Any],
    *,
    mode: ModeName,
) -> int:
    """Return the tokens a prompt needs beside its material, room for one repair included.

    The thinking in front of an answer is not in it.
    """
    profile = endpoint.profile
    asked = opening_text("", question, schema, mode=mode, profile=profile)
    texts = [instructions, asked, repair_text("x" * 200)]
    if thinks_aloud(mode, profile):
        texts.append(answer_text(None if profile.capabilities.structured_output else schema))
    return sum(endpoint.counter.count_many(texts)) + TEMPLATE_MARGIN_TOKENS


THINK = (
    "First think about it step by step, in plain sentences, and name the lines you rest on."
    " The answer itself is asked for afterwards."
)


def opening_messages(request: Request, text: str) -> list[Message]:
    """Return the messages that a request begins with; `text` is the user's, behind the images."""
    content: object = text
    if request.images:
        images = [
            {"type": "image_url", "image_url": {"url": _data_url(path.read_bytes())}}
            for path in request.images
        ]
        content = [*images, {"type": "text", "text": text}]
    return [
        {"role": "system", "content": request.instructions},
        {"role": "user", "content": content},
    ]


def _data_url(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
