"""Gathers what a report shows from the tables of a run, renders it and puts it into the sink."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from config.errors import ConfigError
from config.load import load_template
from config.pipeline import ReportTemplate, StageConfig
from connectors.document import Span
from connectors.sinks.parquet import RESERVED_COLUMNS, span_from_row
from flows.report.charts import quantile
from flows.report.data import Answer, Citation, DocumentCard, Field, Flaw, ReportData, StageSummary
from flows.report.evidence import Context, Pictures
from flows.report.figures import throughput
from flows.report.gathered import References, computed_tables, corpus_sections, group_sections
from flows.report.markdown import render_markdown
from flows.report.overview import load_overview
from flows.report.page import render_html
from flows.report.sources import backing, top_field
from flows.report.templates import TemplateFailed
from flows.report.took import SPAN_COLUMNS, took
from flows.report.words import (
    approval_story,
    batch_story,
    claim_verdict,
    counted,
    mode_story,
    outcome_word,
    outcome_words,
    route_story,
    unit_name,
)
from flows.run.bench import Room, open_room
from flows.run.record_tables import find_record_tables
from flows.run.resume import load_job, manifest_path

Row = Mapping[str, Any]

_MAX_BATCHES = 20
_MAX_APPROVALS = 20


def write_report(room: Room, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Put the run's HTML page and Markdown into the sink and return their addresses.

    A template of the pipeline's own that fails costs the run nothing: the shipped one is used, and
    the page says why.
    """
    data, template = gather(room, manifest), room.job.pipeline.report.own_template()
    try:
        return _put(room, data, template)
    except TemplateFailed as exc:
        # A run that has paid for its answers is not lost to the form of its report.
        note = f"This is the shipped template, since the pipeline's own could not be used: {exc}"
        return _put(room, replace(data, notes=(*data.notes, note)), None)


def _put(room: Room, data: ReportData, template: ReportTemplate | None) -> dict[str, str]:
    texts = {
        "html": ("index.html", render_html(data, template)),
        "markdown": ("report.md", render_markdown(data, template)),
    }
    addresses = {}
    for kind, (name, text) in texts.items():
        path = f"reports/{room.job.run_id}/{name}"
        room.lake.storage.put(path, text.encode())
        addresses[kind] = room.lake.storage.uri(path)
    return addresses


def rebuild(run: str | None, sink: str | None, template: str | None = None) -> dict[str, str]:
    """Write a finished run's report anew from its tables and return the addresses.

    Args:
        run: The run's id or a part of it; None for the latest.
        sink: Where to look; None for the sinks this machine knows of.
        template: Name or folder of the template; None for the pipeline's.

    Raises:
        ConfigError: There is no such run, it has no manifest yet, or the template given fails.
    """
    own = load_template(template, "--template") if template is not None else None
    job = load_job(run, sink, "resume")
    with open_room(job) as room:
        manifest = room.lake.find_json(manifest_path(job.run_id))
        if manifest is None:
            raise ConfigError(
                f"run {job.run_id} has not ended, so there is nothing to report; go on with:"
                f" headrace run --resume {job.run_id}"
            )
        if template is None:
            return write_report(room, manifest)
        try:
            return _put(room, gather(room, manifest), own)
        except TemplateFailed as exc:
            raise ConfigError(f"--template {template!r}: {exc}") from exc


def gather(room: Room, manifest: Mapping[str, Any]) -> ReportData:
    """Return everything the report shows, read back from the sink's tables."""
    pipeline = room.job.pipeline
    tables = find_record_tables(room.lake, pipeline.stages, manifest)
    pictures, references = Pictures(room), References()
    corpus = corpus_sections(room, tables, references)
    groups = group_sections(room, tables, references)
    computed = computed_tables(room, tables, references)
    documents = load_overview(room, references.paths)
    # In front of the cards, which take the pictures that are left.
    listed = references.resolve(room, documents.shards, pictures)
    engine = manifest["engine"]
    seconds = _seconds(room)
    return ReportData(
        title=pipeline.report.title or pipeline.name,
        run_id=room.job.run_id,
        source=room.job.source,
        sink=room.lake.url,
        engine=str(engine["profile"]),
        model=str(engine["model"]),
        started=str(manifest["started"]),
        seconds=float(manifest["seconds"]),
        verdict=str(manifest["verdict"]),
        documents=_cards(room, documents.first, tables, pictures),
        flawed=tuple(_flaw(row) for row in documents.flawed),
        statuses=documents.statuses,
        stages=tuple(
            _stage(stage, manifest["stages"].get(stage.name, {}), seconds[stage.name]["seconds"])
            for stage in pipeline.stages
        ),
        took=took(manifest, {name: _quantiles(told) for name, told in seconds.items()}),
        planned_cached_ratio=_planned_ratio(manifest),
        notes=(*pipeline.report.notes, *_approval_notes(manifest), *_batch_notes(manifest)),
        previews=pictures.jpegs,
        versions={name: str(value) for name, value in manifest["versions"].items()},
        corpus=corpus,
        groups=groups,
        tables=computed,
        references=listed,
        num_unlisted=references.num_unlisted,
        routes=route_story(manifest),
        throughput=throughput(manifest, documents.num_pages),
    )


def _approval_notes(manifest: Mapping[str, Any]) -> list[str]:
    """Return a sentence on each decision of a person, and on what waits for one."""
    asked = manifest.get("approvals", ())
    return [f"Approval, {approval_story(one)}." for one in asked[:_MAX_APPROVALS]]


def _batch_notes(manifest: Mapping[str, Any]) -> list[str]:
    """Return a sentence on each batch that answers are to come from."""
    batches = manifest.get("batches", ())
    return [
        f"Batch {batch['batch_id'] or '(not begun)'} at the host: {batch_story(batch)}."
        for batch in batches[:_MAX_BATCHES]
    ]


def _cards(
    room: Room, documents: Sequence[Row], tables: Mapping[str, str], pictures: Pictures
) -> tuple[DocumentCard, ...]:
    """Return the documents' cards, in their order; one shard's chunks are in memory at a time."""
    # What is over groups or the corpus belongs to no document.
    stages = [stage.name for stage in room.job.pipeline.stages if not stage.is_gathered]
    by_shard: dict[str, list[Row]] = defaultdict(list)
    for row in documents:
        by_shard[str(row["shard"])].append(row)
    cards: dict[str, DocumentCard] = {}
    for shard, rows in by_shard.items():
        paths = [str(row["path"]) for row in rows]
        chunks = _group(_rows(room, "chunks", paths, shard))
        records = {name: _group(_rows(room, tables[name], paths, shard)) for name in stages}
        for row in rows:
            cards[str(row["path"])] = _card(
                room, document=row, chunks=chunks, records=records, pictures=pictures
            )
    return tuple(cards[str(row["path"])] for row in documents)


def _rows(room: Room, table: str, paths: Sequence[str], shard: str) -> list[dict[str, Any]]:
    frame = room.lake.read_table(table, paths=paths, shard=shard)
    return [] if frame is None else frame.to_dicts()


def _group(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[str(row["path"])].append(row)
    return groups


def _planned_ratio(manifest: Mapping[str, Any]) -> float | None:
    stages = manifest["stages"].values()
    prompt = sum(stage.get("prompt_tokens") or 0 for stage in stages)
    planned = sum(stage.get("planned_cached_tokens") or 0 for stage in stages)
    return planned / prompt if prompt else None


_Seconds = dict[str, dict[str, "array[float]"]]
"""By stage and column of the usage table; four bytes for each request of the run."""


def _seconds(room: Room) -> _Seconds:
    """Return what the run's requests waited for, as far as its usage table has it."""
    found: _Seconds = defaultdict(lambda: defaultdict(lambda: array("f")))
    table = f"runs/{room.job.run_id}/usage"
    for frame in room.lake.iter_table(table, ["stage", "seconds"], optional=SPAN_COLUMNS):
        for (stage,), rows in frame.group_by("stage"):
            for name in {"seconds", *SPAN_COLUMNS} & {*rows.columns}:
                found[str(stage)][name].extend(rows[name].drop_nulls())
    return found


def _quantiles(told: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    """Return the median and the 95th percentile of each column that has values."""
    ordered = {name: sorted(told[name]) for name in SPAN_COLUMNS if told.get(name)}
    return {name: (quantile(all_, 0.5), quantile(all_, 0.95)) for name, all_ in ordered.items()}


def _stage(stage: StageConfig, told: Mapping[str, Any], seconds: Sequence[float]) -> StageSummary:
    """Return a stage's figures; a computed one has no modes and no tokens."""
    computed = stage.compute is not None
    return StageSummary(
        name=stage.name,
        over=stage.over,
        mode="computed" if computed else str(told.get("mode", stage.mode)),
        modes=mode_story(told) if "modes_observed" in told and not computed else {},
        outcomes=outcome_words(told),
        prompt_tokens=told.get("prompt_tokens") or 0,
        cached_tokens=told.get("cached_tokens"),
        completion_tokens=told.get("completion_tokens") or 0,
        latencies_s=seconds,
        claims=told.get("claims") or {},
        skipped=told.get("skipped") or {},
    )


def _card(
    room: Room,
    *,
    document: Row,
    chunks: Mapping[str, Sequence[Row]],
    records: Mapping[str, Mapping[str, Sequence[Row]]],
    pictures: Pictures,
) -> DocumentCard:
    path = str(document["path"])
    own = sorted(chunks.get(path, ()), key=lambda chunk: int(chunk["ordinal"]))
    segments = [segment for chunk in own for segment in chunk["segments"]]
    context = Context(segments)
    units = {f"chunk-{chunk['ordinal']:05d}": unit_name(_spans(chunk["segments"])) for chunk in own}
    stages = sorted(
        (stage for stage in room.job.pipeline.stages if stage.name in records),
        key=lambda stage: stage.over != "document",
    )
    answers = [
        _answer(stage, row, units, lambda c: context.cite(c, document, pictures))
        for stage in stages
        for row in sorted(records[stage.name].get(path, ()), key=lambda row: str(row["unit"]))
    ]
    first = next((span_from_row(s["span"]) for s in segments), None)
    return DocumentCard(
        path=path,
        uri=str(document["uri"]),
        media_type=document["media_type"] or "",
        status=str(document["status"]),
        error_class=document["error_class"],
        error=document["error"],
        num_chunks=int(document["num_chunks"]),
        num_tokens=sum(int(chunk["num_tokens"]) for chunk in own),
        tiers=tuple(sorted({str(s["tier"]) for s in segments} - {"none"})),
        answers=tuple(answers),
        preview=pictures.key(document, first) if first else None,
    )


def _flaw(document: Row) -> Flaw:
    failed = [unit for unit in document["units"] or () if unit["status"] == "failed"]
    return Flaw(
        path=str(document["path"]),
        uri=str(document["uri"]),
        status=str(document["status"]),
        error_class=document["error_class"],
        error=document["error"],
        failed_units=tuple(f"{unit['name']}: {unit['error']}" for unit in failed),
    )


def _answer(
    stage: StageConfig, row: Row, units: Mapping[str, str], cite: Callable[[Row], Citation]
) -> Answer:
    first: dict[str, Row] = {}
    for citation in row["citations"] or ():
        first.setdefault(top_field(str(citation["field"])), citation)
    names = [name for name in row if name not in RESERVED_COLUMNS]
    return Answer(
        stage=stage.name,
        over=stage.over,
        unit=units.get(str(row["unit"]), str(row["unit"])),
        outcome=outcome_word(row["outcome"], row["error_class"]),
        error=row["error"],
        saw=str(row["saw"]),
        fields=tuple(
            Field(
                name=name,
                value=row[name],
                citation=cite(first[name]) if name in first else None,
                doubt=_doubt(row, name),
            )
            for name in names
            if row[name] is not None
        ),
    )


def _doubt(row: Row, name: str) -> str:
    """Return what the check of a field's sentences found against them."""
    claims = backing(row).claims.items()
    verdicts = [str(claim["verdict"]) for field, claim in claims if top_field(field) == name]
    bad = Counter(verdict for verdict in verdicts if verdict != "verified")
    if len(verdicts) == 1:
        return "".join(claim_verdict(verdict) for verdict in bad)
    all_of_it = counted(len(verdicts), "sentence")
    return "; ".join(f"{claim_verdict(v)} for {n} of {all_of_it}" for v, n in bad.items())


def _spans(segments: Sequence[Row]) -> list[Span]:
    return [span_from_row(segment["span"]) for segment in segments]
