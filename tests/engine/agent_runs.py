"""Runs agents against the scripted model: one profile, one way to ask, and a log that can be killed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.batch import run
from engine.batch.breaker import Breaker
from engine.batch.route import route_to
from engine.modes.mode import Workshop
from engine.profile import Capabilities, ModeSettings, Profile
from engine.request import AgentLimits, Request, Result
from engine.steps import Event, MemoryLog
from tests.engine.test_batch import AT_ONCE, endpoint_of

TOTAL = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}},
    "required": ["sum"],
}
DONE = {
    "type": "object",
    "properties": {"complete": {"type": "boolean"}, "num_calls": {"type": "integer"}},
    "required": ["complete"],
}


def values_in(result: Result) -> dict[str, int]:
    """Return the values that a table has, by item."""
    return {row["item"]: row["value"] for row in result.output["rows"]}


def profile_of(server, name: str = "scripted", **other: Any) -> Profile:
    """Return the profile of a scripted server: Thinking by a switch, strict schemas, K2.5's context."""
    return Profile(
        name=name,
        base_url=server.url,
        context_tokens=other.pop("context_tokens", 200_000),
        max_in_flight=400,
        capabilities=Capabilities(tools=True, structured_output=True, **other),
        modes={
            "instant": ModeSettings(
                sampling={"temperature": 0.6}, wire={"chat_template_kwargs": {"thinking": False}}
            ),
            "thinking": ModeSettings(sampling={"temperature": 1.0}, reasoning_tokens=1_000),
        },
    )


def agent_request(question: str, schema=None, *, mode="agent", **limits: Any) -> Request:
    """Return a request for an agent."""
    return Request(
        request_key="key-0",
        stage="work",
        mode=mode,
        instructions="Work.\n",
        material="",
        question=question,
        schema=schema or TOTAL,
        max_output_tokens=4_000,
        max_reasoning_tokens=1_000,
        limits=replace(AgentLimits(max_steps=2_000, max_calls=2_000), **limits),
    )


class Killed(Exception):
    """The process would have ended here."""


class KillingLog(MemoryLog):
    """Ends the work right after so many events, which are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.after: int | None = None

    def all(self) -> list[Event]:
        """Return all events, whatever they are kept under."""
        return [event for events in self._events.values() for event in events]

    async def add(self, key: str, event: Event) -> None:
        await super().add(key, event)
        if self.after is not None:
            self.after -= 1
            if self.after <= 0:
                raise Killed


def carry_out(
    profiles: Sequence[Profile],
    requests: Sequence[Request],
    tools,
    steps=None,
    approval=None,
    *,
    breakers: Mapping[int, Breaker] | None = None,
) -> list[Result]:
    """Return the results of requests whose agents work with `tools`; `breakers` are those of some engines."""
    route = route_to(*(endpoint_of(None, profile) for profile in profiles))
    for number, breaker in (breakers or {}).items():
        route.lines[number] = replace(route.lines[number], breaker=breaker)
    log = steps or MemoryLog()

    async def collect():
        async def source():
            for item in requests:
                yield item

        workshop = Workshop(tools=lambda _: tools, steps=log.of, approval=approval)
        batch = run(source(), route, retry=AT_ONCE, workshop=workshop)
        return [result async for result in batch]

    return asyncio.run(collect())
