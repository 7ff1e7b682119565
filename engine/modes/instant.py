"""Instant: one question, one short answer, no thinking."""

from __future__ import annotations

from engine.endpoint import Endpoint
from engine.modes.dialogue import Dialogue
from engine.modes.mode import Ending, Means
from engine.request import Request
from engine.wire import answering, opening

UNWANTED_THINKING_TOKENS = 2048
"""Tokens allowed for thinking on a host that thinks although it is told not to, once it is seen."""


class Instant:
    """The mode for extraction, classification and look-ups."""

    async def carry_out(self, request: Request, endpoint: Endpoint, means: Means) -> Ending:
        """Ask, check the answer against the schema, and re-ask once with the error."""
        talk = Dialogue(request, endpoint, means.send)
        first = opening(request, endpoint)
        sight = await talk.ask(first)
        if sight.ate_budget(0):
            room = endpoint.context_tokens - request.prompt_tokens - request.max_output_tokens
            extra = min(UNWANTED_THINKING_TOKENS, room)
            if extra > 0:
                talk.note("more_budget")
                more = answering(request, "instant", first.messages, thinking_tokens=extra)
                sight = await talk.ask(more)
        return await talk.conclude(first.messages, sight, repair_mode="instant")
