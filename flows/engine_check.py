"""Checks a profile's engine before a batch: opens it, keeps to the budget, and holds the planner against it.

Called by `headrace engine check`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config.errors import ConfigError
from config.load import load_profile, load_secret, load_surroundings
from engine.capacity import Wish
from engine.check import (
    CheckRule,
    CheckWish,
    Questions,
    Report,
    ServerLog,
    check_engine,
    plan_check,
)
from engine.endpoint import Endpoint
from engine.errors import SetUpImpossible
from engine.profile import Profile
from engine.server import find_server
from flows.capacity import Asked, capacity, served_tokens, with_served
from flows.run.bench import open_engine


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCheck:
    """What a person asks to be checked."""

    engine: str
    """Profile, by name or file, or URL."""
    wish: CheckWish = field(default_factory=CheckWish)
    budget_usd: float | None = None
    seed: int | None = None
    """What the documents are made from; None: the present second, so that nothing is cached yet."""
    rule: CheckRule = field(default_factory=CheckRule)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The report, and what stands beside it."""

    profile: Profile
    base_url: str
    model: str
    report: Report
    planner: dict[str, Any] | None
    """The planned tokens of the KV cache beside the reported ones; None where one of them is not known."""

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "engine": self.profile.name,
            "model": self.model,
            "address": self.base_url,
            **self.report.as_json(),
            "planner": self.planner,
        }


def check(asked: EngineCheck, notify: Callable[[str], None]) -> Checked:
    """Return the verdict on an engine; it is started where this machine serves it.

    Args:
        asked: What to check.
        notify: Called with lines of progress.

    Raises:
        ConfigError: There is no such profile, or its host has prices and the budget does not cover the check.
        SetUpImpossible: The context or the number at once is beyond what endpoint and profile allow.
        EngineError: The engine cannot be reached or started, or refuses every request.
    """
    _check_unit(load_profile(asked.engine), asked.budget_usd)
    with open_engine(asked.engine, notify) as endpoint:
        seed = int(time.time()) if asked.seed is None else asked.seed
        questions = Questions(endpoint, plan_check(endpoint, asked.wish, seed))
        _tell(questions, asked.budget_usd, notify)
        log = _log_of(endpoint)
        report = asyncio.run(
            check_engine(
                questions,
                notify=notify,
                budget_usd=asked.budget_usd,
                log=log,
                rule=asked.rule,
            )
        )
        planner = _planner(endpoint.profile) if report.gone is None else None
        return Checked(
            profile=endpoint.profile,
            base_url=endpoint.base_url,
            model=endpoint.model,
            report=report,
            planner=planner,
        )


def _check_unit(profile: Profile, budget_usd: float | None) -> None:
    """Refuse dollars where nobody knows what a token costs.

    Raises:
        ConfigError: The profile has no prices.
    """
    if budget_usd is not None and profile.prices is None:
        raise ConfigError(
            f"--budget-usd {budget_usd:g}: profile {profile.name!r} has no `prices`, so that nothing can be"
            " counted in dollars; leave it out, or add them to the profile"
        )


def _tell(questions: Questions, budget_usd: float | None, notify: Callable[[str], None]) -> None:
    """Say what is sent; on a host with prices, that it cannot cost more than was allowed.

    Raises:
        ConfigError: It can.
    """
    endpoint, plan, worst = questions.endpoint, questions.plan, questions.worst()
    notify(
        f"sending {plan.num_calls:,} requests to {endpoint.profile.name}: {plan.num_requests:,} of"
        f" {plan.context_tokens:,} tokens, {plan.concurrency:,} at once; {worst.tokens:,} tokens at most"
    )
    if endpoint.profile.prices is None:
        return
    if budget_usd is None or worst.usd > budget_usd:
        given = "none is given" if budget_usd is None else f"{budget_usd:g} is given"
        raise ConfigError(
            f"this check of {endpoint.profile.name!r} can cost up to {worst.usd:.4f} USD, and of --budget-usd"
            f" {given}; nothing was sent. Give --budget-usd {_at_least(worst.usd)}, or lower --requests or --context"
        )
    notify(f"it costs {worst.usd:.4f} USD at most, of {budget_usd:g}")


def _at_least(usd: float) -> str:
    """Return a sum in cents that covers another."""
    return f"{int(100 * usd) / 100 + 0.01:.2f}"


def _log_of(endpoint: Endpoint) -> ServerLog | None:
    """Return the log of an engine that this machine serves; None for one elsewhere."""
    state = find_server(endpoint.profile, load_surroundings().cache)
    if state is None or state.base_url != endpoint.base_url:
        return None
    key = load_secret(endpoint.profile.api_key_env)
    return ServerLog(Path(state.log), (key,) if key else ())


def _planner(profile: Profile) -> dict[str, Any] | None:
    """Return what the planner says of the cache beside what the server does."""
    if profile.facts is None:
        return None
    try:
        found = capacity(profile, Asked(wish=Wish(context_tokens=profile.context_tokens)))
    except (SetUpImpossible, ConfigError):
        return None
    served = with_served(found, served_tokens(profile))["served"]
    if served is None or found.engine_tokens is None:
        return None
    return {
        "kv_tokens": found.engine_tokens,
        **{f"served_{k}" if k == "kv_tokens" else k: v for k, v in served.items()},
    }
