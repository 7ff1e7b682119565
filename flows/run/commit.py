"""Writes a shard's parts and its marker, after checking that the counts add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from connectors.sinks import parquet
from connectors.sinks.lake import chunk_row
from flows.run.bench import Bench
from flows.run.plan import ShardPlan
from flows.run.rows import Answered, record_row, usage_row

if TYPE_CHECKING:
    from flows.run.shard import ReadDocument


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
    outcomes: Mapping[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    """None where the endpoint does not report it."""
    planned_cached_tokens: int = 0
    """Prompt tokens that repeat what an earlier request began with: what a prefix cache can save."""
    completion_tokens: int = 0
    cost_usd: float | None = None
    """None where the profile has no prices."""
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
    num_guessed: int = 0
    """Requests whose usage was counted here, since the endpoint told none or a wrong one."""
    failures: tuple[Failure, ...] = ()


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


def report_from_json(value: Mapping[str, Any]) -> ShardReport:
    """Return the report that `asdict` wrote."""
    stages = {
        name: StageCount(**{
            **stage,
            "failures": tuple(Failure(**failure) for failure in stage["failures"]),
        })
        for name, stage in value["stages"].items()
    }
    return ShardReport(**{**value, "stages": stages})


def left_alone(plan: ShardPlan) -> ShardReport:
    """Return the report of a shard that was not begun."""
    return ShardReport(
        shard=plan.shard,
        num_documents=0,
        documents={},
        rejected={},
        num_chunks=0,
        stages={},
        num_left=len(plan.sources),
    )


def marker_path(run_id: str, shard: str = "") -> str:
    """Return where the shard's marker lies: its report, put after its parts."""
    return f"runs/{run_id}/shards/{shard}.json" if shard else f"runs/{run_id}/shards/"


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
        lake.put_part(bench.record_tables[stage.name], shard, rows, schema)
    usage = _usage(answers)
    lake.put_part(f"runs/{bench.job.run_id}/usage", shard, usage, parquet.USAGE)
    # Documents last: a path that this table names has its chunks and records in place.
    document_rows = [
        parquet.document_row(read.document, shard=shard, num_chunks=len(read.chunks))
        for read in documents
    ]
    lake.put_part("documents", shard, document_rows, parquet.DOCUMENTS)
    lake.put_json(marker_path(bench.job.run_id, shard), asdict(report))
    return report


def _usage(answers: Mapping[str, Sequence[Answered]]) -> list[dict[str, Any]]:
    """Return one usage row per request that was sent, not per record that shares it."""
    rows: dict[str, dict[str, Any]] = {}
    for group in answers.values():
        for answered in group:
            for result in answered.results:
                row = usage_row(answered.inquiry.row_key, result)
                rows.setdefault(result.request_key, row)
    return list(rows.values())


def _put_media(bench: Bench, documents: Sequence[ReadDocument]) -> None:
    for read in documents:
        content = read.document.content
        if content is None:
            continue
        names = [item.name for item in content.media] + [table.name for table in content.tables]
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
        documents=dict(Counter(read.document.status for read in documents)),
        rejected=dict(rejected),
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
            inquiry = answered.inquiry
            for result in answered.results:
                if result.request_key in sent:
                    continue
                material = inquiry.requests[0].material
                again = inquiry.material_tokens if material in shown else 0
                shown.add(material)
                sent[result.request_key] = bench.asker.instructions_tokens + again
        planned[stage] = sum(sent.values())
    return planned


def _stage_count(num_inputs: int, answers: Sequence[Answered], planned: int) -> StageCount:
    sent = {result.request_key: result for a in answers for result in a.results}
    usages = [result.usage for result in sent.values()]
    results = [answered.result for answered in answers if answered.inquiry.requests]
    return StageCount(
        num_inputs=num_inputs,
        outcomes=dict(Counter(answered.result.outcome for answered in answers)),
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        cached_tokens=_sum_known(usage.cached_tokens for usage in usages),
        planned_cached_tokens=planned,
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cost_usd=_sum_known(result.cost_usd for result in sent.values()),
        modes=dict(Counter(result.mode_observed or "none" for result in results)),
        mode_notes=dict(Counter(note for result in results for note in result.mode_notes)),
        num_mismatched=sum(result.mode_observed not in {None, result.mode} for result in results),
        num_escalated=sum(answered.escalated is not None for answered in answers),
        num_fallback=sum(result.fallback is not None for result in results),
        num_guessed=sum(usage.num_guessed > 0 for usage in usages),
        failures=_failures(_failure_of(a) for a in answers if a.result.outcome in UNANSWERED),
    )


UNANSWERED = frozenset({"invalid_output", "rejected", "failed", "over_budget"})
"""Outcomes of requests that were to be answered and are not; skipped ones were never asked."""


def _failure_of(answered: Answered) -> Failure:
    result, inquiry = answered.result, answered.inquiry
    return Failure(
        outcome=result.outcome,
        error_class=result.error_class or "",
        count=1,
        example=f"{inquiry.document.source.path} ({inquiry.unit}): {result.error}",
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
        stages={
            name: _add_stage([r.stages[name] for r in reports if name in r.stages])
            for name in names
        },
        num_left=sum(report.num_left for report in reports),
    )


def _add(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def _add_stage(counts: Sequence[StageCount]) -> StageCount:
    return StageCount(
        num_inputs=sum(count.num_inputs for count in counts),
        outcomes=_add([count.outcomes for count in counts]),
        prompt_tokens=sum(count.prompt_tokens for count in counts),
        cached_tokens=_sum_known(count.cached_tokens for count in counts),
        planned_cached_tokens=sum(count.planned_cached_tokens for count in counts),
        completion_tokens=sum(count.completion_tokens for count in counts),
        cost_usd=_sum_known(count.cost_usd for count in counts),
        modes=_add([count.modes for count in counts]),
        mode_notes=_add([count.mode_notes for count in counts]),
        num_mismatched=sum(count.num_mismatched for count in counts),
        num_escalated=sum(count.num_escalated for count in counts),
        num_fallback=sum(count.num_fallback for count in counts),
        num_guessed=sum(count.num_guessed for count in counts),
        failures=_failures(failure for count in counts for failure in count.failures),
    )
