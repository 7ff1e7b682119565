"""One agent at work: a turn of the model, its calls, and so on until there is an answer.

All it knows is in its events, so that it goes on where it was after a kill, on another machine, or on another
engine. `carry_out` of the agent mode and each sub-agent of a swarm are one of these.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from engine.endpoint import Endpoint
from engine.errors import RequestTooLong
from engine.modes.agent.calls import leaked_calls, named_calls
from engine.modes.agent.conversation import Conversation, Step
from engine.modes.agent.drift import Drift, find_drift
from engine.modes.agent.execution import Calls
from engine.modes.agent.reading import READ_RESULT
from engine.modes.agent.words import (
    ANSWER_NOW,
    ANSWER_WITH_WHAT_YOU_HAVE,
    COMPACT,
    EMPTY,
    HANDED_OVER,
    REORIENT,
    REPORT_NOW,
    REPORT_WITH_WHAT_YOU_HAVE,
)
from engine.modes.dialogue import MAX_EMPTY_TRIES, judge_text
from engine.modes.mode import Ending, HandedOver, Means
from engine.modes.sight import look
from engine.prompt import shown_schema
from engine.reply import Reply
from engine.request import AgentLimits, JsonSchema, ModeName, Request, Usage, Work
from engine.steps import Compacted, Event, Nudged, Turned
from engine.wire import Message, Turn, body_of

_FULL = 0.8
"""Share of the context at which a conversation is put into notes; the rest is for them and the results of one
more turn."""
_NOTES_TOKENS = 4_000
_CHARS_PER_TOKEN = 2.0
"""Fewer than any text has but for one in Chinese and the like: so that what is cut here fits for certain."""
_LEAST_NOTES_CHARS = 500
"""Notes are cut no further where a host refuses them as too long."""
_LAST = frozenset({"stopped", "answer"})
"""Nudges after which nothing is called any more."""
_MAX_ANSWERS = 2
"""Times that the answer is asked for in its form."""
_MAX_EMPTY_NUDGES = 5
_STEPS_FOR_ANSWER = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What one agent has to do."""

    key: str
    """Its events are kept under it."""
    system: str
    task: str
    goal: str
    """What it is reminded of."""
    limits: AgentLimits
    schema: JsonSchema | None
    """Of the answer; None for a report in plain text."""


class AgentRun:
    """Carries out one assignment."""

    def __init__(
        self, assignment: Assignment, request: Request, endpoint: Endpoint, means: Means
    ) -> None:
        """Go on from what is on record.

        Args:
            assignment: What to do.
            request: Whose limits of tokens, adapter and temperature hold.
            endpoint: Where turns are sent.
            means: Tools and log.
        """
        self.assignment = assignment
        self._request, self._endpoint, self._means = request, endpoint, means
        self._limits = assignment.limits
        self._specs = {spec.name: spec for spec in (*means.tools.specs, READ_RESULT)}
        self.conversation = Conversation(
            assignment.system, assignment.task, result_chars=self._limits.result_chars
        )
        for event in means.steps.events(assignment.key):
            self.conversation.take(event)
        self._mode = endpoint.profile.turn_mode("agent", think=self._limits.think)
        # Under its own key: the calls of two sub-agents may be the same to the letter.
        asker = replace(request, request_key=assignment.key)
        self._calls = Calls(asker, means, self._specs, self.conversation, self._limits, self._add)

    async def run(self) -> Ending:
        """Return how it ended.

        Raises:
            HandedOver: Another engine is to go on.
        """
        while True:
            step = self._last()
            if step is not None and step.pending:
                await self._calls.run(step)
            elif step is not None and (self._is_answer(step) or not self._may_turn):
                ending = await self._judged(step)
                if ending is not None:
                    return ending
            else:
                await self._look_before()
                await self._turn()

    @staticmethod
    def _is_answer(step: Step) -> bool:
        return not step.turn.calls and step.nudge is None

    @property
    def _may_turn(self) -> bool:
        return len(self.conversation.steps) < self._limits.max_steps

    def _last(self) -> Step | None:
        steps = self.conversation.steps
        return steps[-1] if steps else None

    async def _add(self, event: Event) -> None:
        await self._means.steps.add(self.assignment.key, event)
        self.conversation.take(event)

    # One turn

    async def _turn(self) -> None:
        # A turn that brought neither call nor answer does not open the tools again.
        nudges = self.conversation.nudges
        is_last = bool(nudges) and nudges[-1].why in _LAST
        started = time.monotonic()
        reply: Reply | None = None
        max_chars = self._half_context_chars
        while reply is None:
            try:
                reply = await self._send(self.conversation.messages(), may_call=not is_last)
            except RequestTooLong:
                # The host counts otherwise than we do, or another one with more context was at work before.
                if not self._can_shorten(max_chars):
                    raise
                await self._shorten(max_chars)
                max_chars //= 2
        await self._add(self._turned(reply, time.monotonic() - started, may_call=not is_last))

    async def _send(self, messages: list[Message], *, may_call: bool) -> Reply:
        thinking = self._request.max_reasoning_tokens if self._mode == "thinking" else 0
        turn = Turn(
            mode=self._mode,
            messages=messages,
            max_tokens=self._request.max_output_tokens + thinking,
            thinking_tokens=thinking or None,
            schema=None if may_call else self.assignment.schema,
            tools=tuple(self._specs.values()),
            may_call=may_call,
            must_call=len(self.conversation.steps) < self._limits.opening_calls,
        )
        return await self._means.send(body_of(turn, self._request, self._endpoint))

    def _turned(self, reply: Reply, seconds: float, *, may_call: bool) -> Turned:
        sight = look(reply, self._mode)
        notes = [note for note in sight.notes if not (note == "empty" and reply.tool_calls)]
        calls = reply.tool_calls
        if not calls and "leaked_tool_call" in notes:
            calls = leaked_calls(reply.content)
        if calls and not may_call:
            notes.append("called_after_the_end")
            calls = ()
        assert reply.usage is not None
        return Turned(
            content=sight.answer,
            reasoning=sight.reasoning,
            calls=named_calls(calls, self.conversation.num_calls),
            finish_reason=reply.finish_reason,
            notes=tuple(notes),
            usage=reply.usage,
            cost_usd=reply.cost_usd,
            gpu_seconds=reply.gpu_seconds,
            seconds=seconds,
            engine=self._endpoint.profile.name,
        )

    # Before a turn

    async def _look_before(self) -> None:
        conversation, limits = self.conversation, self._limits
        step = self._last()
        if step is None or (step.nudge is not None and step.nudge.why in _LAST):
            await self._keep_short()
            return
        if len(conversation.steps) >= max(1, limits.max_steps - _STEPS_FOR_ANSWER):
            await self._stop("limit", f"{limits.max_steps} steps are all there are")
        elif limits.max_tokens is not None and self._spent_tokens() >= limits.max_tokens:
            await self._stop("limit", f"{limits.max_tokens:,} tokens are all there are")
        elif conversation.num_calls >= limits.max_calls:
            await self._stop("limit", f"{limits.max_calls} tool calls are all there are")
        elif step.nudge is None:
            drift = find_drift(conversation.steps, self.assignment.goal)
            if drift is not None:
                await self._correct(drift)
        await self._keep_short()

    async def _correct(self, drift: Drift) -> None:
        """Do what is to be done about drift.

        Raises:
            HandedOver: Another engine is to go on.
        """
        num_before = sum(nudge.why in _DRIFTS for nudge in self.conversation.nudges)
        actions = list(self._limits.on_drift)
        if not self._means.can_hand_over():
            actions = [action for action in actions if action != "smaller_profile"] or ["stop"]
        action = actions[min(num_before, len(actions) - 1)]
        if action == "stop":
            await self._stop(drift.kind, drift.why)
            return
        words = HANDED_OVER if action == "smaller_profile" else REORIENT
        text = words.format(why=drift.why, goal=self.assignment.goal)
        await self._add(Nudged(why=drift.kind, text=text))
        if action == "smaller_profile":
            raise HandedOver(f"the agent drifted: {drift.why}")

    async def _stop(self, kind: str, why: str) -> None:
        words = REPORT_WITH_WHAT_YOU_HAVE
        if self.assignment.schema is not None:
            words = ANSWER_WITH_WHAT_YOU_HAVE
        text = f"{words.format(why=why)}{shown_schema(self.assignment.schema)}"
        await self._add(Nudged(why="stopped", text=text, cause=f"{kind}: {why}"))

    async def _keep_short(self) -> None:
        """Put the conversation into notes where the next turn would leave too little of the context."""
        if not self.conversation.num_shown:
            return
        room = self._endpoint.context_tokens - self._request.max_output_tokens
        if self._mode == "thinking":
            room -= self._request.max_reasoning_tokens
        if self._num_tokens() > _FULL * room:
            await self._compact()

    def _num_tokens(self) -> int:
        """Return the tokens of the next prompt: the last one as the host counted it, and what came since."""
        step = self._last()
        assert step is not None
        usage = step.turn.usage
        since = [returned.text[: self._limits.result_chars] for returned in step.returned.values()]
        if step.nudge is not None:
            since.append(step.nudge.text)
        return usage.total_tokens + sum(self._endpoint.counter.weigh(since))

    def _spent_tokens(self) -> int:
        return sum(step.turn.usage.total_tokens for step in self.conversation.steps)

    def _can_shorten(self, max_chars: int) -> bool:
        """Tell whether there is anything left to cut but the task itself."""
        notes = self.conversation.num_note_chars
        return self.conversation.num_shown > 0 or (notes > 0 and max_chars >= _LEAST_NOTES_CHARS)

    async def _shorten(self, max_chars: int) -> None:
        """Make what is sent shorter, after the host has refused it."""
        if self.conversation.num_shown:
            await self._compact()
            return
        notes = self.conversation.newest(min(max_chars, self.conversation.num_note_chars // 2))
        await self._add(Compacted(notes=notes, usage=Usage()))

    async def _compact(self) -> None:
        """Put the conversation into notes, the model's own where it can still read all of it."""
        try:
            compacted = await self._noted()
        except RequestTooLong:
            # An engine with less context has taken the work over, or counts otherwise than we do.
            compacted = Compacted(notes=self._newest(), usage=Usage())
        await self._add(compacted)

    def _newest(self) -> str:
        """Return notes that no model has written, half as long as the context at most."""
        return self.conversation.newest(self._half_context_chars)

    @property
    def _half_context_chars(self) -> int:
        return int(self._endpoint.context_tokens // 2 * _CHARS_PER_TOKEN)

    async def _noted(self) -> Compacted:
        messages = [*self.conversation.messages(), {"role": "user", "content": COMPACT}]
        turn = Turn(
            mode=self._mode,
            messages=messages,
            max_tokens=min(_NOTES_TOKENS, self._endpoint.context_tokens // 8),
            tools=tuple(self._specs.values()),
            may_call=False,
        )
        reply = await self._means.send(body_of(turn, self._request, self._endpoint))
        sight = look(reply, self._mode)
        assert reply.usage is not None
        return Compacted(
            # What it thought about the notes it did not write is not all that was found.
            notes=sight.answer or f"{sight.reasoning}\n{self._newest()}".strip(),
            usage=reply.usage,
            cost_usd=reply.cost_usd,
            gpu_seconds=reply.gpu_seconds,
        )

    # The end

    async def _judged(self, step: Step) -> Ending | None:
        """Return the end, where the last turn is one; otherwise None, and the agent was told what to do."""
        if self._may_turn and not step.turn.content and await self._tried_again():
            return None
        asked = sum(nudge.why == "answer" for nudge in self.conversation.nudges)
        output, error_class, error = self._answer(step)
        if error is not None and self._may_turn and asked < _MAX_ANSWERS:
            text = f"{ANSWER_NOW} {error}." if asked else ANSWER_NOW
            if self.assignment.schema is None:
                text = REPORT_NOW
            text += shown_schema(self.assignment.schema)
            await self._add(Nudged(why="answer", text=text))
            return None
        seen: ModeName | None = (
            "thinking" if any(one.turn.reasoning for one in self.conversation.steps) else "instant"
        )
        stopped = next((n.cause for n in self.conversation.nudges if n.why == "stopped"), None)
        return Ending(
            outcome="succeeded" if error is None else "invalid_output",
            output=output,
            error_class=error_class,
            error=error,
            mode_observed=seen,
            mode_notes=tuple(
                dict.fromkeys([
                    *(note for one in self.conversation.steps for note in one.turn.notes),
                    *(["stopped_early"] if stopped else []),
                ])
            ),
            finish_reason=step.turn.finish_reason or None,
            work=self.work(stopped),
        )

    def _answer(self, step: Step) -> tuple[Mapping[str, object] | None, str | None, str | None]:
        turn = step.turn
        if self.assignment.schema is None:
            if turn.content:
                return {"report": turn.content}, None, None
            return None, "empty", "the answer is empty"
        if turn.finish_reason == "length" and not turn.content and turn.reasoning:
            most = self._request.max_reasoning_tokens
            how = "raise it, or set limits.think: false"
            return (
                None,
                "length",
                f"thinking did not end within max_reasoning_tokens = {most}; {how}",
            )
        if turn.finish_reason == "length":
            most = self._request.max_output_tokens
            return None, "length", f"the answer was cut at max_output_tokens = {most}; raise it"
        return judge_text(self.assignment.schema, turn.content)

    async def _tried_again(self) -> bool:
        """Go on after a turn with neither call nor answer; tell whether it was worth it."""
        if self._trailing_empty() <= MAX_EMPTY_TRIES:
            await self._turn()
            return True
        nudges = self.conversation.nudges
        if nudges and nudges[-1].why in _LAST:
            return False
        if sum(nudge.why == "empty" for nudge in nudges) >= _MAX_EMPTY_NUDGES:
            return False
        await self._add(Nudged(why="empty", text=EMPTY))
        return True

    def _trailing_empty(self) -> int:
        count = 0
        for step in reversed(self.conversation.steps):
            if step.turn.content or step.turn.calls or step.nudge is not None:
                break
            count += 1
        return count

    def work(self, stopped: str | None = None) -> Work:
        """Return what it has done so far."""
        conversation = self.conversation
        return Work(
            num_steps=len(conversation.steps),
            num_calls=conversation.num_calls,
            num_failed_calls=conversation.num_failed,
            num_compactions=conversation.num_compactions,
            num_drifts=sum(nudge.why in _DRIFTS for nudge in conversation.nudges),
            critical_steps=len(conversation.steps),
            stopped=stopped,
            engines=tuple(sorted({step.turn.engine for step in conversation.steps})),
        )


_DRIFTS = frozenset({"repeated_call", "nothing_new", "off_goal"})
