"""Several answers to one question: which one counts, how far they agree, and whether to ask again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from config.pipeline import EscalateConfig, StageConfig
from engine.request import Result
from flows.run.units import AWAITED


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The result that counts, among all that one question got."""

    result: Result
    results: Sequence[Result] = ()
    agreement: float | None = None
    """Share of the samples that agree with the result; None where there was one sample."""
    escalated: str | None = None
    """Why it was asked again in Thinking; None where it was not."""


def settle(stage: StageConfig, results: Sequence[Result]) -> Settled:
    """Return what the samples of one question come to.

    The first of the largest group of equal answers counts; samples without an answer agree with
    nobody. As long as one waits for a batch or a person, so does the question.
    """
    if len(results) == 1:
        return Settled(result=results[0], results=results)
    waiting = [result for result in results if result.error_class in AWAITED]
    if waiting:
        return Settled(result=waiting[0], results=results, agreement=0.0)
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.outcome == "succeeded" and result.output is not None:
            groups.setdefault(_compared(stage, result.output), []).append(result)
    if not groups:
        return Settled(result=results[0], results=results, agreement=0.0)
    # Of groups of one size the first sample's wins: max keeps the first.
    group = max(groups.values(), key=len)
    return Settled(result=group[0], results=results, agreement=len(group) / len(results))


def _compared(stage: StageConfig, output: Mapping[str, Any]) -> str:
    names = stage.agree or tuple(stage.output["properties"])
    return json.dumps([output.get(name) for name in names], sort_keys=True)


def doubt_about(rule: EscalateConfig, settled: Settled) -> str | None:
    """Return why the answer is doubtful; None where it is not, or where the engine failed."""
    result = settled.result
    if "invalid" in rule.when and result.outcome == "invalid_output":
        return f"invalid: {result.error_class}"
    if result.outcome != "succeeded" or result.output is None:
        return None
    if "empty" in rule.when and not any(_says(value) for value in result.output.values()):
        return "empty: every field is"
    agreement = settled.agreement
    if "disagreement" in rule.when and agreement is not None and agreement < rule.min_agreement:
        return f"disagreement: {agreement:.0%} of {len(settled.results)} samples agree"
    return None


def _says(value: object) -> bool:
    """Tell whether a value is neither null nor empty; 0 and false are values."""
    return value is not None and value not in ("", [], {})


def num_allowed(rule: EscalateConfig, num_asked: int) -> int:
    """Return how many of so many questions may be asked again."""
    return math.ceil(rule.max_share * num_asked)


def decide(settled: Settled, again: Result, reason: str) -> Settled:
    """Return what counts after the question was asked again in Thinking.

    Its answer does, where there is one; else the first answer stands, if there was one. As long as it
    waits for a batch or a person, so does the question.
    """
    waits = again.error_class in AWAITED
    keeps = again.outcome != "succeeded" and settled.result.outcome == "succeeded" and not waits
    return Settled(
        result=settled.result if keeps else again,
        results=[*settled.results, again],
        agreement=settled.agreement,
        escalated=reason,
    )
