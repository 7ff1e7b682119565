"""What sending documents to somebody's engine takes: certificates, limits and money."""

from __future__ import annotations

from config.answers import Answers
from config.load import load_secret
from engine.profile import Profile
from flows.cost import HOURS_A_MONTH, Rent, price
from flows.decision.finding import Finding
from flows.decision.own import load_of
from flows.run.routes import missing_certifications

_BATCH_S = 43_200.0
"""Shortest window of Moonshot's batch API (platform.kimi.ai/docs/api/batch-create: 12 h to 7 d)."""

_MINUTES_A_MONTH = HOURS_A_MONTH * 60


def hardware(profile: Profile) -> Finding:
    """Return what this machine needs."""
    if profile.needs_key and not load_secret(profile.api_key_env):
        return Finding(
            topic="hardware",
            holds=True,
            reason=f"no GPU is needed; {profile.api_key_env} is not set on this machine yet",
            todo=f"export {profile.api_key_env}=<your key>",
        )
    return Finding(topic="hardware", holds=True, reason="no GPU is needed")


def compliance(answers: Answers, profile: Profile) -> list[Finding]:
    """Return whether certificates, terms and the place of documents allow it."""
    found = []
    held = profile.data_sheet.certifications
    missing = missing_certifications(answers.certifications, held)
    if answers.certifications:
        found.append(
            Finding(
                topic="compliance",
                holds=not missing,
                reason=f"asked for is {', '.join(answers.certifications)}; the data sheet of {profile.name}"
                f" has {', '.join(held) or 'none'}",
                todo=f"ask {profile.hosted_by or 'the host'} for the certificate, and enter it into data_sheet"
                " of a copy of the profile once you have seen it"
                if missing
                else "",
            )
        )
    if answers.sensitive in {"some", "all"}:
        everything = answers.sensitive == "all"
        found.append(
            Finding(
                topic="compliance",
                holds=not everything,
                reason=f"{answers.sensitive} documents are sensitive and may not go to"
                f" {profile.hosted_by or profile.name}",
                todo="an engine of your own, for what may not leave"
                if everything
                else "policy.sensitive in the pipeline, and an engine of your own for those",
            )
        )
    if answers.sensitive is None:
        found.append(
            Finding(
                topic="compliance",
                holds=None,
                reason="whether documents are sensitive was not said",
                todo="--sensitive none, some or all",
            )
        )
    if profile.licence is not None:
        found.append(
            Finding(
                topic="compliance",
                holds=True,
                reason=f"terms: {profile.licence.name} ({profile.licence.source})",
            )
        )
    return found


def budget(answers: Answers, profile: Profile) -> Finding:
    """Return whether a month's work is within the budget."""
    load = load_of(answers)
    if profile.prices is None:
        return Finding(
            topic="budget",
            holds=None,
            reason=f"prices of {profile.name} are not known",
            todo=f"ask {profile.hosted_by or 'the host'} for its prices, and enter `prices` into a copy of the profile",
        )
    if load is None:
        given = {"prompt": answers.prompt_tokens, "output": answers.output_tokens}
        missing = [kind for kind, tokens in given.items() if tokens is None]
        return Finding(
            topic="budget",
            holds=None,
            reason=f"{' and '.join(missing)} tokens a month were not said",
            todo="headrace plan PIPELINE counts them: "
            + ", ".join(f"--{kind}-tokens" for kind in missing),
        )
    row = price(load, profile, Rent(), documents=1)
    usd, told = row["usd"], f"{row['usd']:,.0f} USD a month at the prices of {profile.name}"
    waits = answers.within_s is not None and answers.within_s >= _BATCH_S
    if waits and row["usd_batch_api"] is not None and row["usd_batch_api"] < usd:
        usd = row["usd_batch_api"]
        told += f", {usd:,.0f} USD through its batch API"
    if answers.budget_usd is None:
        return Finding(
            topic="budget", holds=None, reason=told, todo="say what there is: --budget-usd"
        )
    holds = usd <= answers.budget_usd
    return Finding(
        topic="budget",
        holds=holds,
        reason=f"{told}; the budget is {answers.budget_usd:,.0f} USD",
        todo="" if holds else "fewer stages, larger chunks, a batch API, or a small model",
    )


def latency(answers: Answers, profile: Profile) -> list[Finding]:
    """Return whether the host's limits let a month's work through, and whether an answer comes in time."""
    found = []
    limits, load = profile.limits, load_of(answers)
    if load is not None and limits.tokens_per_minute is not None:
        month = limits.tokens_per_minute * _MINUTES_A_MONTH
        tokens = load.prompt_tokens + load.output_tokens
        found.append(
            Finding(
                topic="latency",
                holds=tokens <= month,
                reason=f"{tokens:,} tokens a month; tier {limits.name!r} of {profile.name} lets"
                f" {limits.tokens_per_minute:,} a minute through, {month:,} a month",
                todo="" if tokens <= month else "a higher tier (`tiers` of the profile)",
            )
        )
    waits = answers.within_s is not None and answers.within_s >= _BATCH_S
    if waits and profile.prices is not None and profile.prices.batch_factor is not None:
        found.append(
            Finding(
                topic="latency",
                holds=True,
                reason="answers may wait half a day, as long as the shortest window of its batch API"
                " (platform.kimi.ai/docs/api/batch-create)",
            )
        )
    elif answers.within_s is not None:
        found.append(
            Finding(
                topic="latency",
                holds=None,
                reason=f"{profile.hosted_by or profile.name} publishes no time to an answer",
                todo=f"measure it: headrace try PIPELINE --document FILE --engine {profile.name}",
            )
        )
    return found or [
        Finding(
            topic="latency",
            holds=None,
            reason="how long an answer may take was not said",
            todo="--within SECONDS",
        )
    ]


def crew() -> Finding:
    """Return who is needed."""
    return Finding(topic="crew", holds=True, reason="the host runs the servers")
