"""Carries a check out: long requests at the planned concurrency, then short ones, thinking, and tool calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import httpx

from engine.batch import Budget, Caps
from engine.check.figures import (
    cached_of,
    first_token,
    mode_share,
    most_at_once,
    reported_prompt_share,
    structured_share,
    throughput_of,
    tool_share,
)
from engine.check.log import ServerLog
from engine.check.questions import Asked, Questions
from engine.check.report import Figures, Gone, Report
from engine.check.sending import Answered, CheckRule, Sending
from engine.check.verdict import judge, verdict_of
from engine.client import Client
from engine.endpoint import Endpoint
from engine.errors import EngineError, EngineUnavailable
from engine.server import cache_facts
from engine.status import authorization, map_errors

_ALIVE_TIMEOUT_S = 10.0
_TELL_EVERY_S = 5.0
Notify = Callable[[str], None]


async def check_engine(
    questions: Questions,
    *,
    notify: Notify,
    budget_usd: float | None = None,
    log: ServerLog | None = None,
    rule: CheckRule | None = None,
) -> Report:
    """Return the verdict on an engine, after sending it what was planned.

    An engine that goes away, refuses or answers wrongly is a verdict and no error.

    Args:
        questions: What to send, and to which engine.
        notify: Called with lines of progress.
        budget_usd: Most dollars to spend; None: no limit.
        log: The engine's log, where it is on this machine.
        rule: How patient to be.

    Raises:
        EngineMisconfigured: The endpoint refuses every request of this kind: the key, or the model.
    """
    check = _Check(questions, notify=notify, log=log)
    return await check.carry_out(Budget(Caps(usd=budget_usd)), rule or CheckRule())


class _Check:
    """One check in work."""

    def __init__(self, questions: Questions, *, notify: Notify, log: ServerLog | None) -> None:
        self._questions, self._notify, self._log = questions, notify, log
        self._endpoint, self._plan = questions.endpoint, questions.plan
        self._answered: dict[str, list[Answered]] = {}
        self._seconds: dict[str, float] = {}
        self._gone: Gone | None = None

    async def carry_out(self, budget: Budget, rule: CheckRule) -> Report:
        started, plan, endpoint = time.monotonic(), self._plan, self._endpoint
        facts = await asyncio.to_thread(cache_facts, endpoint.base_url)
        async with Client(
            endpoint.base_url, api_key=endpoint.api_key, max_connections=plan.concurrency + 1
        ) as client:
            sending = Sending(endpoint, client, at_once=plan.concurrency, budget=budget, rule=rule)
            watching = asyncio.create_task(sending.watch())
            try:
                await self._send_all(sending)
            finally:
                watching.cancel()
                with suppress(asyncio.CancelledError):
                    await watching
        figures = self._figures(
            sending,
            kv_tokens=None if facts is None else facts.num_tokens,
            block_tokens=None if facts is None else facts.block_tokens,
            budget=budget,
            seconds=time.monotonic() - started,
        )
        judged = judge(endpoint, plan, figures, self._gone)
        return Report(
            verdict=verdict_of(judged),
            judged=tuple(judged),
            plan=plan,
            figures=figures,
            gone=self._gone,
        )

    async def _send_all(self, sending: Sending) -> None:
        """Send one kind after the other, until all are sent or the engine is gone."""
        questions = self._questions
        long = iter(questions.long())
        # Alone: it makes the prefix that the others share, and shows an engine with nothing else to do.
        await self._phase(sending, "first", [next(long)])
        (first,) = self._of("first")
        plan = self._plan
        phases: list[tuple[str, Iterable[Asked], int]] = [
            ("long", long, plan.num_requests - 1),
            ("short", questions.short(), plan.num_short),
            ("thinking", questions.thinking(), plan.num_thinking),
            ("tool", questions.tools(), plan.num_forced + plan.num_free),
        ]
        # One that is refused alone is refused beside others too.
        refused = first.reply is None and not first.is_lost
        for kind, calls, number in phases[1:] if refused else phases:
            if number and self._gone is None and not self._is_mute(kind):
                await self._phase(sending, kind, calls)

    def _is_mute(self, kind: str) -> bool:
        """Tell whether so many were lost before this kind that others would be too, each after its tries."""
        sent = [one for found in self._answered.values() for one in found]
        return kind != "long" and len(sent) > 1 and all(one.is_lost for one in sent)

    async def _phase(self, sending: Sending, kind: str, calls: Iterable[Asked]) -> None:
        self._notify(f"{kind} requests: sending")
        started = last_told = time.monotonic()

        def told(number: int) -> None:
            nonlocal last_told
            now = time.monotonic()
            if now - last_told >= _TELL_EVERY_S:
                last_told = now
                self._notify(f"{kind} requests: {number:,} ended after {now - started:.0f} s")

        found = await sending.all(calls, told)
        self._answered[kind], self._seconds[kind] = found, time.monotonic() - started
        self._notify(f"{kind} requests: {len(found):,} sent, {self._seconds[kind]:.1f} s")
        if any(one.is_lost for one in found) and not await is_alive(self._endpoint):
            log = self._log
            self._gone = Gone(
                while_sending=kind,
                log_tail=None if log is None else log.tail(),
                was_out_of_memory=log is not None and log.tells_of_memory(),
            )

    def _figures(
        self,
        sending: Sending,
        *,
        kv_tokens: int | None,
        block_tokens: int | None,
        budget: Budget,
        seconds: float,
    ) -> Figures:
        first, rest = self._of("first"), self._of("long")
        long, short = [*first, *rest], self._of("short")
        tools = self._of("tool")
        every = [one for found in self._answered.values() for one in found]
        modes = {self._plan.mode: mode_share([*long, *short], self._plan.mode)}
        if self._of("thinking"):
            modes["thinking"] = mode_share([*self._of("thinking"), *long], "thinking")
        alone = first_token(first)
        busy = rest or first
        return Figures(
            num_sent=len(every),
            num_answered=sum(one.reply is not None for one in every),
            num_long_sent=len(long),
            num_long_answered=sum(one.reply is not None for one in long),
            num_retries=sum(one.num_retries for one in every if one.reply is not None),
            errors=tuple(dict.fromkeys(one.error for one in every if one.error is not None)),
            most_at_once=most_at_once(long),
            prompt_tokens=self._questions.prompt_tokens,
            reported_prompt_share=reported_prompt_share(long, self._questions.prompt_tokens),
            load=sending.gauge,
            kv_tokens=kv_tokens,
            modes=modes,
            structured=structured_share([*long, *short]),
            tools=tool_share(tools) if tools else None,
            first_alone_s=None if alone is None else alone.median,
            first_token=first_token(rest),
            throughput=throughput_of(
                busy, self._seconds["long" if rest else "first"], short, self._seconds.get("short", 0.0)
            ),
            cached=cached_of(long, self._questions.documents.shared_tokens, block_tokens),
            spent=budget.spent,
            seconds=seconds,
        )  # fmt: skip

    def _of(self, kind: str) -> Sequence[Answered]:
        return self._answered.get(kind, [])


async def is_alive(endpoint: Endpoint) -> bool:
    """Tell whether anything answers at the endpoint's address, be it a refusal."""

    def ask() -> bool:
        headers = authorization(endpoint.api_key)
        try:
            with map_errors(endpoint.base_url):
                httpx.get(f"{endpoint.base_url}/models", headers=headers, timeout=_ALIVE_TIMEOUT_S)
        except EngineUnavailable:
            return False
        except EngineError:
            return True
        return True

    return await asyncio.to_thread(ask)
