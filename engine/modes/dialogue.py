"""The calls made for one question, in Instant and Thinking alike: ask, look, judge, repair once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema

from engine.endpoint import Endpoint
from engine.modes.mode import Ending, Send
from engine.modes.sight import Sight, look
from engine.prompt import repair_text, summary_text
from engine.request import JsonSchema, ModeName, Request
from engine.wire import Message, Turn, answering, body_of

MAX_EMPTY_TRIES = 2
"""Further calls after an empty or degenerate reply. Some hosts end a turn right after the thinking
(MoonshotAI/Kimi-K2#128) or answer 200 with nothing under load (fireworks.ai, Kimi K2.5)."""
SUMMARY_TOKENS = 160

_FENCED = re.compile(r"```(?:json)?\s*(\{.*\})\s*```", re.DOTALL)


class Dialogue:
    """One request in work: what was seen so far, and the next call."""

    def __init__(self, request: Request, endpoint: Endpoint, send: Send) -> None:
        self._request = request
        self._endpoint = endpoint
        self._send = send
        self._notes: list[str] = []
        self._reasoning: list[str] = []
        self._observed: ModeName | None = None

    def note(self, note: str) -> None:
        """Keep a note for the record."""
        if note not in self._notes:
            self._notes.append(note)

    async def ask(self, turn: Turn) -> Sight:
        """Return what the reply to one turn shows; an empty one is asked for again."""
        body = body_of(turn, self._request, self._endpoint)
        # Plain text is an answer in itself, whatever it is for: nothing is to come in front of it.
        asked = turn.mode if turn.schema is not None else "instant"
        for _ in range(1 + MAX_EMPTY_TRIES):
            reply = await self._send(body)
            sight = look(reply, asked)
            for name in sight.notes:
                self.note(name)
            if not sight.is_empty:
                break
        return sight

    def saw(self, sight: Sight) -> None:
        """Take a sight as what counts: its mode is the observed one, its reasoning is kept."""
        if sight.reasoning:
            self._reasoning.append(sight.reasoning)
        if self._observed != "thinking":
            self._observed = sight.mode

    def thought_aloud(self, sight: Sight) -> None:
        """Take an answer in plain text as the thinking."""
        text = "\n".join(filter(None, [sight.reasoning, sight.answer]))
        if text:
            self._reasoning.append(text)
            self._observed = "thinking"
            self.note("thought_by_prompt")

    async def conclude(
        self, messages: Sequence[Message], sight: Sight, *, repair_mode: ModeName
    ) -> Ending:
        """Return the end of the request, after one repair where the answer is not valid."""
        self.saw(sight)
        output, error_class, error = judge(self._request, sight)
        if error is not None and error_class not in {"length", "empty"}:
            self.note("repaired")
            again = [
                *messages,
                {"role": "assistant", "content": sight.answer},
                {"role": "user", "content": repair_text(error)},
            ]
            thinking = self._request.max_reasoning_tokens if repair_mode == "thinking" else 0
            turn = answering(self._request, repair_mode, again, thinking_tokens=thinking)
            sight = await self.ask(turn)
            self.saw(sight)
            output, error_class, error = judge(self._request, sight)
        return Ending(
            outcome="succeeded" if error is None else "invalid_output",
            output=output,
            error_class=error_class,
            error=error,
            mode_observed=self._observed,
            mode_notes=tuple(self._notes),
            reasoning=await self._told_reasoning(repair_mode),
            finish_reason=sight.finish_reason or None,
        )

    async def _told_reasoning(self, mode: ModeName) -> str | None:
        """Return the reasoning as the request's policy wants it."""
        whole = "\n\n".join(self._reasoning)
        if not whole or self._request.reasoning == "drop":
            return None
        if self._request.reasoning == "keep" or mode != "instant":
            return whole
        question = [{"role": "user", "content": summary_text(whole)}]
        told = await self.ask(Turn(mode=mode, messages=question, max_tokens=SUMMARY_TOKENS))
        return told.answer or whole


def judge(
    request: Request, sight: Sight
) -> tuple[Mapping[str, Any] | None, str | None, str | None]:
    """Return the answer, or the class and text of what is wrong with it."""
    text = sight.answer
    if sight.finish_reason == "length":
        return None, "length", _too_long(request, sight)
    return judge_text(request.schema, text)


def judge_text(
    schema: JsonSchema, text: str
) -> tuple[Mapping[str, Any] | None, str | None, str | None]:
    """Return the answer that a text is, or the class and text of what is wrong with it."""
    if not text:
        return None, "empty", "the answer is empty"
    fenced = _FENCED.search(text)
    try:
        output = json.loads(fenced.group(1) if fenced else text)
        wrong = misfit(schema, output)
    except (ValueError, RecursionError) as exc:
        # Not only JSONDecodeError: an integer of more than 4,300 digits is a ValueError of Python's.
        return None, "not_json", f"it is not JSON: {exc}"
    return (output, None, None) if wrong is None else (None, "schema", wrong)


def misfit(schema: JsonSchema, output: Any) -> str | None:  # noqa: ANN401 - any JSON
    """Return where and why an answer does not follow the schema; None where it does.

    Raises:
        RecursionError: It is too deep to be looked at.
    """
    # Not `jsonschema.validate`, which checks the schema itself each time, at 20 times the cost;
    # that was done when the pipeline was loaded.
    kind = jsonschema.validators.validator_for(schema)
    wrong = jsonschema.exceptions.best_match(kind(dict(schema)).iter_errors(output))
    return None if wrong is None else f"{wrong.json_path}: {wrong.message}"[:300]


def _too_long(request: Request, sight: Sight) -> str:
    if not sight.answer and sight.mode == "thinking":
        return (
            f"thinking did not end within {request.max_reasoning_tokens:,} tokens (stage key"
            " max_reasoning_tokens); raise it, or use mode instant"
        )
    return f"the answer was cut at max_output_tokens = {request.max_output_tokens}; raise it"
