"""Agent: the model works with tools, turn by turn, until it can answer."""

from __future__ import annotations

from engine.endpoint import Endpoint
from engine.modes.agent.run import AgentRun, Assignment
from engine.modes.agent.words import RULES
from engine.modes.mode import Ending, Means
from engine.prompt import agent_instructions, user_text
from engine.request import AgentLimits, Request


class Agent:
    """The mode for work that needs to look things up, compute, and look again."""

    async def carry_out(self, request: Request, endpoint: Endpoint, means: Means) -> Ending:
        """Work until there is an answer, a limit is reached, or the agent has lost its way."""
        return await AgentRun(assignment_of(request), request, endpoint, means).run()


def assignment_of(request: Request, rules: str = RULES) -> Assignment:
    """Return the request as what an agent has to do."""
    return Assignment(
        key=request.request_key,
        system=agent_instructions(request.instructions, rules),
        task=user_text(request.material, request.question, request.schema),
        goal=request.question.strip(),
        limits=request.limits or AgentLimits(),
        schema=request.schema,
    )
