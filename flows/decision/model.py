"""Which kind of model the work asks for: K2.5, a small dense one, or a proprietary one."""

from __future__ import annotations

from typing import Literal

from config.answers import Answers, ModelChoice
from config.load import load_profile
from engine.profile import Profile
from flows.decision.finding import Finding

K25_CONTEXT_TOKENS = 262_144
"""Of the model's config.json."""

SMALL_CONTEXT_TOKENS = 32_768
"""What small dense models are commonly trained for: a rule of this project."""

NAMED: Literal["named engine"] = "named engine"
"""Stands for the model of an engine that was named."""

Kind = ModelChoice | Literal["named engine"]

CUT = "let documents be cut (stages over chunks and documents do)"
"""What to do where nothing sees so much at once."""

_SIMPLE = frozenset({"extraction", "classification"})


def choose_model(answers: Answers) -> tuple[Kind, Finding]:
    """Return the kind of model, and why."""
    if answers.model is not None:
        told = f"{answers.model} was asked for"
        return answers.model, Finding(topic="model", holds=True, reason=told)
    context = answers.context_tokens or 0
    hard = sorted(set(answers.work) - _SIMPLE)
    if context > K25_CONTEXT_TOKENS:
        return _of_longer_context(answers, context)
    if not answers.work:
        return "kimi-k2.5", Finding(
            topic="model",
            holds=None,
            reason="what is to be done was not said; Kimi K2.5 can do all that this project asks of a model",
            todo="--work extraction, classification, summaries, images, reasoning, agents, swarm",
        )
    if not hard and context <= SMALL_CONTEXT_TOKENS:
        return "small", Finding(
            topic="model",
            holds=True,
            reason=f"{' and '.join(answers.work)} from excerpts are what small dense models do, on one GPU; not"
            " measured on your documents",
            todo="ask both about a sample and compare: headrace run PIPELINE --limit 50 --engine URL",
        )
    return "kimi-k2.5", Finding(
        topic="model",
        holds=True,
        reason=f"{', '.join(hard) or f'{context:,} tokens at once'}: Kimi K2.5 has vision, tool calls and"
        " 262,144 tokens of context with open weights (README of moonshotai/Kimi-K2.5)",
    )


def _of_longer_context(answers: Answers, context: int) -> tuple[Kind, Finding]:
    """Return what sees more at once than Kimi K2.5: a named engine where one does."""
    reason = (
        f"a question must see {context:,} tokens at once, Kimi K2.5 takes {K25_CONTEXT_TOKENS:,}"
        " (config.json)"
    )
    profiles = [load_profile(name) for name in dict.fromkeys([*answers.hosts, answers.engine])]
    longer = [
        f"{profile.name} takes {profile.context_tokens:,}"
        for profile in profiles
        if profile.context_tokens is not None and profile.context_tokens >= context
    ]
    if longer:
        told = f"{reason}; of the engines named, {', '.join(longer)}"
        return NAMED, Finding(topic="model", holds=True, reason=told)
    return "proprietary", Finding(
        topic="model",
        holds=None,
        reason=reason,
        todo=f"{CUT}, or try kimi-k3 with 1,048,576",
    )


def sees_enough(answers: Answers, profile: Profile) -> list[Finding]:
    """Return whether the profile's model sees at once what a question must; nothing where either is not known."""
    wanted, taken = answers.context_tokens, profile.context_tokens
    if wanted is None or taken is None:
        return []
    enough = wanted <= taken
    return [
        Finding(
            topic="model",
            holds=enough,
            reason=f"a question must see {wanted:,} tokens at once, {profile.name} takes {taken:,}",
            todo="" if enough else CUT,
        )
    ]


def small_sees_enough(answers: Answers) -> list[Finding]:
    """Return whether a small dense model sees at once what a question must; nothing where that was not said."""
    wanted = answers.context_tokens
    if wanted is None:
        return []
    enough = wanted <= SMALL_CONTEXT_TOKENS
    return [
        Finding(
            topic="model",
            holds=enough,
            reason=f"a question must see {wanted:,} tokens at once, small dense models are commonly trained for"
            f" {SMALL_CONTEXT_TOKENS:,} (a rule of this project)",
            todo="" if enough else CUT,
        )
    ]
