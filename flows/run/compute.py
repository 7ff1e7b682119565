"""Stages that ask no model: SQL over the records of earlier stages and over tables of the corpus."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from config.pipeline import StageConfig
from connectors.sinks import parquet
from connectors.sinks.columns import output_values
from connectors.sinks.lake import Lake
from engine.request import content_key
from flows.run.commit import Done, record_parts
from flows.run.counts import Failure, StageCount, left_alone
from flows.run.units import CORPUS

if TYPE_CHECKING:
    from flows.run.shard import Shard

_KEYS = ("row_keys", "row_key")
_ORDERED = re.compile(r"\border\s+by\b", re.IGNORECASE)

Row = dict[str, Any]


class _NotComputed(Exception):
    """The SQL, or a table that it names, does not do; the message says why."""


def compute(shard: Shard, stage: StageConfig, *, work_key: str) -> Done:
    """Return the rows of a computed stage, ready to be put into the sink.

    What cannot be computed becomes one failed record with the reason.
    """
    assert stage.compute is not None
    try:
        rows = _rows(shard, stage, stage.compute)
    except _NotComputed as exc:
        rows = [_record(stage, CORPUS, None, outcome="failed", problem=("not_computed", str(exc)))]
    outcomes = Counter(row["outcome"] for row in rows)
    failures = tuple(
        Failure(
            outcome=row["outcome"],
            error_class=row["error_class"],
            count=1,
            example=f"stage {stage.name} ({row['unit']}): {row['error']}",
        )
        for row in rows
        if row["error"] is not None
    )
    count = StageCount(num_inputs=len(rows), outcomes=dict(outcomes), failures=failures)
    return Done(
        report=replace(left_alone(shard.plan.shard, 0), stages={stage.name: count}),
        parts=record_parts(shard, stage, rows, []),
        usage=[],
        results={},
        outcomes=outcomes,
        work_key=work_key,
    )


def _rows(shard: Shard, stage: StageConfig, sql: str) -> list[Row]:
    """Return the records.

    Raises:
        _NotComputed: The SQL does not do.
    """
    frames = {need: _records(shard, need) for need in stage.needs}
    frames |= {name: _table(shard.bench.lake, place) for name, place in stage.tables.items()}
    names = list(stage.output["properties"])
    try:
        found = pl.SQLContext(frames=frames, eager=False).execute(sql).collect()
    except (pl.exceptions.PolarsError, TypeError, ValueError) as exc:
        raise _NotComputed(f"SQL: {exc}") from exc
    key = next((name for name in _KEYS if name in found.columns), None)
    if {*found.columns} - {key} != {*names}:
        raise _NotComputed(
            f"the SQL gives the columns {', '.join(found.columns)}, and output has"
            f" {', '.join(names)}; name them alike with AS"
        )
    values = found.to_dicts()
    if not _ORDERED.search(sql):
        # Groups come in no order; the same rows are to be the same bytes.
        values.sort(key=lambda row: [str(row[name]) for name in names])
    keys = [_keys(row.get(key)) if key else None for row in values]
    cited = _citations([frames[need] for need in stage.needs], keys)
    return [
        _row(stage, number, row, None if own is None else (own, cited))
        for number, (row, own) in enumerate(zip(values, keys, strict=True))
    ]


def _row(
    stage: StageConfig,
    number: int,
    values: Mapping[str, Any],
    rests_on: tuple[Sequence[str], Mapping[str, Sequence[Row]]] | None,
) -> Row:
    unit = f"row-{number:06d}"
    try:
        columns = output_values(
            stage.output, {name: _answer(values[name]) for name in stage.output["properties"]}
        )
    except ValueError as exc:
        problem = ("bad_value", str(exc))
        return _record(stage, unit, None, outcome="invalid_output", problem=problem)
    row = _record(stage, unit, columns, outcome="succeeded")
    if rests_on is not None:
        keys, cited = rests_on
        row["citations"] = [one for key in keys for one in cited.get(key, ())]
        row["num_inputs"] = row["num_answered"] = len(keys)
    return row


def _record(
    stage: StageConfig,
    unit: str,
    columns: Mapping[str, Any] | None,
    *,
    outcome: str,
    problem: tuple[str, str] = ("", ""),
) -> Row:
    row: Row = dict.fromkeys(parquet.record_schema(stage.output).names)
    error_class, error = problem
    return row | {
        "row_key": content_key("row", stage.name, None, unit),
        "unit": unit,
        "outcome": outcome,
        "error_class": error_class or None,
        "error": error or None,
        **(columns or {}),
        "citations": [],
        "claims": [],
        "saw": "nothing",
        "fingerprint": content_key("compute", stage.compute, stage.output),
    }


def _answer(value: object) -> object:
    """Return a value of a frame as a model would have answered it."""
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {name: _answer(item) for name, item in value.items()}
    return [_answer(item) for item in value] if isinstance(value, list) else value


def _keys(value: object) -> list[str]:
    found = value if isinstance(value, list) else [value]
    return sorted({str(key) for key in found if key is not None})


def _citations(
    frames: Sequence[pl.LazyFrame], keys: Sequence[Sequence[str] | None]
) -> dict[str, list[Row]]:
    """Return what the records with these keys cite."""
    wanted = {key for own in keys for key in own or ()}
    if not wanted:
        return {}
    found: dict[str, list[Row]] = {}
    for frame in frames:
        rows = (
            frame
            .filter(pl.col("row_key").is_in(list(wanted)))
            .select("row_key", "citations")
            .collect()
        )
        found |= {key: cited or [] for key, cited in rows.iter_rows()}
    return found


def _records(shard: Shard, need: str) -> pl.LazyFrame:
    """Return the answered records of a stage, from copies of its parts on this machine."""
    bench = shard.bench
    stage = next(one for one in bench.job.pipeline.stages if one.name == need)
    table = bench.record_tables[need]
    folder = bench.scratch / shard.plan.shard / need
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for item in bench.lake.storage.list(table):
        if item.path.endswith(".parquet"):
            file = folder / Path(item.path).name
            file.write_bytes(bench.lake.storage.get(item.path))
            files.append(file)
    if not files:
        empty = pl.from_arrow(parquet.record_schema(stage.output).empty_table())
        assert isinstance(empty, pl.DataFrame)
        return empty.lazy()
    return pl.scan_parquet(files).filter(pl.col("outcome") == "succeeded")


def _table(lake: Lake, place: str) -> pl.LazyFrame:
    """Return a table of the corpus, by `path` or `path#sheet`.

    Raises:
        _NotComputed: There is none, or there are several.
    """
    path, _, sheet = place.partition("#")
    row = _document(lake, path)
    if row is None:
        raise _NotComputed(f"table {place!r}: no document of the corpus has the path {path!r}")
    tables = [table for table in row["tables"] or () if sheet in {"", table["sheet"], _name(table)}]
    if len(tables) != 1:
        names = ", ".join(_name(table) for table in row["tables"] or ()) or "none"
        raise _NotComputed(
            f"table {place!r} is {len(tables)} tables; {path} has: {names}. Name one behind a #"
        )
    data = lake.storage.get(f"media/{row['document_key']}/{tables[0]['name']}")
    return pl.read_parquet(io.BytesIO(data)).lazy()


def _name(table: Mapping[str, Any]) -> str:
    return (
        f"{table['sheet']}!{table['cells']}" if table["sheet"] else str(table["cells"] or "table")
    )


def _document(lake: Lake, path: str) -> Row | None:
    frame = lake.read_table("documents", ["path", "document_key", "tables"], paths=[path])
    rows = [] if frame is None else frame.to_dicts()
    return rows[0] if rows else None


def tables_key(lake: Lake, stage: StageConfig) -> list[str | None]:
    """Return the keys of the documents whose tables a stage reads; None for one that is not there."""
    rows = [_document(lake, place.partition("#")[0]) for place in stage.tables.values()]
    return [row["document_key"] if row else None for row in rows]
