"""Notices that an agent goes round in circles, learns nothing new, or has lost sight of its goal."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from engine.modes.agent.calls import arguments_of
from engine.modes.agent.conversation import Step

_SAME_CALL = 3
"""Times that a call with the same arguments may return the same within a window."""
_WINDOW = 12
"""Calls looked at."""
_NOTHING_NEW = 8
"""Calls in a row whose results had all been seen before."""
_MISWRITTEN = frozenset({"undeclared", "not_json", "schema"})
_GOAL_WINDOW_WORDS = 400
"""Least words of the model's own that are compared with the goal; fewer say little."""
_MIN_WORD = 5
_WORD = re.compile(rf"\w{{{_MIN_WORD},}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Why an agent seems to have left its way."""

    kind: str
    """repeated_call, nothing_new or off_goal."""
    why: str
    """For the model and the record."""


def find_drift(steps: Sequence[Step], goal: str) -> Drift | None:
    """Return what is wrong with the last steps since the agent was last told something; None where nothing is.

    Calls of one turn whose results differ are work, however alike they look.
    """
    since = _since_nudge(steps)
    calls = [mark for step in since for mark in _marks(step)]
    if calls:
        (same, _), times = Counter(calls[-_WINDOW:]).most_common(1)[0]
        if times >= _SAME_CALL:
            return Drift(
                kind="repeated_call",
                why=f"the call {same[:200]!r} was made {times} times and always returned the same",
            )
    if len(calls) >= _NOTHING_NEW:
        before = {result for _, result in calls[:-_NOTHING_NEW]}
        if before and all(result in before for _, result in calls[-_NOTHING_NEW:]):
            return Drift(
                kind="nothing_new", why=f"the last {_NOTHING_NEW} calls returned nothing new"
            )
    return _off_goal(since, goal)


def _marks(step: Step) -> Sequence[tuple[str, bytes]]:
    """Return a step's calls with hashes of what they returned."""
    if step.marks is not None:
        return step.marks
    marks = [
        (f"{call.name} {_canonical(call.arguments)}", _digest(step.returned[call.call_id].text))
        for call in step.turn.calls
        if call.call_id in step.returned
        # A call that was only written badly is no sign: it happens to one in eight.
        and step.returned[call.call_id].failure not in _MISWRITTEN
    ]
    if not step.pending:
        # Kept, since all steps are looked at before each turn and results are long.
        step.marks = marks
    return marks


def _off_goal(steps: Sequence[Step], goal: str) -> Drift | None:
    """Compare words: crude, and therefore only where a long stretch shares none at all with the goal."""
    wanted = set(_words(goal))
    said: list[str] = []
    for step in reversed(steps):
        said += _words(f"{step.turn.content} {step.turn.reasoning}")
        said += _words(" ".join(call.arguments for call in step.turn.calls))
        if len(said) >= _GOAL_WINDOW_WORDS:
            break
    if not wanted or len(said) < _GOAL_WINDOW_WORDS or wanted & set(said):
        return None
    return Drift(
        kind="off_goal", why="what you last thought and asked has nothing of the goal in it"
    )


def _since_nudge(steps: Sequence[Step]) -> Sequence[Step]:
    for number in range(len(steps) - 1, -1, -1):
        if steps[number].nudge is not None:
            return steps[number + 1 :]
    return steps


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _canonical(arguments: str) -> str:
    value, _ = arguments_of(arguments)
    return json.dumps(value, sort_keys=True) if value is not None else arguments


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
