"""What a reply shows: which mode it was answered in, why we think so, and what is left to use.

Hosts and parsers differ, and fail, in how they tell thinking from the answer. What can be sorted out
is sorted out here; what was found is named by a note, which goes into the record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from engine.reply import Reply
from engine.request import ModeName

NOTES: Mapping[str, str] = {
    "leaked_thinking": "thinking stood in the content, up to `</think>`: the host has no reasoning"
    " parser; it was cut off",
    "leaked_tag": "an empty `<think></think>` stood in front of the answer; it was cut off",
    "unfinished_thinking": "the content was thinking without an end: no answer came",
    "leaked_tool_call": "marks of a tool call stood in the content: the host has no tool parser; they"
    " were cut off",
    "answer_in_reasoning": "the answer came as reasoning and the content was empty: the host's"
    " reasoning parser does not fit the mode; it was taken from there",
    "thought_in_instant": "reasoning came with an Instant reply: the host ignores the switch",
    "no_thinking": "no reasoning came with a Thinking reply: the host did not think, or does not"
    " show it",
    "hidden_thinking": "the host counts reasoning tokens and does not show the reasoning",
    "degenerate": "one character over and over: a broken kernel or quantisation on the host",
    "empty": "neither an answer nor a tool call came; it was asked again",
    "more_budget": "thinking ate the token budget; it was asked again with twice as much",
    "fell_to_instant": "thinking did not end within the budget; it was asked again in Instant",
    "thought_by_prompt": "the model has no switch: it was asked to think in a turn of its own",
    "stopped_early": "an agent had to answer with what it had, at a limit or because it had lost its way;"
    " the usage table says why (`stopped`)",
    "called_after_the_end": "a tool was called when no more calls were allowed; the call was left out",
    "repaired": "the first answer did not follow the schema; it was asked again with the error",
}
"""Every note, with what it means."""

_OPEN, _CLOSE = "<think>", "</think>"
_TOOL_MARKS = ("<|tool_calls_section_begin|>", "<|tool_call_begin|>")
_LEAST_DEGENERATE = 16
_MAX_BRACES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One reply, sorted out."""

    mode: ModeName | None
    """The mode that it shows; None where it shows nothing."""
    answer: str
    """The content, without thinking and marks; empty where there is no answer."""
    reasoning: str
    finish_reason: str
    reasoning_tokens: int | None
    notes: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Tell whether it ended by itself and left nothing to use."""
        return not self.answer and self.finish_reason != "length"

    def ate_budget(self, thinking_tokens: int) -> bool:
        """Tell whether it was cut because of its thinking, not of the answer's length."""
        if self.finish_reason != "length" or self.mode != "thinking":
            return False
        return not self.answer or (self.reasoning_tokens or 0) > thinking_tokens


def look(reply: Reply, asked: ModeName) -> Sight:
    """Return what the reply shows, asked for in mode `asked`."""
    notes: list[str] = []
    answer, reasoning = reply.content.strip(), reply.reasoning.strip()
    if not _is_json(answer):
        answer, reasoning = _cut_thinking(answer, reasoning, notes)
        answer = _cut_tool_marks(answer, notes)
    if len(answer) >= _LEAST_DEGENERATE and len(set(answer)) == 1:
        answer = ""
        notes.append("degenerate")
    if not answer and reasoning and reply.finish_reason != "length":
        answer, reasoning = _answer_in(reasoning, asked, notes)
    if not answer and reply.finish_reason != "length":
        notes.append("empty")
    counted = reply.usage.reasoning_tokens if reply.usage else None
    mode = _mode(asked, answer, reasoning, counted=counted, notes=notes)
    return Sight(
        mode=mode,
        answer=answer,
        reasoning=reasoning,
        finish_reason=reply.finish_reason,
        reasoning_tokens=counted,
        notes=tuple(notes),
    )


def _is_json(text: str) -> bool:
    """Tell whether the text is a JSON object, so that marks in its strings are the document's."""
    if not text.startswith("{"):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _cut_thinking(answer: str, reasoning: str, notes: list[str]) -> tuple[str, str]:
    if _CLOSE in answer:
        thought, _, answer = answer.rpartition(_CLOSE)
        thought = thought.removeprefix(_OPEN).strip()
        notes.append("leaked_thinking" if thought else "leaked_tag")
        return answer.strip(), "\n".join(filter(None, [reasoning, thought]))
    if answer.startswith(_OPEN):
        notes.append("unfinished_thinking")
        return "", "\n".join(filter(None, [reasoning, answer.removeprefix(_OPEN).strip()]))
    return answer, reasoning


def _cut_tool_marks(answer: str, notes: list[str]) -> str:
    found = [answer.find(mark) for mark in _TOOL_MARKS if mark in answer]
    if not found:
        return answer
    notes.append("leaked_tool_call")
    return answer[: min(found)].strip()


def _answer_in(reasoning: str, asked: ModeName, notes: list[str]) -> tuple[str, str]:
    """Return the JSON object that the reasoning is, or in Thinking ends with, and what is before it."""
    starts = [index for index, char in enumerate(reasoning) if char == "{"]
    for start in starts[:1] if asked == "instant" else starts[-_MAX_BRACES:]:
        if _is_json(reasoning[start:].removesuffix("```").rstrip()):
            notes.append("answer_in_reasoning")
            before = reasoning[:start].strip()
            return reasoning[start:].removesuffix("```").rstrip(), before
    return "", reasoning


def _mode(
    asked: ModeName, answer: str, reasoning: str, *, counted: int | None, notes: list[str]
) -> ModeName | None:
    if not answer and not reasoning and not counted:
        return None
    thought = bool(reasoning or counted)
    if asked == "instant":
        if thought:
            notes.append("thought_in_instant")
    elif not thought:
        notes.append("no_thinking")
    elif not reasoning:
        notes.append("hidden_thinking")
    return "thinking" if thought else "instant"
