"""Writes a shard's parts, its marker and its commit, after checking that the counts add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from config.pipeline import StageConfig
from connectors.document import Document
from connectors.errors import StorageError
from connectors.sinks import parquet
from connectors.sinks.lake import PartInfo, chunk_row
from engine.request import Result
from flows.run import commits
from flows.run.bench import Bench
from flows.run.counts import (
    Bill,
    CountMismatch,
    ShardReport,
    add_amounts,
    count_stage,
    left_alone,
    report_from_json,
)
from flows.run.held import READ_AGAIN
from flows.run.layout import whole_blocks
from flows.run.ledger import Ledger
from flows.run.plan import ShardPlan
from flows.run.resume import marker_path
from flows.run.rows import Answered, record_row, usage_row
from flows.run.transcripts import transcripts_of, write_transcripts
from flows.run.units import AWAITING_APPROVAL

if TYPE_CHECKING:
    from flows.run.reading import ReadDocument
    from flows.run.shard import Shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A shard, or a stage over the corpus, whose questions have all come to their end."""

    report: ShardReport
    parts: Iterable[tuple[str, bytes]]
    """Tables and their parts, in the order in which they are put."""
    last: Iterable[tuple[str, bytes]] = ()
    """Those that are put when all else is in place."""
    usage: Sequence[Mapping[str, Any]]
    results: Mapping[str, Sequence[Result]]
    """What the parts rest on, by the key of the document; under the empty key what spans documents."""
    outcomes: Mapping[str, int]
    work_key: str
    documents: Sequence[Document] = ()
    transcripts: Sequence[Mapping[str, Any]] = ()
    """Rows of what agents did."""
    is_open: bool = False
    """Whether a stage before it was not answered yet, so that the next run asks again for some of it."""
    withheld_keys: frozenset[str] = frozenset()
    """Keys of requests that a person has not agreed to, not yet or not at all; the next run asks again."""
    awaited_keys: frozenset[str] = frozenset()
    """Those of them that nobody has refused."""


def commit_shard(shard: Shard, documents: Sequence[ReadDocument]) -> ShardReport:
    """Put the shard's parts, then what says so, and return its counts.

    Raises:
        CountMismatch: A document or an inquiry has no row or more than one.
        StorageError: A part cannot be written, or somebody else writes it.
    """
    bench, name = shard.bench, shard.plan.shard
    own = [stage for stage in bench.job.pipeline.stages if not stage.is_gathered]
    ends = _Ends(
        answers={s.name: [end for read in documents for end in read.ends(s.name)] for s in own},
        parts={s.name: [end for read in documents for end in read.parts[s.name]] for s in own},
    )
    report = _report(shard, documents, ends)
    _check(shard.plan, report)
    _put_media(bench, documents)
    document_rows = [
        parquet.document_row(read.document, shard=name, num_chunks=len(read.chunks))
        for read in documents
    ]
    report = put_done(
        shard,
        Done(
            report=report,
            parts=_parts(shard, documents, ends),
            # A path that this table names has its rows in place.
            last=[("documents", parquet.to_parquet(document_rows, parquet.DOCUMENTS))],
            usage=usage_rows(ends.all(), shard.ledger),
            results=_by_document(ends.all()),
            outcomes=Counter(end.result.outcome for end in ends.all()),
            work_key=bench.work_key,
            documents=[read.document for read in documents],
            transcripts=transcripts_of(ends.all(), shard.ledger.steps.by_request()),
            withheld_keys=withheld_keys(ends.all()),
            awaited_keys=awaited_keys(ends.all()),
        ),
    )
    bench.copies.add(name, (read.document.document_key for read in documents))
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ends:
    """What became of a shard's questions, by stage."""

    answers: Mapping[str, Sequence[Answered]]
    parts: Mapping[str, Sequence[Answered]]
    """About parts of documents."""

    def all(self) -> Iterator[Answered]:
        for stage in self.answers:
            yield from self.parts[stage]
            yield from self.answers[stage]


def put_done(shard: Shard, done: Done) -> ShardReport:
    """Put the parts, then what says so, and return the counts with what was paid.

    Raises:
        StorageError: A part cannot be written, or somebody else writes it.
    """
    bench, ledger, name, run_id = (
        shard.bench,
        shard.ledger,
        shard.plan.shard,
        shard.bench.job.run_id,
    )
    path = marker_path(run_id, name)
    marker = bench.lake.find_json(path)
    earlier = report_from_json(marker) if marker else left_alone(name, 0)
    report = _with_paid(done.report, ledger, earlier)
    put: dict[str, PartInfo] = {}

    def put_all(parts: Iterable[tuple[str, bytes]]) -> None:
        for table, data in parts:
            part = f"{table}/{name}.parquet"
            put[part] = bench.lake.put_part(part, data, history=f"runs/{run_id}/superseded")

    put_all(done.parts)
    usage = parquet.to_parquet(done.usage, parquet.USAGE)
    bench.lake.storage.put(f"runs/{run_id}/usage/{name}.parquet", usage)
    if bench.job.pipeline.has_agents:
        write_transcripts(bench.lake, run_id, name, done.transcripts)
    # Before the commit: a kill in between leaves the journal, and with it what is put again.
    shard.replays.put(ledger.new_answers(done.results))
    ledger.commit(done.results, done.awaited_keys)
    if bench.job.pipeline.has_agents:
        ledger.keep_steps(done.withheld_keys)
    put_all(done.last)
    bench.lake.put_json(path, asdict(report))
    _put_commit(shard, done, put)
    ledger.remove_journal()
    if bench.desk is not None:
        every = (result for results in done.results.values() for result in results)
        open_keys = [one.request_key for one in every if one.outcome == "over_budget"]
        bench.desk.close(name, {*open_keys, *done.withheld_keys})
    return report


def _with_paid(report: ShardReport, ledger: Ledger, earlier: ShardReport) -> ShardReport:
    """Return the report with what this run has paid, earlier commits of the shard included."""
    return replace(
        report,
        num_sent_again=earlier.num_sent_again + ledger.num_sent_again,
        paid=add_amounts([earlier.paid, ledger.paid(earlier.claims)]),
        claims=tuple(sorted({*earlier.claims, *ledger.claims()})),
    )


def _parts(
    shard: Shard, documents: Sequence[ReadDocument], ends: _Ends
) -> Iterator[tuple[str, bytes]]:
    chunk_rows = [
        chunk_row(chunk, uri=read.document.source.uri, path=read.document.source.path)
        for read in documents
        for chunk in read.chunks
    ]
    yield "chunks", parquet.to_parquet(chunk_rows, parquet.CHUNKS)
    for stage in shard.bench.job.pipeline.stages:
        if stage.name in ends.answers:
            rows = [record_row(end) for end in ends.answers[stage.name]]
            divided = [record_row(end) for end in ends.parts[stage.name]]
            yield from record_parts(shard, stage, rows, divided)


def record_parts(
    shard: Shard,
    stage: StageConfig,
    rows: Sequence[Mapping[str, Any]],
    divided: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, bytes]]:
    """Yield a stage's part of its records table, and that of answers to parts of its units.

    The latter has a table of its own only where there are such answers, or were.
    """
    table = shard.bench.record_tables[stage.name]
    schema = parquet.record_schema(stage.output, routed=shard.bench.job.pipeline.policy is not None)
    yield table, parquet.to_parquet(rows, schema)
    inner = f"{commits.PARTIAL}/{table.removeprefix('records/')}"
    earlier = shard.held.commit.parts if shard.held.commit else {}
    if divided or f"{inner}/{shard.plan.shard}.parquet" in earlier:
        yield inner, parquet.to_parquet(divided, schema)


def withheld_keys(ends: Iterable[Answered]) -> frozenset[str]:
    """Return the keys of the requests that a person has not agreed to."""
    return frozenset(request.request_key for end in ends for request in end.inquiry.withheld)


def awaited_keys(ends: Iterable[Answered]) -> frozenset[str]:
    """Return the keys of the requests on which a person has not decided yet."""
    return withheld_keys(end for end in ends if end.result.error_class == AWAITING_APPROVAL)


def _by_document(ends: Iterable[Answered]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for end in ends:
        document = end.inquiry.document
        results = found.setdefault(document.document_key if document else "", [])
        results += end.results
    return found


def _put_commit(shard: Shard, done: Done, parts: Mapping[str, PartInfo]) -> None:
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
        work_key=done.work_key,
        signature=commits.signature(document.source for document in done.documents),
        document_keys=tuple(document.document_key for document in done.documents),
        outcomes=dict(done.outcomes),
        again=done.is_open
        or bool(done.withheld_keys)
        or any(document.error_class in READ_AGAIN for document in done.documents),
        parts={**kept, **parts},
    )
    path, data = commits.commit_path(shard.plan.shard), commits.as_bytes(commit)
    etag = shard.held.commit_etag
    put = storage.put_if_match(path, data, etag) if etag else storage.put_if_absent(path, data)
    bench.commits[shard.plan.shard] = commit
    if put is None:
        uri = storage.uri(path)
        raise StorageError(f"{uri} was written by another run meanwhile; resume this one", uri=uri)


def usage_rows(ends: Iterable[Answered], ledger: Ledger) -> list[dict[str, Any]]:
    """Return one usage row per request that this run has sent, not per record that shares it."""
    rows: dict[str, dict[str, Any]] = {}
    for end in ends:
        for result in end.results:
            if ledger.has_paid(result.request_key):
                rows.setdefault(result.request_key, usage_row(end.inquiry, result))
    return list(rows.values())


def bills(
    ledger: Ledger,
    answers: Mapping[str, Sequence[Answered]],
    parts: Mapping[str, Sequence[Answered]],
) -> dict[str, Bill]:
    """Return by stage what this run has paid for it, and what it was given.

    A request that several stages share is paid for by the first of them.
    """
    told: set[str] = set()
    found: dict[str, Bill] = {}
    for stage in answers:
        every = [*parts[stage], *answers[stage]]
        keys = {result.request_key for end in every for result in end.results}
        found[stage] = Bill(
            paid=frozenset(key for key in keys - told if ledger.has_paid(key)),
            cached=frozenset(filter(ledger.is_cached, keys)),
        )
        told |= keys
    return found


def _put_media(bench: Bench, documents: Sequence[ReadDocument]) -> None:
    for read in documents:
        content = read.document.content
        if content is None or read.is_held:
            continue
        names = [item.name for item in content.media] + [table.name for table in content.tables]
        for name in sorted(names):
            path = f"media/{read.document.document_key}/{name}"
            bench.lake.storage.put(path, (read.media_dir / name).read_bytes())


def _report(shard: Shard, documents: Sequence[ReadDocument], ends: _Ends) -> ShardReport:
    bench = shard.bench
    billed = bills(shard.ledger, ends.answers, ends.parts)
    planned = _planned_cached_tokens(bench, ends.answers, billed)
    readable = [read for read in documents if read.document.status != "rejected"]
    num_chunks = sum(len(read.chunks) for read in documents)
    rejected = Counter(
        read.document.error_class or "" for read in documents if read.document.status == "rejected"
    )
    units = {
        "chunk": num_chunks,
        "rows": sum(len(read.rows) for read in readable),
        "document": len(readable),
    }
    return ShardReport(
        shard=shard.plan.shard,
        num_documents=len(documents),
        documents=dict(Counter(read.document.status for read in documents)),
        rejected=dict(rejected),
        num_chunks=num_chunks,
        routes={bench.passage.name: len(documents)},
        stages={
            stage.name: count_stage(
                units[stage.over],
                ends.answers[stage.name],
                ends.parts[stage.name],
                planned=planned[stage.name],
                bill=billed[stage.name],
                prices=bench.prices,
            )
            for stage in bench.job.pipeline.stages
            if stage.name in ends.answers
        },
    )


def _planned_cached_tokens(
    bench: Bench, answers: Mapping[str, Sequence[Answered]], billed: Mapping[str, Bill]
) -> dict[str, int]:
    """Return per stage how many prompt tokens of what was paid the layout lets a prefix cache serve.

    Instructions repeat in every request, material in every stage after the first that shows it, and rows
    begin as the row asked before does: of that, what fills whole blocks of the engine's cache.
    """
    block = bench.cache_block_tokens
    shown: set[tuple[str | None, str]] = set()
    planned: dict[str, int] = {}
    for stage, group in answers.items():
        sent: dict[str, int] = {}
        for answered in group:
            inquiry = answered.inquiry
            for result in answered.results:
                if result.request_key in sent or result.request_key not in billed[stage].paid:
                    continue
                # An engine keeps a cache for each adapter.
                first = (inquiry.requests or inquiry.withheld)[0]
                material = first.adapter, first.material
                behind = inquiry.material_tokens if material in shown else inquiry.shared_tokens
                sent[result.request_key] = whole_blocks(
                    bench.asker.instructions_tokens + behind, block
                )
                shown.add(material)
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
