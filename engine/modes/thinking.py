"""Thinking: the model reasons before it answers, within a budget of its own."""

from __future__ import annotations

from collections.abc import Sequence

from engine.endpoint import Endpoint
from engine.modes.dialogue import Dialogue
from engine.modes.mode import Ending, Means
from engine.modes.sight import Sight
from engine.prompt import answer_text
from engine.request import ModeName, Request
from engine.wire import Message, answering, opening, thinks_aloud


class Thinking:
    """The mode for analysis and judgement: where the answer does not stand in one place."""

    async def carry_out(self, request: Request, endpoint: Endpoint, means: Means) -> Ending:
        """Think, answer, check; where thinking eats the budget, double it once, then go Instant."""
        talk = Dialogue(request, endpoint, means.send)
        if thinks_aloud(request.mode, endpoint.profile):
            return await _by_prompt(talk, request, endpoint)
        first = opening(request, endpoint)
        sight = await talk.ask(first)
        if sight.ate_budget(request.max_reasoning_tokens):
            sight = await _within_budget(talk, first.messages, request, endpoint) or sight
        return await talk.conclude(first.messages, sight, repair_mode=_cheapest(endpoint))


async def _within_budget(
    talk: Dialogue, messages: Sequence[Message], request: Request, endpoint: Endpoint
) -> Sight | None:
    """Return an answer after thinking ate the budget: with more of it, or without thinking."""
    budget, sight = request.max_reasoning_tokens, None
    room = endpoint.context_tokens - request.prompt_tokens - request.max_output_tokens
    more = min(2 * budget, room)
    if more > budget:
        talk.note("more_budget")
        sight = await talk.ask(answering(request, "thinking", messages, thinking_tokens=more))
        if not sight.ate_budget(more):
            return sight
    if "instant" not in endpoint.profile.modes:
        return sight
    talk.note("fell_to_instant")
    return await talk.ask(answering(request, "instant", messages))


async def _by_prompt(talk: Dialogue, request: Request, endpoint: Endpoint) -> Ending:
    """Think in a turn of its own, then answer: for a model that has no switch."""
    first = opening(request, endpoint)
    thought = await talk.ask(first)
    enforced = endpoint.profile.capabilities.structured_output
    messages = [
        *first.messages,
        {"role": "assistant", "content": thought.answer or thought.reasoning or "(nothing)"},
        {"role": "user", "content": answer_text(None if enforced else request.schema)},
    ]
    talk.thought_aloud(thought)
    sight = await talk.ask(answering(request, "instant", messages))
    return await talk.conclude(messages, sight, repair_mode="instant")


def _cheapest(endpoint: Endpoint) -> ModeName:
    """Return the mode for a repair: putting an answer into shape needs no thinking."""
    return "instant" if "instant" in endpoint.profile.modes else "thinking"
