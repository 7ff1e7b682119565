"""The figures of a shard and of a run: what went in, what came out, what it took."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from engine.batch import AWAITING_BATCH, Amount
from engine.profile import Prices
from engine.request import Outcome, Result
from flows.run.rows import Answered
from flows.run.units import AWAITING_APPROVAL, REFUSED, UNPAID


class CountMismatch(RuntimeError):
    """Rows in are not rows out: a defect of this program, so the shard is not committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Inquiries of one stage that ended the same bad way."""

    outcome: str
    error_class: str
    count: int
    example: str
    """The message of one of them, with its document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCount:
    """One stage's figures over a shard or a run."""

    num_inputs: int = 0
    num_requests: int = 0
    """Requests that its answers rest on: samples, parts and those asked again among them."""
    outcomes: Mapping[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    """Of what this run has paid for, like all tokens and costs here."""
    cached_tokens: int | None = None
    """None where the endpoint does not report it."""
    planned_cached_tokens: int = 0
    """Prompt tokens that repeat what an earlier request began with: what a prefix cache can save."""
    completion_tokens: int = 0
    reasoning_tokens: int | None = None
    """Those of them that were thinking; None where the endpoint does not report it."""
    cost_usd: float | None = None
    """None where the profile has no prices."""
    saved_usd: float | None = None
    """What the cached tokens would have cost more without the cache; None where prices or cached tokens
    are not known."""
    num_turns: int | None = None
    """Turns of its agents, those of sub-agents included; None where it has none."""
    num_calls: int | None = None
    """Tool calls of its agents."""
    num_failed_calls: int | None = None
    """How many of them failed."""
    modes: Mapping[str, int] = field(default_factory=dict)
    """Answers by the mode that was observed, and `none`."""
    mode_notes: Mapping[str, int] = field(default_factory=dict)
    """Answers by what was noted about their mode."""
    num_mismatched: int = 0
    """Answers observed in another mode than asked for."""
    num_escalated: int = 0
    """Questions asked again in Thinking."""
    num_fallback: int = 0
    """Answers that a fallback gave."""
    routes: Mapping[str, int] = field(default_factory=dict)
    """Requests that its answers rest on, replayed ones among them, by `route_label`."""
    num_guessed: int = 0
    """Requests whose usage was counted here, since the endpoint told none or a wrong one."""
    num_replayed: int = 0
    """Requests that cost this run nothing here: answered in an earlier run, or asked by another stage or
    shard already."""
    num_from_cache: int = 0
    """How many of them the cache has answered."""
    num_parts: int = 0
    """Parts of units that were asked about, where a unit was more than one request can hold."""
    claims: Mapping[str, int] = field(default_factory=dict)
    """Claims by verdict."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Skipped units by error class."""
    waiting: Mapping[str, int] = field(default_factory=dict)
    """Units that are `over_budget` by error class: what each waits for."""
    withheld: Mapping[str, int] = field(default_factory=dict)
    """What goes out once a person agrees: `requests`, `documents`, `prompt_tokens`, `max_output_tokens`."""
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """Which of a stage's requests this run has paid for, by request_key."""

    paid: frozenset[str]
    cached: frozenset[str]
    """Those that the cache has answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """What a shard says of itself: counts only, so that it can cross any border."""

    shard: str
    num_documents: int
    documents: Mapping[str, int]
    """By status."""
    rejected: Mapping[str, int]
    """Rejected documents by error class."""
    num_chunks: int
    stages: Mapping[str, StageCount]
    num_left: int = 0
    """Documents that were not begun, since the budget was reached before."""
    num_sent_again: int = 0
    """Requests that an earlier attempt sent without learning their end."""
    paid: Mapping[str, Amount] = field(default_factory=dict)
    """What this run spent on the shard, by stage; answers of earlier runs are not among it."""
    routes: Mapping[str, int] = field(default_factory=dict)
    """Documents by the route that questions about them take."""
    claims: tuple[str, ...] = ()
    """Tokens of the claims under which it was paid."""

    @property
    def is_to_go_on(self) -> bool:
        """Tell whether some of its requests are asked for again when the run goes on, parts of a reduce too."""
        return bool(self._stages_with(UNPAID))

    @property
    def is_refused(self) -> bool:
        """Tell whether a person has refused some of its requests, about which the next run asks again."""
        return any(REFUSED in stage.skipped for stage in self.stages.values())

    @property
    def stages_in_batches(self) -> frozenset[str]:
        """Return the stages some of whose requests wait for a batch of the host, or to go into one."""
        return self._stages_with({AWAITING_BATCH})

    def _stages_with(self, classes: Set[str]) -> frozenset[str]:
        return frozenset(
            name
            for name, stage in self.stages.items()
            if any(failure.error_class in classes for failure in stage.failures)
        )


def report_from_json(value: Mapping[str, Any]) -> ShardReport:
    """Return the report that `asdict` wrote."""
    stages = {
        name: StageCount(**{
            **stage,
            "failures": tuple(Failure(**failure) for failure in stage["failures"]),
        })
        for name, stage in value["stages"].items()
    }
    paid = {name: Amount(**amount) for name, amount in value["paid"].items()}
    given = {**value, "stages": stages, "paid": paid, "claims": tuple(value["claims"])}
    return ShardReport(**given)


def add_amounts(each: Iterable[Mapping[str, Amount]]) -> dict[str, Amount]:
    """Return the sum of what was spent, by stage."""
    total: dict[str, Amount] = {}
    for amounts in each:
        for stage, amount in amounts.items():
            total[stage] = total.get(stage, Amount()) + amount
    return total


def left_alone(shard: str, num_documents: int) -> ShardReport:
    """Return the report of a shard that was not begun."""
    return ShardReport(
        shard=shard,
        num_documents=0,
        documents={},
        rejected={},
        num_chunks=0,
        stages={},
        num_left=num_documents,
    )


def count_stage(
    num_inputs: int,
    answers: Sequence[Answered],
    parts: Sequence[Answered],
    *,
    planned: int,
    bill: Bill,
    prices: Mapping[str, Prices | None] | None = None,
) -> StageCount:
    """Return one stage's figures.

    Args:
        num_inputs: Units that the stage was to be asked about.
        answers: What became of them.
        parts: Answers to parts of units, on which theirs rest.
        planned: Prompt tokens that a prefix cache can save.
        bill: What of it this run has paid for.
        prices: By the profile that answered.
    """
    every = [*parts, *answers]
    asked = {result.request_key: result for a in every for result in a.results}
    sent = {key: result for key, result in asked.items() if key in bill.paid}
    usages = [result.usage for result in sent.values()]
    works = [result.work for result in sent.values() if result.work is not None]
    results = [answered.result for answered in every if answered.inquiry.requests]
    return StageCount(
        num_inputs=num_inputs,
        num_requests=len(sent),
        outcomes=dict(Counter(answered.result.outcome for answered in answers)),
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        cached_tokens=_sum_known(usage.cached_tokens for usage in usages),
        planned_cached_tokens=planned,
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        reasoning_tokens=_sum_known(usage.reasoning_tokens for usage in usages),
        cost_usd=_sum_known(result.cost_usd for result in sent.values()),
        saved_usd=_sum_known(saved_usd_of(result, prices or {}) for result in sent.values()),
        num_turns=_sum_known(work.num_steps for work in works),
        num_calls=_sum_known(work.num_calls for work in works),
        num_failed_calls=_sum_known(work.num_failed_calls for work in works),
        modes=dict(Counter(result.mode_observed or "none" for result in results)),
        mode_notes=dict(Counter(note for result in results for note in result.mode_notes)),
        # Turns of agents are in one of the other two modes, as their limits say.
        num_mismatched=sum(
            result.mode in {"instant", "thinking"}
            and result.mode_observed not in {None, result.mode}
            for result in results
        ),
        num_escalated=sum(answered.escalated is not None for answered in every),
        num_fallback=sum(result.fallback is not None for result in results),
        routes=dict(Counter(_answered_by(every))),
        num_guessed=sum(usage.num_guessed > 0 for usage in usages),
        num_replayed=len(asked) - len(sent),
        num_from_cache=len(bill.cached),
        num_parts=len(parts),
        claims=dict(Counter(claim.verdict for answered in answers for claim in answered.claims)),
        skipped=_classes(answers, "skipped"),
        waiting=_classes(answers, "over_budget"),
        withheld=_withheld(every),
        failures=_failures(_failure_of(a) for a in every if a.result.outcome in UNANSWERED),
    )


def _classes(answers: Sequence[Answered], outcome: Outcome) -> dict[str, int]:
    """Return the answers with an outcome by their error class."""
    return dict(Counter(a.result.error_class or "" for a in answers if a.result.outcome == outcome))


def _withheld(every: Sequence[Answered]) -> dict[str, int]:
    """Return what waits for a person; nothing where that is nothing."""
    waiting = [end.inquiry for end in every if end.result.error_class == AWAITING_APPROVAL]
    requests = [request for inquiry in waiting for request in inquiry.withheld]
    if not requests:
        return {}
    return {
        "requests": len(requests),
        "documents": len({one.document.source.path for one in waiting if one.document}),
        "prompt_tokens": sum(request.prompt_tokens for request in requests),
        "max_output_tokens": sum(
            request.max_output_tokens + request.max_reasoning_tokens for request in requests
        ),
    }


def route_label(route: str, engine: str, host: str = "") -> str:
    """Return by which route, engine and host a request was answered, in one text; the host may not be known."""
    return "\t".join((route, engine, host))


def _answered_by(every: Iterable[Answered]) -> Iterable[str]:
    """Return the route labels of each request: of who answered it, and of engines that answered turns of an agent."""
    found: dict[str, list[str]] = {}
    for end in every:
        for result in end.results:
            others = set(result.work.engines if result.work else ()) - {result.engine}
            found[result.request_key] = [
                route_label(end.inquiry.route, result.engine, result.host),
                *(route_label(end.inquiry.route, engine) for engine in others),
            ]
    return itertools.chain.from_iterable(found.values())


def saved_usd_of(result: Result, prices: Mapping[str, Prices | None]) -> float | None:
    """Return what a request's cached tokens would have cost more without the cache."""
    known, cached = prices.get(result.engine), result.usage.cached_tokens
    if known is None or cached is None:
        return None
    factor = known.factor(by_batch=bool(result.batch_ids))
    return factor * cached * (known.input_usd - known.cached_input_usd) / 1e6


UNANSWERED = frozenset({"invalid_output", "rejected", "failed", "over_budget"})
"""Outcomes of requests that were to be answered and are not; skipped ones were never asked."""


def _failure_of(answered: Answered) -> Failure:
    result, inquiry = answered.result, answered.inquiry
    where = inquiry.document.source.path if inquiry.document else f"stage {inquiry.stage.name}"
    return Failure(
        outcome=result.outcome,
        error_class=result.error_class or "",
        count=1,
        example=f"{where} ({inquiry.unit}): {result.error}",
    )


def _failures(each: Iterable[Failure]) -> tuple[Failure, ...]:
    """Return the failures gathered by outcome and class, most frequent first."""
    found: dict[tuple[str, str], Failure] = {}
    for failure in each:
        key = (failure.outcome, failure.error_class)
        known = found.get(key)
        found[key] = replace(known, count=known.count + failure.count) if known else failure
    return tuple(sorted(found.values(), key=lambda failure: -failure.count))


_Number = TypeVar("_Number", int, float)


def _sum_known(values: Iterable[_Number | None]) -> _Number | None:
    """Return the sum of the values that are known; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known[1:], start=known[0]) if known else None


def add_up(reports: Sequence[ShardReport]) -> ShardReport:
    """Return the sum of the shards' counts."""
    names = dict.fromkeys(name for report in reports for name in report.stages)
    return ShardReport(
        shard="*",
        num_documents=sum(report.num_documents for report in reports),
        documents=_add([report.documents for report in reports]),
        rejected=_add([report.rejected for report in reports]),
        num_chunks=sum(report.num_chunks for report in reports),
        stages={
            name: _add_stage([r.stages[name] for r in reports if name in r.stages])
            for name in names
        },
        num_left=sum(report.num_left for report in reports),
        num_sent_again=sum(report.num_sent_again for report in reports),
        paid=add_amounts(report.paid for report in reports),
        routes=_add([report.routes for report in reports]),
    )


def _add(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def _add_stage(counts: Sequence[StageCount]) -> StageCount:
    return StageCount(
        num_inputs=sum(count.num_inputs for count in counts),
        num_requests=sum(count.num_requests for count in counts),
        outcomes=_add([count.outcomes for count in counts]),
        prompt_tokens=sum(count.prompt_tokens for count in counts),
        cached_tokens=_sum_known(count.cached_tokens for count in counts),
        planned_cached_tokens=sum(count.planned_cached_tokens for count in counts),
        completion_tokens=sum(count.completion_tokens for count in counts),
        reasoning_tokens=_sum_known(count.reasoning_tokens for count in counts),
        cost_usd=_sum_known(count.cost_usd for count in counts),
        saved_usd=_sum_known(count.saved_usd for count in counts),
        num_turns=_sum_known(count.num_turns for count in counts),
        num_calls=_sum_known(count.num_calls for count in counts),
        num_failed_calls=_sum_known(count.num_failed_calls for count in counts),
        modes=_add([count.modes for count in counts]),
        mode_notes=_add([count.mode_notes for count in counts]),
        num_mismatched=sum(count.num_mismatched for count in counts),
        num_escalated=sum(count.num_escalated for count in counts),
        num_fallback=sum(count.num_fallback for count in counts),
        routes=_add([count.routes for count in counts]),
        num_guessed=sum(count.num_guessed for count in counts),
        num_replayed=sum(count.num_replayed for count in counts),
        num_from_cache=sum(count.num_from_cache for count in counts),
        num_parts=sum(count.num_parts for count in counts),
        claims=_add([count.claims for count in counts]),
        skipped=_add([count.skipped for count in counts]),
        waiting=_add([count.waiting for count in counts]),
        withheld=_add([count.withheld for count in counts]),
        failures=_failures(failure for count in counts for failure in count.failures),
    )


def failures(total: ShardReport) -> tuple[int, int]:
    """Return how many inquiries were asked and how many of them ended without an answer."""
    outcomes = [item for stage in total.stages.values() for item in stage.outcomes.items()]
    asked = sum(count for outcome, count in outcomes if outcome != "skipped")
    return asked, sum(count for outcome, count in outcomes if outcome in UNANSWERED)
