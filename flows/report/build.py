"""Gathers what a report shows from the tables of a run, renders it and puts it into the sink."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from config.errors import ConfigError
from config.pipeline import StageConfig
from connectors.document import Span
from connectors.errors import DocumentRejected, StorageError
from connectors.sinks.parquet import RESERVED_COLUMNS, span_from_row
from connectors.storage import fetch
from flows.report.data import Answer, Citation, DocumentCard, Field, ReportData, StageSummary
from flows.report.markdown import render_markdown
from flows.report.page import MAX_CARDS, render_html
from flows.report.words import mode_story, unit_name
from flows.run.bench import Room, open_room
from flows.run.record_tables import find_record_tables
from flows.run.resume import load_job, manifest_path

MAX_PREVIEWS = 160
"""Pictures in one report; at about 20 kB each they stay below 4 MB."""

_CONTEXT = 2

Row = Mapping[str, Any]


def write_report(room: Room, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Put the run's HTML page and Markdown into the sink and return their addresses."""
    data = gather(room, manifest)
    folder = f"reports/{room.job.run_id}"
    files = {"html": f"{folder}/index.html", "markdown": f"{folder}/report.md"}
    room.lake.storage.put(files["html"], render_html(data).encode())
    room.lake.storage.put(files["markdown"], render_markdown(data).encode())
    return {kind: room.lake.storage.uri(path) for kind, path in files.items()}


def rebuild(run: str | None, sink: str | None) -> dict[str, str]:
    """Write a finished run's report anew from its tables and return the addresses.

    Raises:
        ConfigError: There is no such run, or it has no manifest yet.
    """
    job = load_job(run, sink, "resume")
    with open_room(job) as room:
        manifest = room.lake.find_json(manifest_path(job.run_id))
        if manifest is None:
            raise ConfigError(
                f"run {job.run_id} has not ended, so there is nothing to report; go on with:"
                f" headrace run --resume {job.run_id}"
            )
        return write_report(room, manifest)


def gather(room: Room, manifest: Mapping[str, Any]) -> ReportData:
    """Return everything the report shows, read back from the sink's tables."""
    pipeline = room.job.pipeline
    documents = _rows(room, "documents", None)
    documents.sort(key=lambda row: str(row["path"]))
    tables = find_record_tables(room.lake, pipeline.stages, manifest)
    pictures = _Pictures(room)
    shown = _shown_cards(room, documents[:MAX_CARDS], tables, pictures)
    nothing: Mapping[str, Mapping[str, Sequence[Row]]] = {name: {} for name in tables}
    cards = [
        shown.get(str(row["path"]))
        or _card(room, document=row, chunks={}, records=nothing, pictures=pictures)
        for row in documents
    ]
    engine = manifest["engine"]
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
        documents=tuple(cards),
        stages=_stages(room, manifest),
        planned_cached_ratio=_planned_ratio(manifest),
        notes=pipeline.report.notes,
        previews=pictures.jpegs,
        versions={name: str(value) for name, value in manifest["versions"].items()},
    )


def _shown_cards(
    room: Room, documents: Sequence[Row], tables: Mapping[str, str], pictures: _Pictures
) -> dict[str, DocumentCard]:
    """Return the cards that are shown whole, by path; one shard's chunks are in memory at a time."""
    by_shard: dict[str, list[Row]] = defaultdict(list)
    for row in documents:
        by_shard[str(row["shard"])].append(row)
    cards: dict[str, DocumentCard] = {}
    for shard, rows in by_shard.items():
        paths = [str(row["path"]) for row in rows]
        chunks = _group(_rows(room, "chunks", paths, shard))
        records = {name: _group(_rows(room, table, paths, shard)) for name, table in tables.items()}
        for row in rows:
            cards[str(row["path"])] = _card(
                room, document=row, chunks=chunks, records=records, pictures=pictures
            )
    return cards


def _rows(
    room: Room, table: str, paths: Sequence[str] | None, shard: str | None = None
) -> list[dict[str, Any]]:
    frame = room.lake.read_table(table, paths=paths, shard=shard)
    return [] if frame is None else frame.to_dicts()


def _group(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[str(row["path"])].append(row)
    return groups


def _planned_ratio(manifest: Mapping[str, Any]) -> float | None:
    stages = manifest["stages"].values()
    prompt = sum(stage["prompt_tokens"] for stage in stages)
    planned = sum(stage["planned_cached_tokens"] for stage in stages)
    return planned / prompt if prompt else None


def _stages(room: Room, manifest: Mapping[str, Any]) -> tuple[StageSummary, ...]:
    usage = room.lake.read_table(f"runs/{room.job.run_id}/usage", ["stage", "seconds"])
    seconds: dict[str, list[float]] = {}
    if usage is not None:
        grouped = usage.group_by("stage").agg(pl.col("seconds"))
        seconds = {str(stage): list(values) for stage, values in grouped.iter_rows()}
    return tuple(
        StageSummary(
            name=stage.name,
            over=stage.over,
            mode=manifest["stages"][stage.name]["mode"],
            modes=mode_story(manifest["stages"][stage.name]),
            outcomes=manifest["stages"][stage.name]["outcomes"],
            prompt_tokens=manifest["stages"][stage.name]["prompt_tokens"],
            cached_tokens=manifest["stages"][stage.name]["cached_tokens"],
            completion_tokens=manifest["stages"][stage.name]["completion_tokens"],
            latencies_s=tuple(seconds.get(stage.name, ())),
        )
        for stage in room.job.pipeline.stages
    )


class _Pictures:
    """Previews of cited pages and frames, made on demand from the source, up to a limit."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.jpegs: dict[str, bytes] = {}
        self._file = room.scratch / "preview"
        self._path, self._key = "", ""

    def key(self, document: Row, span: Span) -> str | None:
        """Return the key of the picture of `span`, or None where there is none to be had."""
        if span.page is None and span.t0 is None:
            return None
        place = f"p{span.page}" if span.page is not None else f"t{span.t0:.2f}"
        key = f"{str(document['document_key'])[:16]}-{place}"
        if key in self.jpegs:
            return key
        if len(self.jpegs) >= MAX_PREVIEWS:
            return None
        jpeg = self._render(document, span)
        if jpeg is None:
            return None
        self.jpegs[key] = jpeg
        return key

    def _render(self, document: Row, span: Span) -> bytes | None:
        path = str(document["path"])
        try:
            if self._fetch(path) != document["document_key"]:
                # Changed since it was read: the page may be another one by now.
                return None
            jpeg: bytes | None = self._room.readers.preview(
                self._file,
                Path(path).name,
                span,
                password=self._room.passwords.find(path),
            )
        except (DocumentRejected, StorageError):
            # Gone or locked by now; the quote and its place are still shown.
            return None
        return jpeg

    def _fetch(self, path: str) -> str:
        """Copy the source object unless it lies there, and return its hash.

        Documents come one after the other.
        """
        if path != self._path:
            self._path = ""
            self._key = fetch(self._room.source.stream(path), self._file)
            self._path = path
        return self._key


def _card(
    room: Room,
    *,
    document: Row,
    chunks: Mapping[str, Sequence[Row]],
    records: Mapping[str, Mapping[str, Sequence[Row]]],
    pictures: _Pictures,
) -> DocumentCard:
    path = str(document["path"])
    own = sorted(chunks.get(path, ()), key=lambda chunk: int(chunk["ordinal"]))
    segments = [segment for chunk in own for segment in chunk["segments"]]
    context = _Context(segments)
    units = {f"chunk-{chunk['ordinal']:05d}": unit_name(_spans(chunk["segments"])) for chunk in own}
    stages = sorted(room.job.pipeline.stages, key=lambda stage: stage.over == "chunk")
    answers = [
        _answer(stage, row, units, lambda c: _citation(c, document, context, pictures))
        for stage in stages
        for row in sorted(records[stage.name].get(path, ()), key=lambda row: str(row["unit"]))
    ]
    first = next((span_from_row(s["span"]) for s in segments), None)
    failed = [unit for unit in document["units"] or () if unit["status"] == "failed"]
    return DocumentCard(
        path=path,
        uri=str(document["uri"]),
        media_type=document["media_type"] or "",
        status=str(document["status"]),
        error_class=document["error_class"],
        error=document["error"],
        num_chunks=int(document["num_chunks"]),
        num_tokens=sum(int(chunk["num_tokens"]) for chunk in own),
        failed_units=tuple(f"{unit['name']}: {unit['error']}" for unit in failed),
        tiers=tuple(sorted({str(s["tier"]) for s in segments} - {"none"})),
        answers=tuple(answers),
        preview=pictures.key(document, first) if first else None,
    )


def _answer(
    stage: StageConfig, row: Row, units: Mapping[str, str], cite: Callable[[Row], Citation]
) -> Answer:
    citations = {str(c["field"]): c for c in row["citations"] or ()}
    names = [name for name in row if name not in RESERVED_COLUMNS]
    return Answer(
        stage=stage.name,
        over=stage.over,
        unit=units.get(str(row["unit"]), str(row["unit"])),
        outcome=str(row["outcome"]),
        error=row["error"],
        saw=str(row["saw"]),
        fields=tuple(
            Field(
                name=name,
                value=row[name],
                citation=cite(citations[name]) if name in citations else None,
            )
            for name in names
            if row[name] is not None
        ),
    )


class _Context:
    """The segments around a quoted one."""

    def __init__(self, segments: Sequence[Row]) -> None:
        shown = [segment for segment in segments if segment["text"]]
        self._texts = [str(segment["text"]) for segment in shown]
        self._index = {
            (str(segment["text"]), span_from_row(segment["span"])): number
            for number, segment in enumerate(shown)
        }

    def around(self, text: str, span: Span) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the texts in front of and behind the segment."""
        number = self._index.get((text, span))
        if number is None:
            return (), ()
        return (
            tuple(self._texts[max(0, number - _CONTEXT) : number]),
            tuple(self._texts[number + 1 : number + 1 + _CONTEXT]),
        )


def _citation(row: Row, document: Row, context: _Context, pictures: _Pictures) -> Citation:
    span = span_from_row(row["span"])
    before, after = context.around(str(row["quote"]), span)
    return Citation(
        quote=str(row["quote"]),
        span=span,
        tier=str(row["tier"]),
        before=before,
        after=after,
        preview=pictures.key(document, span),
    )


def _spans(segments: Sequence[Row]) -> list[Span]:
    return [span_from_row(segment["span"]) for segment in segments]
