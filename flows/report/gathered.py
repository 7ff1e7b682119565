"""What stages over groups and the corpus say, and the reference list behind it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from config.pipeline import PipelineConfig, StageConfig
from connectors.sinks.parquet import RESERVED_COLUMNS
from flows.report.data import (
    ComputedRow,
    ComputedTable,
    Finding,
    GatheredAnswer,
    Reference,
    Section,
    Sentence,
)
from flows.report.evidence import Context, Pictures, Row
from flows.report.sources import Backing, backing, leaves
from flows.report.words import outcome_word, shown
from flows.run.bench import Room
from flows.run.graph import stage_shard

MAX_GROUPS = 50
MAX_TABLE_ROWS = 50
MAX_REFERENCES = 400
"""Entries of the reference list; the page says how many citations more the tables hold."""

_MAX_PER_SENTENCE = 8
_MAX_PER_ROW = 3
_NOUNS = {"chunk": "chunk", "rows": "row", "document": "document", "group": "group"}


@dataclass(slots=True)
class _Entry:
    number: int
    row: Row
    quotes: dict[str, None] = field(default_factory=dict)
    verdicts: dict[str, None] = field(default_factory=dict)


class References:
    """Numbers cited lines in the order in which the page names them, each line once."""

    def __init__(self) -> None:
        self._entries: dict[tuple[object, ...], _Entry] = {}
        self.num_unlisted = 0

    def add(
        self, citations: Sequence[Row], claim: Row | None, limit: int
    ) -> tuple[tuple[int, ...], int]:
        """Return the numbers of the first citations, and how many more there are."""
        numbers = [self._number(row, claim) for row in citations[:limit]]
        known = tuple(dict.fromkeys(number for number in numbers if number is not None))
        self.num_unlisted += numbers.count(None)
        return known, len(citations) - len(citations[:limit]) + numbers.count(None)

    def _number(self, row: Row, claim: Row | None) -> int | None:
        span = row["span"]
        place = tuple(str(span[name]) for name in sorted(span))
        key = (row["path"], row["document_key"], row["quote"], place)
        entry = self._entries.get(key)
        if entry is None:
            if len(self._entries) >= MAX_REFERENCES:
                return None
            entry = self._entries[key] = _Entry(len(self._entries) + 1, row)
        if claim is not None:
            entry.verdicts[str(claim["verdict"])] = None
            if claim["quote"]:
                entry.quotes[str(claim["quote"])] = None
        return entry.number

    @property
    def paths(self) -> set[str]:
        """Return the documents that are cited so far."""
        return {str(entry.row["path"] or "") for entry in self._entries.values()}

    def resolve(
        self, room: Room, shards: Mapping[str, str], pictures: Pictures
    ) -> tuple[Reference, ...]:
        """Return the list with context and pictures; one shard's chunks are in memory at a time.

        Args:
            room: The run's.
            shards: The cited documents' shards, by path.
            pictures: Takes the pictures of the cited places.
        """
        by_shard: dict[str, dict[str, list[_Entry]]] = defaultdict(lambda: defaultdict(list))
        for entry in self._entries.values():
            path = str(entry.row["path"] or "")
            by_shard[shards.get(path, "")][path].append(entry)
        found: dict[int, Reference] = {}
        for shard, by_path in by_shard.items():
            segments = _segments(room, shard, list(by_path)) if shard else {}
            for path, entries in by_path.items():
                context = Context(segments.get(path, ()))
                for entry in entries:
                    found[entry.number] = _reference(entry, context, pictures)
        return tuple(found[number] for number in sorted(found))


def _segments(room: Room, shard: str, paths: Sequence[str]) -> dict[str, list[Row]]:
    columns = ["path", "ordinal", "segments"]
    frame = room.lake.read_table("chunks", columns, paths, shard)
    found: dict[str, list[Row]] = defaultdict(list)
    if frame is not None:
        for row in frame.sort("path", "ordinal").iter_rows(named=True):
            found[str(row["path"])] += row["segments"]
    return found


def _reference(entry: _Entry, context: Context, pictures: Pictures) -> Reference:
    document = {
        "path": entry.row["path"] or "",
        "document_key": entry.row["document_key"] or "",
    }
    return Reference(
        number=entry.number,
        citation=context.cite(entry.row, document, pictures),
        quotes=tuple(entry.quotes),
        verdicts=tuple(entry.verdicts),
    )


def corpus_sections(
    room: Room, tables: Mapping[str, str], references: References
) -> tuple[Section, ...]:
    """Return the answers over the corpus, the last stage first."""
    stages = [s for s in room.job.pipeline.stages if s.over == "corpus" and s.compute is None]
    return tuple(_section(room, stage, tables, references) for stage in reversed(stages))


def group_sections(
    room: Room, tables: Mapping[str, str], references: References
) -> tuple[Section, ...]:
    """Return the answers over groups, in the order of the stages; of each the first `MAX_GROUPS`."""
    stages = [stage for stage in room.job.pipeline.stages if stage.over == "group"]
    return tuple(_section(room, stage, tables, references) for stage in stages)


def computed_tables(
    room: Room, tables: Mapping[str, str], references: References
) -> tuple[ComputedTable, ...]:
    """Return what was computed by SQL, in the order of the stages; the first rows of each table."""
    stages = [stage for stage in room.job.pipeline.stages if stage.compute is not None]
    return tuple(_table(room, stage, tables, references) for stage in stages)


def _part(room: Room, stage: StageConfig, tables: Mapping[str, str]) -> pl.DataFrame | None:
    return room.lake.read_table(tables[stage.name], shard=stage_shard(stage))


def _section(
    room: Room, stage: StageConfig, tables: Mapping[str, str], references: References
) -> Section:
    frame = _part(room, stage, tables)
    rows = [] if frame is None else frame.head(MAX_GROUPS).to_dicts()
    return Section(
        stage=stage.name,
        over=stage.over,
        by=stage.by or "",
        rests_on=_input_noun(room.job.pipeline, stage),
        answers=tuple(_gathered(row, references) for row in rows),
        num_hidden=0 if frame is None else len(frame) - len(rows),
    )


def _input_noun(pipeline: PipelineConfig, stage: StageConfig) -> str:
    if not stage.needs:
        # Its agents looked at the documents themselves.
        return "document"
    needed = [other for other in pipeline.stages if other.name in stage.needs]
    nouns = {"answer" if s.compute else _NOUNS.get(s.over, "answer") for s in needed}
    return nouns.pop() if len(nouns) == 1 else "answer"


def _gathered(row: Row, references: References) -> GatheredAnswer:
    found = backing(row)
    label = {"corpus": "", "group": "no value"}
    unit = str(row["unit"])
    return GatheredAnswer(
        label=label.get(unit, unit.removeprefix("group-")),
        outcome=outcome_word(row["outcome"], row["error_class"]),
        error=row["error"],
        findings=tuple(
            _finding(name, value, found, references)
            for name, value in row.items()
            if name not in RESERVED_COLUMNS and value not in (None, [], "")
        ),
        num_inputs=row.get("num_inputs"),
        num_answered=row.get("num_answered"),
    )


def _finding(name: str, value: object, found: Backing, references: References) -> Finding:
    if not isinstance(value, list):
        return Finding(name=name, items=(_item(name, value, found, references),), is_list=False)
    items = tuple(
        _item(f"{name}[{number}]", each, found, references) for number, each in enumerate(value)
    )
    plain = all(s.verdict is None and not s.references for item in items for s in item)
    if plain and not any(isinstance(each, list | dict) for each in value):
        whole = Sentence(name="", value=shown(value), verdict=None, references=(), num_more=0)
        return Finding(name=name, items=((whole,),) if value else (), is_list=False)
    return Finding(name=name, items=items, is_list=True)


def _item(
    where: str, value: object, found: Backing, references: References
) -> tuple[Sentence, ...]:
    return tuple(
        _sentence(
            leaf, leaf.removeprefix(where).lstrip("."), inner, found=found, references=references
        )
        for leaf, inner in leaves(value, where)
    )


def _sentence(
    leaf: str, name: str, value: object, *, found: Backing, references: References
) -> Sentence:
    numbers, num_more = references.add(
        found.citations.get(leaf, ()), found.claims.get(leaf), _MAX_PER_SENTENCE
    )
    return Sentence(
        name=name,
        value=value,
        verdict=found.verdict(leaf),
        references=numbers,
        num_more=num_more,
    )


def _table(
    room: Room, stage: StageConfig, tables: Mapping[str, str], references: References
) -> ComputedTable:
    frame = _part(room, stage, tables)
    columns = tuple(stage.output["properties"])
    if frame is None:
        return ComputedTable(
            stage=stage.name, columns=columns, numeric=(), rows=(), num_hidden=0,
            problem="it has no rows yet",
        )  # fmt: skip
    bad = frame.filter(pl.col("outcome") != "succeeded")
    good = frame.filter(pl.col("outcome") == "succeeded")
    rows = good.head(MAX_TABLE_ROWS).to_dicts()
    problem = ""
    if len(bad):
        outcome, error_class, error = bad.select("outcome", "error_class", "error").row(0)
        problem = f"{outcome_word(outcome, error_class)}: {error or error_class}"
    return ComputedTable(
        stage=stage.name,
        columns=columns,
        numeric=tuple(frame.schema[name].is_numeric() for name in columns),
        rows=tuple(_computed(row, columns, references) for row in rows),
        num_hidden=len(good) - len(rows),
        problem=problem,
    )


def _computed(row: Row, columns: Sequence[str], references: References) -> ComputedRow:
    numbers, num_more = references.add(list(row.get("citations") or ()), None, _MAX_PER_ROW)
    values: tuple[Any, ...] = tuple(row[name] for name in columns)
    return ComputedRow(values=values, references=numbers, num_more=num_more)
