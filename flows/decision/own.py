"""What running an engine oneself takes: GPUs, money, time and people."""

from __future__ import annotations

from dataclasses import replace

from config.answers import NO_GPUS, Answers
from config.errors import ConfigError
from engine.capacity import Gpus, Plan, Wish
from engine.errors import SetUpImpossible
from engine.profile import Profile
from flows.capacity import Asked, capacity, gpus_of
from flows.cost import HOURS_A_MONTH, PUBLISHED, PUBLISHED_GPUS, PUBLISHED_SOURCE, Load, Rent, price
from flows.decision.finding import Finding
from flows.run.routes import missing_certifications

TOKENS_PER_S_EACH = 258.2 / 16
"""Tokens a second of one answer among 16 (sgl-project/sgl-cookbook, Kimi-K2.5.md: 258.2 a second for 16 in
flight on 8xH200, 1k in and 1k out)."""

MIN_OPERATORS = 2
"""People, so that one may be ill: a rule of this project."""

_DAY_S = 86_400.0


def hardware(answers: Answers, profile: Profile) -> Finding:
    """Return whether the engine's model fits the GPUs that there are."""
    if answers.gpus == NO_GPUS:
        return Finding(
            topic="hardware",
            holds=False,
            reason=f"there are no GPUs, and {profile.name} needs some",
            todo=f"GPUs that hold it: headrace engine plan {profile.name} --gpus 8xH200",
        )
    context = answers.context_tokens
    if context is not None and profile.context_tokens is not None:
        # More is the model's affair: the GPUs are asked about what it takes.
        context = min(context, profile.context_tokens)
    wish = Wish(context_tokens=context)
    try:
        found = capacity(profile, Asked(gpus=answers.gpus, wish=wish))
    except SetUpImpossible as exc:
        known = answers.gpus is not None
        return Finding(
            topic="hardware",
            holds=False if known else None,
            reason=str(exc),
            todo="" if known else "say which GPUs are meant: --gpus 8xH200",
        )
    except ConfigError as exc:
        return Finding(topic="hardware", holds=None, reason=str(exc))
    return Finding(
        topic="hardware",
        holds=found.fits,
        reason=found.reasons[0],
        todo="" if found.fits else _other_gpus(answers, profile, found),
    )


def _other_gpus(answers: Answers, profile: Profile, found: Plan) -> str:
    """Return how to look for GPUs that do: twice as many are tried."""
    command = f"headrace engine plan {profile.name} --gpus"
    if found.gpus is None:
        return f"{command} {answers.gpus}"
    more = replace(found.gpus, count=2 * found.gpus.count)
    return f"{command} {more} shows whether twice as many do"


def compliance(answers: Answers, profile: Profile) -> list[Finding]:
    """Return whether certificates, licence and the place of documents allow it."""
    found = []
    missing = missing_certifications(answers.certifications, answers.own_certifications)
    if answers.certifications:
        found.append(
            Finding(
                topic="compliance",
                holds=not missing,
                reason=f"asked for is {', '.join(answers.certifications)}; a certificate belongs to whoever"
                " runs the machines, and yours have "
                + (", ".join(answers.own_certifications) or "none that was named"),
                todo=f"have your own operations certified for {', '.join(missing)}"
                if missing
                else "",
            )
        )
    if answers.sensitive in {"some", "all"}:
        found.append(
            Finding(topic="compliance", holds=True, reason="sensitive documents stay with you")
        )
    if profile.licence is not None and profile.licence.duties:
        found.append(
            Finding(
                topic="compliance",
                holds=True,
                reason=f"licence {profile.licence.name}: {profile.licence.duties[0]}"
                f" ({profile.licence.source})",
            )
        )
    return found


def budget(answers: Answers, profile: Profile) -> Finding:
    """Return whether the GPUs are within the budget, and whether they can do the work in a month."""
    gpus = _gpus(answers, profile)
    count = None if gpus is None else gpus.count
    if count is None or answers.gpu_hour_usd is None:
        return Finding(
            topic="budget",
            holds=None,
            reason="what GPUs cost is not known without their number and the price of an hour",
            todo="--gpus 8xH200 --gpu-hour USD",
        )
    monthly = count * answers.gpu_hour_usd * HOURS_A_MONTH
    told = (
        f"{count} GPUs day and night cost {monthly:,.0f} USD a month at {answers.gpu_hour_usd:g} USD"
        " an hour"
    )
    hours = hours_needed(answers, profile, count)
    if hours is not None and hours > HOURS_A_MONTH:
        told += f", and the work takes {hours:,.0f} hours of the {HOURS_A_MONTH} that a month has"
        return Finding(topic="budget", holds=False, reason=told, todo="more GPUs, or less work")
    if hours is not None:
        told += f"; the work keeps them busy for {hours:,.0f} hours ({PUBLISHED_SOURCE})"
    if answers.budget_usd is None:
        return Finding(
            topic="budget", holds=None, reason=told, todo="say what there is: --budget-usd"
        )
    return Finding(
        topic="budget",
        holds=monthly <= answers.budget_usd,
        reason=f"{told}; the budget is {answers.budget_usd:,.0f} USD",
        todo=""
        if monthly <= answers.budget_usd
        else "rent them for the hours of a run only, or use a host",
    )


def hours_needed(answers: Answers, profile: Profile, count: int) -> float | None:
    """Return the hours that a month's work takes on the GPUs; None where that is not known."""
    pace = profile.throughput or (PUBLISHED if count == PUBLISHED_GPUS else None)
    load = load_of(answers)
    if load is None or pace is None:
        return None
    own = profile.model_copy(update={"prices": None})
    row = price(load, own, Rent(gpus=count, throughput=pace), documents=1)
    return float(row["hours"])


def load_of(answers: Answers) -> Load | None:
    """Return a month's work; None where it was not said."""
    if answers.prompt_tokens is None or answers.output_tokens is None:
        return None
    return Load(
        requests=max(1, answers.output_tokens // answers.answer_tokens),
        prompt_tokens=answers.prompt_tokens,
        cached_tokens=round(answers.prompt_tokens * answers.cached_share),
        output_tokens=answers.output_tokens,
        is_expected=True,
    )


def _gpus(answers: Answers, profile: Profile) -> Gpus | None:
    try:
        return gpus_of(profile, answers.gpus)
    except SetUpImpossible:
        return None


def latency(answers: Answers) -> Finding:
    """Return whether an answer comes in time."""
    if answers.within_s is None:
        return Finding(
            topic="latency", holds=None, reason="how long an answer may take was not said",
            todo="--within SECONDS",
        )  # fmt: skip
    needed = answers.answer_tokens / TOKENS_PER_S_EACH
    return Finding(
        topic="latency",
        holds=needed <= answers.within_s,
        reason=f"an answer of {answers.answer_tokens:,} tokens takes about {needed:,.0f} s among 16 on 8xH200"
        f" (sgl-cookbook, Kimi-K2.5.md: {TOKENS_PER_S_EACH:.0f} tokens a second each), and may take"
        f" {answers.within_s:,.0f} s",
        todo="" if needed <= answers.within_s else "shorter answers, fewer at once, a small model",
    )


def crew(answers: Answers) -> Finding:
    """Return whether there are people to run it."""
    if answers.operators is None:
        return Finding(
            topic="crew", holds=None, reason="who would run the servers was not said",
            todo="--operators N",
        )  # fmt: skip
    waits = answers.within_s is not None and answers.within_s >= _DAY_S
    enough = answers.operators >= MIN_OPERATORS
    reason = (
        f"{answers.operators} people can run GPU servers, {MIN_OPERATORS} are the least, so that one may be"
        " ill (a rule of this project)"
    )
    if enough and not waits and answers.on_call is not True:
        return Finding(
            topic="crew",
            holds=None if answers.on_call is None else False,
            reason=f"{reason}; and answers are due within a day, so one must be within reach at night",
            todo="--on-call, or work that can wait: --within 86400",
        )
    return Finding(
        topic="crew", holds=enough, reason=reason, todo="" if enough else "a host, or more people"
    )
