"""Agent Swarm: an orchestrator that creates sub-agents and gives them tasks, several at the same time.

K2.5 was trained to call `create_subagent` and `assign_task`; there is no switch for it in any API, so the two
tools are offered here, and what they do happens here: each sub-agent is an agent with its own context, tools,
share of the tokens, and events. One that has ended is not run again when the request is taken up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.endpoint import Endpoint
from engine.errors import RequestRejected
from engine.modes.agent import assignment_of
from engine.modes.agent.calls import arguments_of
from engine.modes.agent.run import AgentRun, Assignment
from engine.modes.agent.words import RULES
from engine.modes.mode import Ending, Means
from engine.prompt import agent_instructions
from engine.request import AgentLimits, Request, Work, content_key
from engine.steps import AskedCall, Compacted, Event, Returned, Turned, call_number
from engine.tool import Aside, ToolAnswer, ToolError, ToolSpec

_CREATE = ToolSpec(
    name="create_subagent",
    description="Creates a kind of sub-agent that tasks can be given to, any number of times.",
    parameters={
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 64},
            "system_prompt": {
                "type": "string",
                "minLength": 1,
                "description": "its role: what it is good at, how it works, what it reports",
            },
        },
        "required": ["name", "system_prompt"],
        "additionalProperties": False,
    },
)
_ASSIGN = ToolSpec(
    name="assign_task",
    description="Gives a task to a sub-agent and returns its report. Several calls in one turn run in parallel."
    " A sub-agent knows only its role and the task: say all it needs.",
    parameters={
        "type": "object",
        "properties": {
            "agent": {"type": "string", "description": "name of a sub-agent you created"},
            "prompt": {"type": "string", "minLength": 1},
        },
        "required": ["agent", "prompt"],
        "additionalProperties": False,
    },
    keeps_own_time=True,
    is_own_agent=True,
)
SWARM_RULES = f"""\
{RULES}
You lead a team. Part the task into pieces that can be done side by side, create the sub-agents they need
with create_subagent, and give out the pieces with assign_task, as many in one turn as can run at the same time.
Give a piece out again where its report says that it failed. Then put the reports together, with the labels of
the lines they rest on.
"""


class Swarm:
    """The mode for wide research: many pieces that do not depend on one another."""

    async def carry_out(self, request: Request, endpoint: Endpoint, means: Means) -> Ending:
        """Let an orchestrator give out the work, and answer with what comes back."""
        team = _Team(request, endpoint, means)
        lead = AgentRun(
            assignment_of(request, SWARM_RULES), request, endpoint, replace(means, tools=team)
        )
        for call, returned in _ended_calls(lead):
            team.restore(call, returned)
        ending = await lead.run()
        return replace(ending, work=_work(lead, team, ending.work or Work()))


def _nobody() -> bool:
    """Tell that no other engine goes on with a sub-agent."""
    return False


def _ended_calls(lead: AgentRun) -> Iterator[tuple[AskedCall, Returned]]:
    for step in lead.conversation.steps:
        for call in step.turn.calls:
            returned = step.returned.get(call.call_id)
            if returned is not None:
                yield call, returned


def _sub_key(request_key: str, call_id: str, task: Sequence[str]) -> str:
    """Return the key of the events of the sub-agent behind a call.

    The number says where it stands, the rest what it does: an orchestrator that begins anew and assigns
    something else must not be given what another one was told.
    """
    return f"{request_key}/{call_number(call_id)}-{content_key('task', *task)[:12]}"


def _work(lead: AgentRun, team: _Team, own: Work) -> Work:
    """Return what orchestrator and sub-agents did together."""
    total = own
    critical = 0
    for step in lead.conversation.steps:
        longest = 0
        for call in step.turn.calls:
            events = team.events(call)
            turns = [event for event in events if isinstance(event, Turned)]
            if not turns:
                continue
            ended = [event for event in events if isinstance(event, Returned)]
            longest = max(longest, len(turns))
            total = replace(
                total,
                num_steps=total.num_steps + len(turns),
                num_calls=total.num_calls + sum(len(turn.calls) for turn in turns),
                num_failed_calls=total.num_failed_calls
                + sum(event.failure is not None for event in ended),
                num_compactions=total.num_compactions
                + sum(isinstance(event, Compacted) for event in events),
                num_subagents=total.num_subagents + 1,
                engines=tuple(sorted({*total.engines, *(turn.engine for turn in turns)})),
            )
        critical += 1 + longest
    return replace(total, critical_steps=critical)


class _Team:
    """The tools of the orchestrator: those of the stage, and its sub-agents."""

    def __init__(self, request: Request, endpoint: Endpoint, means: Means) -> None:
        self._request, self._endpoint, self._means = request, endpoint, means
        self._limits = request.limits or AgentLimits()
        self._roles: dict[str, str] = {}
        self._keys: dict[str, str] = {}
        """Of the sub-agents' events, by the call that they are the work of."""
        self._places = asyncio.Semaphore(self._limits.max_subagents)

    @property
    def specs(self) -> Sequence[ToolSpec]:
        """Return the two tools of a swarm, then those of the stage."""
        return (_CREATE, _ASSIGN, *self._means.tools.specs)

    async def call(self, name: str, arguments: Mapping[str, Any], aside: Aside) -> ToolAnswer:
        """Return what a tool gives, or a sub-agent reports.

        Raises:
            ToolError: The orchestrator must ask otherwise.
        """
        if name == _CREATE.name:
            self._roles[arguments["name"]] = arguments["system_prompt"]
            return ToolAnswer(text=f"created {arguments['name']!r}")
        if name != _ASSIGN.name:
            return await self._means.tools.call(name, arguments, aside)
        role = self._roles.get(arguments["agent"])
        if role is None:
            known = ", ".join(map(repr, self._roles)) or "none yet"
            raise ToolError(f"there is no sub-agent {arguments['agent']!r}; there are: {known}")
        async with self._places:
            return await self._report(aside.call_id, role, arguments)

    def restore(self, call: AskedCall, returned: Returned) -> None:
        """Take what an earlier attempt did: a role it created, a sub-agent it paid for."""
        arguments, _ = arguments_of(call.arguments)
        role = self._roles.get(str((arguments or {}).get("agent")))
        if call.name == _CREATE.name and arguments is not None and returned.failure is None:
            self._roles[arguments["name"]] = arguments["system_prompt"]
        elif call.name == _ASSIGN.name and arguments is not None and role is not None:
            self._assignment(call.call_id, role, str(arguments.get("prompt")))

    def events(self, call: AskedCall) -> Sequence[Event]:
        """Return what is on record of the sub-agent behind a call; nothing where it has none."""
        key = self._keys.get(call.call_id)
        return () if key is None else self._means.steps.events(key)

    async def _report(self, call_id: str, role: str, arguments: Mapping[str, Any]) -> ToolAnswer:
        run = AgentRun(
            self._assignment(call_id, role, arguments["prompt"]),
            self._request,
            self._endpoint,
            # Another engine goes on with the whole swarm, not with one of its agents.
            replace(self._means, can_hand_over=_nobody),
        )
        try:
            ending = await run.run()
        except RequestRejected as exc:
            raise ToolError(f"the sub-agent failed: {exc}") from exc
        if ending.output is None:
            raise ToolError(f"the sub-agent failed: {ending.error}")
        stopped = ending.work.stopped if ending.work else None
        cut = f" It was stopped early: {stopped}." if stopped else ""
        return ToolAnswer(text=f"Report of {arguments['agent']}.{cut}\n{ending.output['report']}")

    def _assignment(self, call_id: str, role: str, prompt: str) -> Assignment:
        key = _sub_key(self._request.request_key, call_id, [role, prompt])
        self._keys[call_id] = key
        return Assignment(
            key=key,
            system=f"{agent_instructions(self._request.instructions, RULES)}\nYour role:\n{role}",
            task=prompt,
            goal=prompt,
            limits=replace(
                self._limits,
                max_steps=self._limits.subagent_steps,
                max_tokens=self._limits.subagent_tokens,
            ),
            schema=None,
        )
