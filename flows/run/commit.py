"""Writes a shard's parts, its marker and its commit, after checking that the counts add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from connectors.errors import StorageError
from connectors.sinks import parquet
from connectors.sinks.lake import PartInfo, chunk_row
from engine.request import Result
from flows.run import commits
from flows.run.bench import Bench
from flows.run.counts import CountMismatch, ShardReport, count_stage, left_alone
from flows.run.held import READ_AGAIN
from flows.run.ledger import Ledger
from flows.run.plan import ShardPlan
from flows.run.resume import marker_path
from flows.run.rows import Answered, record_row, usage_row

if TYPE_CHECKING:
    from flows.run.shard import ReadDocument, Shard


def commit_shard(shard: Shard, documents: Sequence[ReadDocument]) -> ShardReport:
    """Put the shard's parts, then what says so, and return its counts.

    Raises:
        CountMismatch: A document or an inquiry has no row or more than one.
        StorageError: A part cannot be written, or somebody else writes it.
    """
    bench, ledger = shard.bench, shard.ledger
    answers = {
        stage.name: [answered for read in documents for answered in read.answers[stage.name]]
        for stage in bench.job.pipeline.stages
    }
    path = marker_path(bench.job.run_id, shard.plan.shard)
    report = _with_paid(_report(shard, documents, answers), ledger, bench.lake.find_json(path))
    _check(shard.plan, report)
    _put_media(bench, documents)
    parts = _put_parts(shard, documents, answers)
    bench.lake.put_json(path, asdict(report))
    _put_commit(shard, documents, answers, parts)
    ledger.remove_journal()
    bench.copies.add(shard.plan.shard, (read.document.document_key for read in documents))
    return report


def _with_paid(
    report: ShardReport, ledger: Ledger, earlier: Mapping[str, Any] | None
) -> ShardReport:
    """Return the report with what this run has paid, earlier commits of the shard included."""
    if earlier is None:
        earlier = asdict(left_alone(report.shard, 0))
    paid = ledger.paid(earlier["claims"])
    return replace(
        report,
        num_sent_again=earlier["num_sent_again"] + ledger.num_sent_again,
        paid_tokens=earlier["paid_tokens"] + paid.tokens,
        paid_usd=earlier["paid_usd"] + paid.usd,
        claims=tuple(sorted({*earlier["claims"], *ledger.claims()})),
    )


def _put_parts(
    shard: Shard, documents: Sequence[ReadDocument], answers: Mapping[str, Sequence[Answered]]
) -> dict[str, PartInfo]:
    """Put all parts, documents last: a path that this table names has its rows in place."""
    bench, name, run_id = shard.bench, shard.plan.shard, shard.bench.job.run_id
    lake, parts = bench.lake, {}

    def put(table: str, data: bytes) -> None:
        path = f"{table}/{name}.parquet"
        parts[path] = lake.put_part(path, data, history=f"runs/{run_id}/superseded")

    chunk_rows = [
        chunk_row(chunk, uri=read.document.source.uri, path=read.document.source.path)
        for read in documents
        for chunk in read.chunks
    ]
    put("chunks", parquet.to_parquet(chunk_rows, parquet.CHUNKS))
    for stage in bench.job.pipeline.stages:
        rows = [record_row(answered) for answered in answers[stage.name]]
        schema = parquet.record_schema(stage.output)
        put(bench.record_tables[stage.name], parquet.to_parquet(rows, schema))
    usage = parquet.to_parquet(_usage(answers), parquet.USAGE)
    lake.storage.put(f"runs/{run_id}/usage/{name}.parquet", usage)
    shard.ledger.commit(_by_document(answers))
    document_rows = [
        parquet.document_row(read.document, shard=name, num_chunks=len(read.chunks))
        for read in documents
    ]
    put("documents", parquet.to_parquet(document_rows, parquet.DOCUMENTS))
    return parts


def _by_document(answers: Mapping[str, Sequence[Answered]]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for group in answers.values():
        for answered in group:
            results = found.setdefault(answered.inquiry.document.document_key, [])
            if answered.inquiry.requests:
                results += answered.results
    return found


def _put_commit(
    shard: Shard,
    documents: Sequence[ReadDocument],
    answers: Mapping[str, Sequence[Answered]],
    parts: Mapping[str, PartInfo],
) -> None:
    """Say in the sink what the parts are.

    Raises:
        StorageError: Somebody else has said so meanwhile.
    """
    bench, storage = shard.bench, shard.bench.lake.storage
    earlier = shard.held.commit.parts if shard.held.commit else {}
    written = {path.rpartition("/")[0] for path in parts}
    # Parts of columns that a stage had before stay as they are.
    kept = {path: part for path, part in earlier.items() if path.rpartition("/")[0] not in written}
    commit = commits.Commit(
        run_id=bench.job.run_id,
        reading_key=bench.reading_key,
        work_key=bench.work_key,
        signature=commits.signature(read.document.source for read in documents),
        document_keys=tuple(read.document.document_key for read in documents),
        outcomes=dict(
            Counter(answered.result.outcome for group in answers.values() for answered in group)
        ),
        again=any(read.document.error_class in READ_AGAIN for read in documents),
        parts={**kept, **parts},
    )
    path, data = commits.commit_path(shard.plan.shard), commits.as_bytes(commit)
    etag = shard.held.commit_etag
    put = storage.put_if_match(path, data, etag) if etag else storage.put_if_absent(path, data)
    if put is None:
        uri = storage.uri(path)
        raise StorageError(f"{uri} was written by another run meanwhile; resume this one", uri=uri)


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
        if content is None or read.is_held:
            continue
        names = [item.name for item in content.media] + [table.name for table in content.tables]
        for name in sorted(names):
            path = f"media/{read.document.document_key}/{name}"
            bench.lake.storage.put(path, (read.media_dir / name).read_bytes())


def _report(
    shard: Shard,
    documents: Sequence[ReadDocument],
    answers: Mapping[str, Sequence[Answered]],
) -> ShardReport:
    bench = shard.bench
    planned = _planned_cached_tokens(bench, answers)
    readable = [read for read in documents if read.document.status != "rejected"]
    num_chunks = sum(len(read.chunks) for read in documents)
    rejected = Counter(
        read.document.error_class or "" for read in documents if read.document.status == "rejected"
    )
    return ShardReport(
        shard=shard.plan.shard,
        num_documents=len(documents),
        documents=dict(Counter(read.document.status for read in documents)),
        rejected=dict(rejected),
        num_chunks=num_chunks,
        stages={
            stage.name: count_stage(
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
