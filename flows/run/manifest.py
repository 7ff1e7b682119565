"""The run's manifest: counts that add up, the verdict, the resolved configuration, versions."""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

from engine.batch import AWAITING_BATCH, Amount
from flows.run.approvals import questions, summary
from flows.run.bench import Bench
from flows.run.counts import ShardReport, StageCount, failures
from flows.run.plan import Planner, Retry
from flows.run.plans import take_plan
from flows.run.units import AWAITING_APPROVAL

Verdict = Literal[
    "complete",
    "over_failure_limit",
    "budget_reached",
    "awaiting_approval",
    "awaiting_batch",
    "incomplete",
]

VERSIONED = (
    "headrace",
    "prefect",
    "pyarrow",
    "polars",
    "pypdfium2",
    "python-calamine",
    "av",
    "rapidocr",
)


def manifest(
    bench: Bench,
    total: ShardReport,
    planner: Planner | Retry,
    *,
    num_shards: int,
    started: datetime,
) -> dict[str, Any]:
    """Return the manifest of a run whose shards add up to `total`."""
    num_unchanged = sum(planner.unchanged.values())
    job, endpoint = bench.job, bench.endpoint
    config = job.pipeline.model_dump(mode="json")
    stages = {stage.name: StageCount() for stage in job.pipeline.stages} | dict(total.stages)
    asked, unanswered = failures(total)
    finished = datetime.now(UTC)
    by_stage = bench.budget.spent_by_stage
    return {
        "run_id": job.run_id,
        "pipeline": job.pipeline.name,
        "verdict": _verdict(bench, total, planner.num_listed - num_unchanged),
        "started": started.isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "seconds": round((finished - started).total_seconds(), 3),
        "start": job.start,
        "source": job.source,
        "sink": bench.lake.url,
        "engine": {
            "profile": endpoint.profile.name,
            "model": endpoint.model,
            "base_url": endpoint.base_url,
            "context_tokens": endpoint.context_tokens,
            "tokens_counted": "exactly" if endpoint.counter.exact else "by estimate",
            "token_counter": endpoint.counter.name,
            "fallback": [
                line.endpoint.profile.name for line in bench.route.lines[bench.route.num_replicas :]
            ],
        },
        "routes": _routes(bench, total),
        "documents": {"listed": planner.num_listed, **total.documents}
        | ({"left": total.num_left} if total.num_left else {})
        | ({"unchanged": num_unchanged} if num_unchanged else {}),
        "rejected": dict(total.rejected),
        "shards": num_shards,
        "sent_again": total.num_sent_again,
        "chunks": total.num_chunks,
        "chunk_max_tokens": bench.rule.max_tokens,
        "stages": {
            name: {
                "table": bench.record_tables[name],
                "inputs": stage.num_inputs,
                "requests": stage.num_requests,
                "outcomes": dict(stage.outcomes),
                "prompt_tokens": stage.prompt_tokens,
                "cached_tokens": stage.cached_tokens,
                "planned_cached_tokens": stage.planned_cached_tokens,
                "completion_tokens": stage.completion_tokens,
                "reasoning_tokens": stage.reasoning_tokens,
                "cost_usd": stage.cost_usd,
                "saved_usd": stage.saved_usd,
                "turns": stage.num_turns,
                "tool_calls": stage.num_calls,
                "failed_calls": stage.num_failed_calls,
                "replayed": stage.num_replayed,
                "from_cache": stage.num_from_cache,
                "parts": stage.num_parts,
                "claims": dict(stage.claims),
                "skipped": dict(stage.skipped),
                "waiting": dict(stage.waiting),
                **_mode(bench, name),
                "modes_observed": dict(stage.modes),
                "mode_notes": dict(stage.mode_notes),
                "mode_mismatches": stage.num_mismatched,
                "escalated": stage.num_escalated,
                "by_fallback": stage.num_fallback,
                "usage_guessed": stage.num_guessed,
            }
            for name, stage in stages.items()
        },
        "batches": bench.desk.waiting() if bench.desk else [],
        "approvals": _approvals(bench),
        "failures": [
            {"stage": name, **asdict(failure)}
            for name, stage in total.stages.items()
            for failure in stage.failures
        ],
        "requests": {
            "asked": asked,
            "unanswered": unanswered,
            "failure_rate": round(_rate(total), 6),
        },
        "failure_limit": job.pipeline.failure_limit,
        "estimate": take_plan(job, bench.lake),
        "spent": spent_json(bench)
        | {
            "stages": {name: _amount(bench, one) for name, one in sorted(by_stage.items())},
            "reached": bench.budget.reached,
        },
        "config": config,
        "config_hash": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        "versions": {"python": platform.python_version()} | {n: version(n) for n in VERSIONED},
    }


def spent_json(bench: Bench) -> dict[str, Any]:
    """Return what the run has spent; None in a unit that the engine's profile knows nothing of."""
    return _amount(bench, bench.budget.spent)


def _amount(bench: Bench, amount: Amount) -> dict[str, Any]:
    profile = bench.endpoint.profile
    timed = profile.gpus is not None and profile.throughput is not None
    return {
        "tokens": amount.tokens,
        "usd": round(amount.usd, 6) if profile.prices else None,
        "gpu_seconds": round(amount.gpu_seconds, 3) if timed else None,
    }


def _approvals(bench: Bench) -> list[dict[str, Any]]:
    """Return what a person was asked to agree to in this run, and who decided what."""
    stages = bench.job.pipeline.stages
    if not any(stage.approval or stage.approve_calls for stage in stages):
        return []
    return summary([*questions(bench.lake, bench.job.run_id)])


def _mode(bench: Bench, name: str) -> dict[str, str]:
    is_gathered = any(one.name == name and one.is_gathered for one in bench.job.pipeline.stages)
    prepared = (bench.gathering if is_gathered else bench).asker.stages.get(name)
    if prepared is None:
        return {"mode": "sql", "mode_reason": "computed; no model is asked"}
    return {"mode": prepared.choice.mode, "mode_reason": prepared.choice.reason}


def _routes(bench: Bench, total: ShardReport) -> list[dict[str, Any]]:
    """Return each route: why documents may go there, how many did, and who answered how often."""
    answered: Counter[str] = Counter()
    for stage in total.stages.values():
        answered.update(stage.routes)
    return [
        {
            "route": passage.name,
            "why": passage.why,
            "engines": list(passage.engines),
            "documents": total.routes.get(passage.name, 0),
            "answered_by": [
                {"engine": engine, "host": host, "requests": number}
                for label, number in sorted(answered.items())
                for route, engine, host in [label.split("\t")]
                if route == passage.name
            ],
        }
        for passage in bench.routes.passages
    ]


def _verdict(bench: Bench, total: ShardReport, num_documents: int) -> Verdict:
    adds_up = total.num_documents + total.num_left == num_documents and all(
        sum(stage.outcomes.values()) == stage.num_inputs for stage in total.stages.values()
    )
    if not adds_up:
        return "incomplete"
    if bench.hopeless.is_set():
        return "over_failure_limit"
    if (awaited := _awaited(bench, total)) is not None:
        return awaited
    if total.num_left or total.is_to_go_on:
        return "budget_reached"
    over = _rate(total) > bench.job.pipeline.failure_limit
    return "over_failure_limit" if over else "complete"


def _awaited(bench: Bench, total: ShardReport) -> Verdict | None:
    """Return what the run waits for before it can go on; None where it is nothing, or a larger budget."""
    waiting = {
        failure.error_class
        for stage in total.stages.values()
        for failure in stage.failures
        if failure.outcome == "over_budget"
    }
    if bench.budget.is_reached:
        return None
    if AWAITING_APPROVAL in waiting:
        return "awaiting_approval"
    return "awaiting_batch" if AWAITING_BATCH in waiting else None


def _rate(total: ShardReport) -> float:
    asked, unanswered = failures(total)
    return unanswered / asked if asked else 0.0
