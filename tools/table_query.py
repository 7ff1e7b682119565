"""SQL over the tables of a corpus, read-only, in a child process with limits."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from connectors.control_marks import disarm
from engine.tool import Aside, ToolAnswer, ToolError, ToolSpec
from tools.child import Ended, in_child
from tools.corpus import Corpus
from tools.table_names import NamedTable, mentioned, named_tables, table_paths
from tools.tool import Arguments, Scope, spec_of

TIMEOUT_S = 30.0
MEMORY_BYTES = 1 * 2**30
"""What DuckDB may hold; with less it refuses joins and sorts of a few million rows."""
_ADDRESS_BYTES = MEMORY_BYTES + 2 * 2**30
"""Address space above that is for threads' stacks and libraries, most of it never touched."""
_GRACE_S = 5.0
"""A query is interrupted first and its process killed this much later."""
_MAX_CHARS = 20_000
_MAX_LINES = 200_000
"""Most lines of a document that are gone through for the labels of its rows."""
_ROW = re.compile(r"([A-Z]+)(\d+)(?::[A-Z]+\d+)?")
_IS_RENAMED = re.compile(r'\bas\s+"?row\b', re.IGNORECASE)


class TableQueryArguments(Arguments):
    """A query."""

    sql: str = Field(min_length=1, max_length=20_000)
    """One SELECT, WITH ... SELECT or DESCRIBE statement in DuckDB's SQL, over names that `tables` lists,
    such as d3_t1. Put column names with blanks into double quotes."""
    max_rows: int = Field(default=50, ge=1, le=200)
    """Most rows to show; all are counted."""


class TableQuery:
    """The tool `table_query`."""

    def __init__(self, scope: Scope) -> None:
        """Offer the tables of a scope."""
        self._corpus = scope.corpus
        self._tables = named_tables(scope.corpus.entries)
        self.spec: ToolSpec = spec_of(
            "table_query",
            "Query the documents' tables with SQL (DuckDB, read-only). `tables` lists their names and columns. "
            "Select column `row` too: it is the row's number on its sheet, by which its line is found.",
            TableQueryArguments,
        )

    async def call(self, arguments: Mapping[str, Any], aside: Aside) -> ToolAnswer:  # noqa: ARG002 - the protocol's
        """Return the first rows of the result, and how to cite them.

        Raises:
            ToolError: The query is none, is refused, or takes too much.
        """
        asked = TableQueryArguments.of(arguments)
        used = mentioned(asked.sql, self._tables)
        paths = await asyncio.to_thread(table_paths, self._corpus, used)
        found = await ask_child(paths, {"query": asked.sql, "max_rows": asked.max_rows})
        labels: dict[str, str] = {}
        if len(used) == 1 and "row" in found["columns"] and not _IS_RENAMED.search(asked.sql):
            place = found["columns"].index("row")
            wanted = {row[place] for row in found["rows"] if row[place] is not None}
            labels = await asyncio.to_thread(row_labels, self._corpus, used[0], wanted)
        return ToolAnswer(text=disarm(_shown(found, used, labels)))


async def ask_child(paths: Mapping[str, str], request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the child process found in the tables.

    Args:
        paths: Parquet files by the tables' names.
        request: `query` and `max_rows`; or `columns` of each table and `max_rows`, for a description.

    Raises:
        ToolError: It found nothing, with the reason.
    """
    amounts = {
        "timeout_s": TIMEOUT_S,
        "memory_bytes": MEMORY_BYTES,
        "address_bytes": _ADDRESS_BYTES,
        "cpu_s": int(2 * (TIMEOUT_S + _GRACE_S)),
    }
    try:
        found: dict[str, Any] = await in_child(
            "tools.table_child", {"tables": paths, **amounts, **request}, TIMEOUT_S + _GRACE_S
        )
    except Ended as exc:
        found = {"error": exc.why}
    if "error" in found:
        raise ToolError(_reason(found))
    return found


_REASONS = {
    "time": "the query took longer than {seconds:.0f} s and was stopped; filter or aggregate more",
    "memory": "the query needs more than {megabytes:,} MB; filter before joining or sorting, select fewer "
    "columns, or aggregate",
    "size": "the result is too large; select fewer columns, or shorten long texts with left(x, 200)",
    "crash": "the query brought its process down, as too much memory does; select fewer rows and columns, "
    "shorten long texts with left(x, 200), or aggregate",
    "count": "found {count} statements; send one SELECT statement per call",
    "statement": "only one SELECT, WITH ... SELECT or DESCRIBE statement is allowed: tables are read-only",
}


def _reason(found: Mapping[str, Any]) -> str:
    if found["error"] == "sql":
        return disarm(_bare(found["message"]))
    return _REASONS[found["error"]].format(
        seconds=TIMEOUT_S, megabytes=MEMORY_BYTES // 2**20, count=found.get("count")
    )


def _bare(message: str) -> str:
    """Return what DuckDB says, short; where it tells of files it is that only tables can be read."""
    if message.startswith("Permission Error"):
        return "files, addresses, settings and extensions cannot be used; query tables by their names (see `tables`)"
    return message if len(message) <= 1_500 else f"{message[:1_500]}..."


def row_labels(corpus: Corpus, table: NamedTable, rows: set[str]) -> dict[str, str]:
    """Return the labels of the lines that are rows of a table, by the number of the row."""
    first = _ROW.match(table.file.cells)
    if first is None or table.entry.num_lines > _MAX_LINES:
        return {}
    found: dict[str, str] = {}
    for number, segment in enumerate(corpus.lines(table.entry.label), start=1):
        span = segment.span
        if span.cells is None or span.sheet != table.file.sheet or segment.kind != "table":
            continue
        cells = _ROW.match(span.cells)
        if cells is not None and cells[1] == first[1] and cells[2] in rows:
            found.setdefault(cells[2], f"{table.entry.label}L{number}")
    return found


def _shown(found: Mapping[str, Any], used: Sequence[NamedTable], labels: Mapping[str, str]) -> str:
    columns: list[str] = found["columns"]
    place = columns.index("row") if labels else -1
    lines = [grid_line((["line"] if labels else []) + columns)]
    num_chars = len(lines[0])
    for row in found["rows"]:
        line = grid_line(([labels.get(row[place], "")] if labels else []) + row)
        num_chars += len(line) + 1
        if num_chars > _MAX_CHARS:
            break
        lines.append(line)
    num_shown, num_rows = len(lines) - 1, found["num_rows"]
    head = f"{num_rows:,} rows" if num_rows != 1 else "1 row"
    if num_shown < num_rows:
        head = f"first {num_shown:,} of {num_rows:,} rows"
    if num_shown < len(found["rows"]):
        head += (
            f" ({_MAX_CHARS:,} characters are shown at most; select fewer columns for more rows)"
        )
    return "\n".join([head, "", *lines, *_citations(used, columns)])


def _citations(used: Sequence[NamedTable], columns: Sequence[str]) -> list[str]:
    if not used:
        return []
    lines = [
        "",
        "To cite a row, name the label of its line where one is shown; else find the line with `read`, by document,"
        " sheet and cells:",
    ]
    lines += [f"- {table.name}: {table.citation} ({table.place})" for table in used]
    if "row" not in columns:
        lines.append("The result has no column `row`; select it to cite single rows.")
    return lines


def grid_line(cells: Sequence[str | None]) -> str:
    """Return cells as one line; what is missing is NULL."""
    return " | ".join(
        "NULL" if cell is None else " ".join(cell.split("\n")).replace(" | ", " \\| ")
        for cell in cells
    )
