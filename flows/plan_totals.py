"""The sums of a plan: tokens, cost and time, at most and as expected; and what is kept of it for a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from engine.profile import Prices, Profile
from flows.expected import TOKENS

_AT_MOST = ("requests", "prompt_tokens", "planned_cached_tokens", "output_tokens_at_most")
_EXPECTED = tuple(f"{name}_expected" for name in TOKENS)

Stage = Mapping[str, Any]


def totals(stages: Sequence[Stage]) -> dict[str, int | None]:
    """Return the sums over all stages; an expected one is None where it is not known of every stage."""
    at_most = {name: sum(stage[name] for stage in stages) for name in _AT_MOST}
    expected = {name: _sum([stage[name] for stage in stages]) for name in _EXPECTED}
    return {**at_most, **expected}


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def cost(prices: Prices | None, stages: Sequence[Stage]) -> dict[str, float | None] | None:
    """Return what the stages cost together, in dollars; None where the profile has no prices."""
    if prices is None:
        return None
    expected = [_usd(prices, stage, _EXPECTED) for stage in stages]
    known = [usd for usd in expected if usd is not None]
    return {
        "with_planned_cache": round(sum(_usd(prices, one, _AT_MOST) or 0.0 for one in stages), 4),
        "without_cache": round(
            sum(_usd(prices, {**one, _AT_MOST[2]: 0}, _AT_MOST) or 0.0 for one in stages), 4
        ),
        "expected": round(sum(known), 6) if len(known) == len(expected) else None,
    }


def _usd(prices: Prices, stage: Stage, names: Sequence[str]) -> float | None:
    """Return what a stage costs, by the keys of its requests and tokens; None where they are not known."""
    _, prompt, cached, output = (stage[name] for name in names)
    if prompt is None or cached is None or output is None:
        return None
    factor = prices.factor(by_batch=stage["sent"] == "batch_api")
    return factor * prices.usd(prompt=prompt, cached=cached, output=output)


def with_seconds(plan: dict[str, Any], profile: Profile) -> dict[str, Any]:
    """Return the plan with its times: by the profile's throughput, else by the pace of its pilot."""
    total, pilot = plan["total"], plan["pilot"]
    at_most = expected = None
    if profile.throughput is not None:
        prompt, output = (
            profile.throughput.prompt_tokens_per_s,
            profile.throughput.output_tokens_per_s,
        )
        computed = total["prompt_tokens"] - total["planned_cached_tokens"]
        at_most = round(computed / prompt + total["output_tokens_at_most"] / output, 1)
        if total["output_tokens_expected"] is not None:
            computed = total["prompt_tokens_expected"] - total["planned_cached_tokens_expected"]
            expected = round(computed / prompt + total["output_tokens_expected"] / output, 1)
    elif pilot is not None and pilot["requests"] and total["requests_expected"] is not None:
        expected = round(pilot["seconds"] * total["requests_expected"] / pilot["requests"], 1)
    return {**plan, "seconds_at_most": at_most, "seconds_expected": expected}


def for_run(plan: Mapping[str, Any], prices: Prices | None) -> dict[str, Any]:
    """Return what a run is held against: per stage and in all what is expected, else what is most."""
    stages = {stage["stage"]: _for_stage(stage, prices) for stage in plan["stages"]}
    exact = plan["total"]["output_tokens_expected"] is not None
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "basis": "expected" if exact else "at most",
        "pilot": plan["pilot"]["run_id"] if plan["pilot"] else None,
        "seconds": plan["seconds_expected"] if exact else plan["seconds_at_most"],
        "stages": stages,
    }


def _for_stage(stage: Stage, prices: Prices | None) -> dict[str, Any]:
    names = _EXPECTED if stage["output_tokens_expected"] is not None else _AT_MOST
    requests, prompt, cached, output = (stage[name] for name in names)
    return {
        "requests": requests,
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "output_tokens": output,
        "cost_usd": None if prices is None else round(_usd(prices, stage, names) or 0.0, 6),
    }
