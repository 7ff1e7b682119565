"""Writes a shard's parts and the run's manifest, after checking that the counts add up."""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from connectors.sinks import parquet
from connectors.sinks.lake import chunk_row
from flows.run.bench import Bench
from flows.run.plan import ShardPlan
from flows.run.rows import Answered, record_row, usage_row

if TYPE_CHECKING:
    from flows.run.shard import ReadDocument

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


class CountMismatch(RuntimeError):
    """Rows in are not rows out: a defect of this program, so the shard is not committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCount:
    """One stage's figures over a shard or a run."""

    num_inputs: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    """None where the endpoint does not report it."""
    planned_cached_tokens: int = 0
    """Prompt tokens that repeat what an earlier request began with: what a prefix cache can save."""
    completion_tokens: int = 0


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


def commit_shard(bench: Bench, plan: ShardPlan, documents: Sequence[ReadDocument]) -> ShardReport:
    """Put the shard's parts and return its counts.

    Raises:
        CountMismatch: A document or an inquiry has no row or more than one.
        StorageError: A part cannot be written.
    """
    answers = {
        stage.name: [answered for read in documents for answered in read.answers[stage.name]]
        for stage in bench.job.pipeline.stages
    }
    report = _report(bench, plan, documents, answers)
    _check(plan, report)
    _put_media(bench, documents)
    lake, shard = bench.lake, plan.shard
    chunk_rows = [
        chunk_row(chunk, uri=read.document.source.uri, path=read.document.source.path)
        for read in documents
        for chunk in read.chunks
    ]
    lake.put_part("chunks", shard, chunk_rows, parquet.CHUNKS)
    for stage in bench.job.pipeline.stages:
        rows = [record_row(answered) for answered in answers[stage.name]]
        schema = parquet.record_schema(stage.output)
        lake.put_part(f"records/stage={stage.name}", shard, rows, schema)
    usage = _usage(answers)
    lake.put_part(f"runs/{bench.job.run_id}/usage", shard, usage, parquet.USAGE)
    # Documents last: a path that this table names has its chunks and records in place.
    document_rows = [
        parquet.document_row(read.document, shard=shard, num_chunks=len(read.chunks))
        for read in documents
    ]
    lake.put_part("documents", shard, document_rows, parquet.DOCUMENTS)
    return report


def _usage(answers: Mapping[str, Sequence[Answered]]) -> list[dict[str, Any]]:
    """Return one usage row per request that was sent, not per record that shares it."""
    rows: dict[str, dict[str, Any]] = {}
    for group in answers.values():
        for answered in group:
            if answered.inquiry.request is not None:
                rows.setdefault(answered.result.request_key, usage_row(answered))
    return list(rows.values())


def _put_media(bench: Bench, documents: Sequence[ReadDocument]) -> None:
    for read in documents:
        names = {
            segment.media for chunk in read.chunks for segment in chunk.segments if segment.media
        }
        for name in sorted(names):
            path = f"media/{read.document.document_key}/{name}"
            bench.lake.storage.put(path, (read.media_dir / name).read_bytes())


def _report(
    bench: Bench,
    plan: ShardPlan,
    documents: Sequence[ReadDocument],
    answers: Mapping[str, Sequence[Answered]],
) -> ShardReport:
    planned = _planned_cached_tokens(bench, answers)
    readable = [read for read in documents if read.document.status != "rejected"]
    num_chunks = sum(len(read.chunks) for read in documents)
    rejected = Counter(
        read.document.error_class or "" for read in documents if read.document.status == "rejected"
    )
    return ShardReport(
        shard=plan.shard,
        num_documents=len(documents),
        documents=Counter(read.document.status for read in documents),
        rejected=rejected,
        num_chunks=num_chunks,
        stages={
            stage.name: _stage_count(
                num_chunks if stage.over == "chunk" else len(readable),
                answers[stage.name],
                planned[stage.name],
            )
            for stage in bench.job.pipeline.stages
        },
    )


def _planned_cached_tokens(
    bench: Bench, answers: Mapping[str, Sequence[Answered]]
) -> dict[str, int]:
    """Return per stage how many prompt tokens the layout lets a prefix cache serve.

    Instructions repeat in every request, and material in every stage after the first that shows it.
    """
    shown: set[str] = set()
    planned: dict[str, int] = {}
    for stage, group in answers.items():
        sent: dict[str, int] = {}
        for answered in group:
            request = answered.inquiry.request
            if request is None or request.request_key in sent:
                continue
            again = answered.inquiry.material_tokens if request.material in shown else 0
            shown.add(request.material)
            sent[request.request_key] = bench.asker.instructions_tokens + again
        planned[stage] = sum(sent.values())
    return planned


def _stage_count(num_inputs: int, answers: Sequence[Answered], planned: int) -> StageCount:
    sent = {a.result.request_key: a.result.usage for a in answers if a.inquiry.request is not None}
    cached = [usage.cached_tokens for usage in sent.values() if usage.cached_tokens is not None]
    return StageCount(
        num_inputs=num_inputs,
        outcomes=Counter(answered.result.outcome for answered in answers),
        prompt_tokens=sum(usage.prompt_tokens for usage in sent.values()),
        cached_tokens=sum(cached) if cached else None,
        planned_cached_tokens=planned,
        completion_tokens=sum(usage.completion_tokens for usage in sent.values()),
    )


def _check(plan: ShardPlan, report: ShardReport) -> None:
    if report.num_documents != len(plan.sources):
        raise CountMismatch(
            f"shard {plan.shard}: {len(plan.sources)} sources gave {report.num_documents} documents"
        )
    for name, stage in report.stages.items():
        if sum(stage.outcomes.values()) != stage.num_inputs:
            raise CountMismatch(
                f"shard {plan.shard}, stage {name!r}: {stage.num_inputs} inputs gave"
                f" {dict(stage.outcomes)}"
            )


def add_up(reports: Sequence[ShardReport]) -> ShardReport:
    """Return the sum of the shards' counts."""
    names = dict.fromkeys(name for report in reports for name in report.stages)
    return ShardReport(
        shard="*",
        num_documents=sum(report.num_documents for report in reports),
        documents=_add([report.documents for report in reports]),
        rejected=_add([report.rejected for report in reports]),
        num_chunks=sum(report.num_chunks for report in reports),
        stages={name: _add_stage([report.stages[name] for report in reports]) for name in names},
    )


def _add(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def _add_stage(counts: Sequence[StageCount]) -> StageCount:
    cached = [count.cached_tokens for count in counts if count.cached_tokens is not None]
    return StageCount(
        num_inputs=sum(count.num_inputs for count in counts),
        outcomes=_add([count.outcomes for count in counts]),
        prompt_tokens=sum(count.prompt_tokens for count in counts),
        cached_tokens=sum(cached) if cached else None,
        planned_cached_tokens=sum(count.planned_cached_tokens for count in counts),
        completion_tokens=sum(count.completion_tokens for count in counts),
    )


def manifest(
    bench: Bench, total: ShardReport, *, num_listed: int, num_shards: int, started: datetime
) -> dict[str, Any]:
    """Return the run's manifest: counts that add up, resolved configuration, versions."""
    job = bench.job
    config = job.pipeline.model_dump(mode="json")
    asked, unanswered = failures(total)
    adds_up = total.num_documents == num_listed and all(
        sum(stage.outcomes.values()) == stage.num_inputs for stage in total.stages.values()
    )
    rate = unanswered / asked if asked else 0.0
    over = rate > job.pipeline.failure_limit
    finished = datetime.now(UTC)
    return {
        "run_id": job.run_id,
        "pipeline": job.pipeline.name,
        "verdict": "incomplete" if not adds_up else "over_failure_limit" if over else "complete",
        "started": started.isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "seconds": round((finished - started).total_seconds(), 3),
        "source": job.source,
        "sink": bench.lake.url,
        "engine": {
            "profile": bench.endpoint.profile.name,
            "model": bench.endpoint.model,
            "base_url": bench.endpoint.base_url,
            "context_tokens": bench.endpoint.context_tokens,
            "tokens_counted": "exactly" if bench.endpoint.counter.exact else "by estimate",
        },
        "documents": {"listed": num_listed, **total.documents},
        "rejected": dict(total.rejected),
        "shards": num_shards,
        "chunks": total.num_chunks,
        "chunk_max_tokens": bench.rule.max_tokens,
        "stages": {
            name: {
                "inputs": stage.num_inputs,
                "outcomes": dict(stage.outcomes),
                "prompt_tokens": stage.prompt_tokens,
                "cached_tokens": stage.cached_tokens,
                "planned_cached_tokens": stage.planned_cached_tokens,
                "completion_tokens": stage.completion_tokens,
            }
            for name, stage in total.stages.items()
        },
        "requests": {"asked": asked, "unanswered": unanswered, "failure_rate": round(rate, 6)},
        "failure_limit": job.pipeline.failure_limit,
        "config": config,
        "config_hash": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        "versions": {"python": platform.python_version()} | {n: version(n) for n in VERSIONED},
    }


def failures(total: ShardReport) -> tuple[int, int]:
    """Return how many inquiries were asked and how many of them ended without an answer."""
    outcomes = _add([stage.outcomes for stage in total.stages.values()])
    asked = sum(outcomes.values()) - outcomes.get("skipped", 0)
    return asked, asked - outcomes.get("succeeded", 0)
