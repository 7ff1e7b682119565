"""A reply, put together from one completion or from the events of a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.request import Usage

ABORTED = frozenset({"abort", "error"})
"""Finish reasons of a server that gave up, such as vLLM when it is shut down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call of a tool as the model wrote it; nothing in it is checked."""

    call_id: str
    name: str
    arguments: str
    """Meant to be a JSON object; may be anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back from one call."""

    content: str
    reasoning: str = ""
    """Thinking that the host returned beside the content; empty where there is none."""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str
    usage: Usage | None
    """None where the host sent none, or one that cannot be."""
    first_token_s: float | None = None
    """Seconds until the first event; None where the answer came in one piece."""
    decoding_s: float | None = None
    """Seconds from there to the end; None where the answer came in one piece."""
    cost_usd: float | None = None
    """Price of the usage; None where it is not known."""
    gpu_seconds: float | None = None


class Assembly:
    """Gathers the pieces of one answer."""

    def __init__(self) -> None:
        self.finish_reason = ""
        self.num_events = 0
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, list[str]] = {}
        self._usage: Mapping[str, Any] | None = None

    def add_completion(self, data: Mapping[str, Any]) -> None:
        """Take a whole completion."""
        choice = data["choices"][0]
        self._usage = data.get("usage")
        self._take(choice["message"])
        self.finish_reason = str(choice.get("finish_reason") or "")

    def add_event(self, event: Mapping[str, Any]) -> None:
        """Take one event of a stream."""
        self.num_events += 1
        usage = event.get("usage")
        if usage:
            self._usage = usage
        # The last event of vLLM and OpenAI has the usage and no choice.
        choices = event["choices"]
        if not choices:
            return
        choice = choices[0]
        self._take(choice.get("delta") or {})
        if choice.get("finish_reason"):
            self.finish_reason = str(choice["finish_reason"])
        # Moonshot puts the usage into the last choice.
        if choice.get("usage"):
            self._usage = choice["usage"]

    def _take(self, message: Mapping[str, Any]) -> None:
        content = message.get("content")
        if content:
            self._content.append(_text(content))
        # vLLM says `reasoning`, SGLang and Moonshot `reasoning_content`.
        reasoning = message.get("reasoning") or message.get("reasoning_content")
        if reasoning:
            self._reasoning.append(_text(reasoning))
        for number, call in enumerate(message.get("tool_calls") or ()):
            known = self._calls.setdefault(int(call.get("index", number)), ["", "", ""])
            function = call.get("function") or {}
            known[0] = str(call.get("id") or known[0])
            known[1] += str(function.get("name") or "")
            known[2] += _arguments(function.get("arguments"))

    def reply(self, *, first_token_s: float | None, decoding_s: float | None = None) -> Reply:
        """Return what has been gathered."""
        return Reply(
            content="".join(self._content),
            reasoning="".join(self._reasoning),
            tool_calls=tuple(
                ToolCall(call_id=call_id, name=name, arguments=arguments)
                for _, (call_id, name, arguments) in sorted(self._calls.items())
            ),
            finish_reason=self.finish_reason,
            usage=read_usage(self._usage, has_text=bool(self._content or self._reasoning)),
            first_token_s=first_token_s,
            decoding_s=decoding_s,
        )


def read_usage(value: object, *, has_text: bool) -> Usage | None:
    """Return the usage a host reported; None where it is missing or cannot be.

    Counts that contradict themselves are dropped: no prompt, a negative number, more tokens cached
    or thought than there were, or no output though there is text.
    """
    if not isinstance(value, Mapping):
        return None
    prompt = _count(value.get("prompt_tokens"))
    completion = _count(value.get("completion_tokens"))
    if not prompt or completion is None or (has_text and not completion):
        return None
    # Moonshot says `cached_tokens` beside the others, vLLM and OpenAI in the details.
    cached = _count(
        _detail(value, "prompt_tokens_details", "cached_tokens", value.get("cached_tokens"))
    )
    thought = _count(_detail(value, "completion_tokens_details", "reasoning_tokens", None))
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=cached if cached is not None and cached <= prompt else None,
        completion_tokens=completion,
        reasoning_tokens=thought if thought is not None and thought <= completion else None,
    )


def _detail(usage: Mapping[str, Any], group: str, name: str, otherwise: object) -> object:
    details = usage.get(group)
    found = details.get(name) if isinstance(details, Mapping) else None
    return found if found is not None else otherwise


def _count(value: object) -> int | None:
    """Return a count; None for what is none, such as -1, true or "12"."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if value >= 0 and float(value).is_integer() else None


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return "".join(str(part.get("text", "")) for part in value if isinstance(part, Mapping))
    return str(value)


def _arguments(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)
