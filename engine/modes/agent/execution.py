"""Runs the calls of a turn, each at most once, and turns whatever comes of them into text for the model."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from engine.errors import EngineError
from engine.modes.agent.calls import check
from engine.modes.agent.conversation import Conversation, Step
from engine.modes.agent.reading import READ_RESULT, read_result
from engine.modes.agent.words import UNKNOWN_END
from engine.modes.mode import Means, raise_gravest
from engine.request import AgentLimits, Request
from engine.steps import AskedCall, Begun, Event, Returned, call_number
from engine.tool import ToolError, ToolSpec

logger = logging.getLogger(__name__)

_MAX_KEPT_CHARS = 1_000_000
"""Of one result; more is no answer to anything, and would be kept in memory and in the journal."""


class Calls:
    """The calls of one conversation."""

    def __init__(  # noqa: PLR0917 - one agent's own parts
        self,
        request: Request,
        means: Means,
        specs: Mapping[str, ToolSpec],
        conversation: Conversation,
        limits: AgentLimits,
        add: Callable[[Event], Awaitable[None]],
    ) -> None:
        self._request, self._means, self._specs = request, means, specs
        self._conversation, self._limits, self._add = conversation, limits, add

    async def run(self, step: Step) -> None:
        """Run the calls of a turn that have not ended, all at the same time.

        Raises:
            EngineError: One of them could not get an answer of the model; the others have ended by then. Where
                several went wrong, it is the one that ends more.
        """
        raise_gravest(
            await asyncio.gather(*map(self._run_call, step.pending), return_exceptions=True)
        )

    async def _run_call(self, call: AskedCall) -> None:
        started = time.monotonic()
        text, failure = await self._end_of(call)
        # Half of a surrogate pair has no UTF-8: neither journal nor request could hold it.
        text = text.encode("utf-8", "replace").decode()
        if len(text) > _MAX_KEPT_CHARS:
            text = f"{text[:_MAX_KEPT_CHARS]}\n(cut here: it had {len(text):,} characters)"
        seconds = time.monotonic() - started
        await self._add(Returned(call_id=call.call_id, text=text, failure=failure, seconds=seconds))

    async def _end_of(self, call: AskedCall) -> tuple[str, str | None]:
        """Return what the model is told of a call, and the class of its failure; None where there is none."""
        checked = check(call, self._specs)
        if checked.arguments is None:
            return checked.error, checked.failure
        if call.name == READ_RESULT.name:
            return read_result(self._conversation, checked.arguments, self._limits.result_chars)
        spec = self._specs[call.name]
        barred = await self._barred(call, spec)
        if barred is not None:
            return barred
        if spec.has_effects:
            await self._add(Begun(call_id=call.call_id))
        return await self._made(call, spec, checked.arguments)

    async def _barred(self, call: AskedCall, spec: ToolSpec) -> tuple[str, str] | None:
        """Return why a call is not made, and the class of that; None where it is."""
        most = self._limits.max_calls
        if int(call_number(call.call_id)) >= most:
            # One turn can ask for any number of them.
            return f"{most} calls are all there are; this one was not made", "limit"
        times = self._limits.max_failures
        if self._failures_in_a_row(call.name) >= times:
            return f"{call.name} has failed {times} times in a row; go on without it", "closed"
        if spec.has_effects and call.call_id in self._conversation.begun:
            return UNKNOWN_END, "unknown_end"
        refusal = await self._refusal(call, spec) if spec.needs_approval else None
        return None if refusal is None else (refusal, "refused")

    async def _made(
        self, call: AskedCall, spec: ToolSpec, arguments: Mapping[str, Any]
    ) -> tuple[str, str | None]:
        limit_s = None if spec.keeps_own_time else self._limits.call_timeout_s
        aside = self._means.aside(call.call_id)
        try:
            async with asyncio.timeout(limit_s):
                answer = await self._means.tools.call(call.name, arguments, aside)
        except ToolError as exc:
            return str(exc), "tool_error"
        except TimeoutError:
            return f"{call.name} did not end within {limit_s} s; ask for less", "timeout"
        except EngineError:
            raise
        except Exception:
            if spec.is_own_agent:
                raise
            # The border to the code of tools: whatever goes wrong in one must not end the run.
            logger.exception("request_id=%s tool=%s failed", self._request.request_key, call.name)
            return f"{call.name} failed for a reason of its own; go another way", "crashed"
        return answer.text, None

    async def _refusal(self, call: AskedCall, spec: ToolSpec) -> str | None:
        """Return why a person does not want the call; None where it may be made."""
        decision = self._conversation.decisions.get(call.call_id)
        if decision is None:
            if self._means.approval is None:
                return f"{call.name} needs a person's approval, and there is nobody to ask"
            turn = self._conversation.steps[-1].turn
            decision = await self._means.approval.decide(
                self._request, call, spec, written_at=turn.at
            )
            await self._add(decision)
        if decision.is_approved:
            return None
        because = f": {decision.reason}" if decision.reason else ""
        return f"a person has refused this call{because}"

    def _failures_in_a_row(self, name: str) -> int:
        """Count in the turns before this one, whose own calls end in any order."""
        count = 0
        for step in reversed(self._conversation.steps[:-1]):
            for call in reversed(step.turn.calls):
                returned = step.returned.get(call.call_id)
                if call.name != name or returned is None:
                    continue
                if returned.failure is None:
                    return count
                count += 1
        return count
