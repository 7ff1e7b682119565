"""The SQL of stages with `compute`, checked without data: what it reads, and the columns it gives."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from config.templates import nearest
from connectors.sinks.parquet import record_schema

if TYPE_CHECKING:
    from config.pipeline import StageConfig

KEY_COLUMNS = frozenset({"row_key", "row_keys"})
"""Columns of a result besides the fields of `output`: which records a row rests on."""

_BETWEEN = r"(?:\s|/\*.*?\*/|--[^\n]*\n)*"
_QUERY = re.compile(rf"{_BETWEEN}(?:\(|(?:select|with|values|from|table)\b)", re.I | re.S)
# Polars would open files of this machine, and addresses, in the middle of a query.
_READS = re.compile(rf"\b(read_\w+)[\"`]?{_BETWEEN}\(", re.I | re.S)

_ALWAYS_WRONG = ("sql parser error", "relation ", "unsupported function")
"""How Polars begins to say what is wrong whatever columns a table has. It has one class for these and for
columns that are missing, so where the columns are not known the text must decide."""


def compute_problems(
    stage: StageConfig, outputs: Mapping[str, Mapping[str, Any]]
) -> list[tuple[tuple[str, ...], str]]:
    """Return what is wrong with a stage's SQL and tables, each with the key below the stage.

    Args:
        stage: It has `compute`.
        outputs: Output schema by stage that is needed.
    """
    found: list[tuple[tuple[str, ...], str]] = [
        (("tables", name), problem)
        for name, path in stage.tables.items()
        if (problem := _table_problem(name, path, outputs))
    ]
    problem = None if found else _sql_problem(stage, outputs)
    return [*found, (("compute",), problem)] if problem else found


def _table_problem(name: str, path: str, outputs: Collection[str]) -> str | None:
    if name in outputs:
        return f"table {name!r} has the name of a stage in `needs`; rename the table"
    file = PurePosixPath(path.partition("#")[0])
    outside = file.is_absolute() or "\\" in path or ":" in file.parts[:1] or "://" in path
    if outside or ".." in file.parts or not file.name:
        return (
            f"table {name!r} is {path!r}; expected a path below the source, such as"
            " 'lists/suppliers.xlsx#2026': relative, with / and without .."
        )
    return None


def _sql_problem(stage: StageConfig, outputs: Mapping[str, Mapping[str, Any]]) -> str | None:
    sql = stage.compute or ""
    if not _QUERY.match(sql):
        return "is no query; it begins with SELECT or WITH"
    if reads := _READS.search(sql):
        return (
            f"{reads[1]} would read outside the corpus; name the file under `tables` and select from"
            " its name"
        )
    columns = _result_columns(stage, outputs)
    return columns if isinstance(columns, str) else _columns_problem(stage, columns)


def _result_columns(
    stage: StageConfig, outputs: Mapping[str, Mapping[str, Any]]
) -> str | list[str] | None:
    """Return the names of the result's columns; None where tables decide, a text where it fails."""
    # Not at the top: to load a pipeline without SQL would take half as long again.
    import polars as pl  # noqa: PLC0415

    frames: dict[str, pl.LazyFrame] = {name: pl.LazyFrame() for name in stage.tables}
    for name, output in outputs.items():
        empty = pl.from_arrow(record_schema(output).empty_table())
        assert isinstance(empty, pl.DataFrame)
        frames[name] = empty.lazy()
    try:
        result = pl.SQLContext(frames=frames, eager=False).execute(stage.compute or "")
        names = result.collect_schema().names()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as exc:
        said = str(exc).partition("\n")[0]
        if stage.tables and not said.startswith(_ALWAYS_WRONG):
            return None
        return f"{said}; its tables: {', '.join(frames)}"
    return None if stage.tables else names


def _columns_problem(stage: StageConfig, columns: Collection[str] | None) -> str | None:
    if columns is None:
        return None
    fields = stage.output["properties"]
    missing = [name for name in fields if name not in columns]
    surplus = [name for name in columns if name not in fields and name not in KEY_COLUMNS]
    if not missing and not surplus:
        return None
    hint = nearest(surplus[0], missing) if surplus else ""
    said = [f"{', '.join(missing)} missing"] if missing else []
    said += [f"{', '.join(surplus)} not in `output`"] if surplus else []
    return (
        f"the columns of the result are not the fields of `output`: {'; '.join(said)}{hint};"
        " name columns with AS"
    )
