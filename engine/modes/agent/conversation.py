"""An agent's conversation: its events folded into what is sent next, and into figures."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.modes.agent.calls import arguments_of
from engine.modes.agent.words import NOTES_HEAD
from engine.steps import (
    AskedCall,
    Begun,
    Compacted,
    Decided,
    Event,
    Nudged,
    Returned,
    Turned,
    call_number,
)
from engine.wire import Message

_NO_REASONING = "(none)"
"""Moonshot answers 400 where a turn with calls has no reasoning while thinking is on."""
_LABEL = re.compile(r"\bD\d{1,7}L\d{1,8}\b")
_MAX_KEPT_LABELS = 200
_CUT_CHARS = 1_000
_LEFT_OUT = "left out: it did not fit"


@dataclass(slots=True, kw_only=True)
class Step:
    """One turn of the model, and what came of its calls."""

    turn: Turned
    returned: dict[str, Returned] = field(default_factory=dict)
    nudge: Nudged | None = None
    """What was said after it."""
    marks: Sequence[tuple[str, bytes]] | None = None
    """Its calls, and hashes of what they returned, once somebody has asked for them (agent.drift)."""

    @property
    def pending(self) -> list[AskedCall]:
        """Return the calls that have not ended."""
        return [call for call in self.turn.calls if call.call_id not in self.returned]


class Conversation:
    """What one agent has said and done, in order."""

    def __init__(self, system: str, task: str, *, result_chars: int) -> None:
        """Begin with the task.

        Args:
            system: Instructions, in front of everything.
            task: Material and question.
            result_chars: Most characters of one result that are shown.
        """
        self._system, self._task = system, task
        self._result_chars = result_chars
        self.steps: list[Step] = []
        self._first_shown = 0
        self._notes = ""
        self.begun: set[str] = set()
        self.decisions: dict[str, Decided] = {}
        self.num_compactions = 0
        self.num_calls = 0
        self.num_failed = 0
        self.nudges: list[Nudged] = []

    def take(self, event: Event) -> None:
        """Take the next event."""
        match event:
            case Turned():
                self.steps.append(Step(turn=event))
                self.num_calls += len(event.calls)
            case Begun():
                self.begun.add(event.call_id)
            case Decided():
                self.decisions[event.call_id] = event
            case Returned():
                self.steps[-1].returned[event.call_id] = event
                self.num_failed += event.failure is not None
            case Nudged():
                self.nudges.append(event)
                if self.steps:
                    self.steps[-1].nudge = event
                if not self.num_shown:
                    self._notes = f"{self._notes}\n\n{event.text}".strip()
            case Compacted():
                self._notes = f"{event.notes.strip()}{self._labels_beside(event.notes)}"
                self._first_shown = len(self.steps)
                self.num_compactions += 1
                self._say_again()
            case _:
                pass

    def _say_again(self) -> None:
        """Keep what the agent was told after its last turn: the notes have taken the place of that turn."""
        nudge = self.steps[-1].nudge if self.steps else None
        if nudge is not None and nudge.text not in self._notes:
            self._notes = f"{self._notes}\n\n{nudge.text}".strip()

    def _labels_beside(self, notes: str) -> str:
        """Return the labels that the model has named and the notes leave out: citations must not get lost."""
        said = " ".join([
            self._notes,
            *(s.turn.content for s in self._shown()),
            *_arguments(self._shown()),
        ])
        left_out = dict.fromkeys(_LABEL.findall(said))
        for label in _LABEL.findall(notes):
            left_out.pop(label, None)
        kept = list(left_out)[-_MAX_KEPT_LABELS:]
        return f"\nFurther lines you named: {', '.join(kept)}" if kept else ""

    def _shown(self) -> Sequence[Step]:
        return self.steps[self._first_shown :]

    @property
    def num_shown(self) -> int:
        """Return how many steps are sent as they are, not as notes."""
        return len(self.steps) - self._first_shown

    def messages(self) -> list[Message]:
        """Return what is sent: instructions, task, notes, and the steps that follow them."""
        task = f"{self._task}\n\n{NOTES_HEAD}\n{self._notes}" if self._notes else self._task
        messages: list[Message] = [
            {"role": "system", "content": self._system},
            {"role": "user", "content": task},
        ]
        for step in self._shown():
            messages += self._messages_of(step)
        return messages

    def _messages_of(self, step: Step) -> list[Message]:
        turn = step.turn
        said: dict[str, object] = {"role": "assistant", "content": turn.content}
        if turn.calls:
            # Hosts render a turn's reasoning for as long as its calls are being answered. vLLM takes either
            # of the two names, SGLang and Moonshot this one.
            said["reasoning_content"] = turn.reasoning or _NO_REASONING
            said["tool_calls"] = [_call_message(call) for call in turn.calls]
        messages: list[Message] = []
        if turn.content or turn.calls:
            messages.append(said)
        for call in turn.calls:
            returned = step.returned[call.call_id]
            text = self._shown_result(call, returned.text)
            messages.append({"role": "tool", "tool_call_id": call.call_id, "content": text})
        if step.nudge is not None:
            messages.append({"role": "user", "content": step.nudge.text})
        return messages

    def _shown_result(self, call: AskedCall, text: str) -> str:
        if len(text) <= self._result_chars:
            return text or "(nothing)"
        return (
            f"{text[: self._result_chars]}\n[{len(text):,} characters in all; read on with read_result,"
            f" handle {handle_of(call.call_id)!r}, offset {self._result_chars}]"
        )

    def newest(self, max_chars: int) -> str:
        """Return notes so far and what the last steps said and found, cut to a length.

        These are the notes where no model can write them. Notes so far begin with goal and plan, so they are
        cut at their end; where there are steps as well they get half of the room.
        """
        most = max_chars // 2 if self.num_shown else max_chars
        notes = self._notes
        if len(notes) > most:
            notes = f"{notes[:most]}\n({_LEFT_OUT})"
        told: list[str] = []
        left = max_chars - min(len(self._notes), most)
        for step in reversed(self._shown()):
            lines = [step.turn.content] if step.turn.content else []
            for call in step.turn.calls:
                text = step.returned[call.call_id].text
                lines.append(f"{call.name}({call.arguments[:_CUT_CHARS]}): {text[:_CUT_CHARS]}")
            part = "\n".join(lines)
            if len(part) > left:
                # Something of the very last step is better than nothing.
                told += [] if told else [part[:left]]
                told.append(f"(what was done before this is {_LEFT_OUT})")
                break
            told.append(part)
            left -= len(part)
        return "\n".join([*filter(None, [notes]), *reversed(told)])

    @property
    def num_note_chars(self) -> int:
        """Return how long the notes are."""
        return len(self._notes)

    def result(self, handle: str) -> str | None:
        """Return a whole result by its handle; None where there is none such."""
        for step in self.steps:
            for call_id, returned in step.returned.items():
                if handle_of(call_id) == handle:
                    return returned.text
        return None


def handle_of(call_id: str) -> str:
    """Return the name under which the model can page through a call's result."""
    return f"R{call_number(call_id)}"


def _call_message(call: AskedCall) -> Message:
    arguments, _ = arguments_of(call.arguments)
    # Broken ones would break the host's template; what was wrong stands in the result.
    text = json.dumps(arguments or {}, ensure_ascii=False)
    return {
        "id": call.call_id,
        "type": "function",
        "function": {"name": call.name, "arguments": text},
    }


def _arguments(steps: Sequence[Step]) -> list[str]:
    return [call.arguments for step in steps for call in step.turn.calls]
