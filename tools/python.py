"""Runs a short program over tables of a corpus, in a sandbox, in a child process with limits.

Source: docs/decisions/0015-python-sandbox.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from connectors.control_marks import disarm
from engine.tool import Aside, ToolAnswer, ToolError, ToolSpec
from tools.child import Ended, in_child
from tools.table_names import MAX_TABLES, NamedTable, named_tables, table_paths
from tools.tool import Arguments, Scope, spec_of

TIMEOUT_S = 10.0
"""For the program alone; a loop over 100,000 rows takes a tenth of a second."""
MEMORY_BYTES = 768 * 2**20
_ADDRESS_BYTES = 4 * 2**30
"""Of each of the two processes, most of it never touched."""
_LOAD_S = 30.0
"""For starting, and for bringing the tables in."""
_MAX_CELLS = 1_000_000
"""Of all tables of a call; as rows they take 400 MB of the sandbox's memory."""
_MAX_CHARS = 20_000


class PythonArguments(Arguments):
    """A program."""

    code: str = Field(min_length=1, max_length=20_000)
    """A short Python program. What it prints, and the value of its last line if that is an expression, come
    back. It may import math, re, json, csv, datetime, collections, itertools, functools, decimal and random;
    there are no files, no network and no other modules."""
    tables: tuple[Annotated[str, Field(max_length=40)], ...] = Field(
        default=(), max_length=MAX_TABLES
    )
    """Names of tables, such as d3_t1 (see `tables`); each becomes a variable of that name."""
    shape: Literal["rows", "columns"] = "rows"
    """`rows`: a table is a list of dicts, one per row. `columns`: a dict of lists, one per column, which is
    faster for large tables."""


class Python:
    """The tool `python`."""

    def __init__(self, scope: Scope) -> None:
        """Offer the tables of a scope."""
        self._corpus = scope.corpus
        self._tables = named_tables(scope.corpus.entries)
        self.spec: ToolSpec = spec_of(
            "python",
            "Run a short Python program over the documents' tables, for what SQL (`table_query`) cannot say. "
            "Each call starts anew: nothing is kept from the one before. A row's value of `row` is its number "
            "on its sheet, by which its line is found.",
            PythonArguments,
        )

    async def call(self, arguments: Mapping[str, Any], aside: Aside) -> ToolAnswer:  # noqa: ARG002 - the protocol's
        """Return what the program printed and gave.

        Raises:
            ToolError: It failed, with its traceback, or took too much.
        """
        asked = PythonArguments.of(arguments)
        used = self._named(asked.tables)
        paths = await asyncio.to_thread(table_paths, self._corpus, used)
        request = {
            "code": asked.code,
            "tables": paths,
            "shape": asked.shape,
            "timeout_s": TIMEOUT_S,
            "memory_bytes": MEMORY_BYTES,
            "address_bytes": _ADDRESS_BYTES,
            "cpu_s": int(2 * (TIMEOUT_S + _LOAD_S)),
            "max_printed_chars": _MAX_CHARS,
            "max_result_chars": _MAX_CHARS,
        }
        try:
            found: dict[str, Any] = await in_child(
                "tools.python_child", request, TIMEOUT_S + _LOAD_S
            )
        except Ended as exc:
            found = {"error": exc.why, "printed": ""}
        printed = _cut(found["printed"], "printed")
        if "error" in found:
            reason = _reason(found)
            raise ToolError(
                disarm(f"{reason}\n\nprinted before:\n{printed}" if printed else reason)
            )
        return ToolAnswer(text=disarm(_shown(printed, found["result"], used)))

    def _named(self, names: Sequence[str]) -> list[NamedTable]:
        used = []
        for name in dict.fromkeys(name.strip().lower() for name in names):
            if name not in self._tables:
                raise ToolError(f"there is no table {name!r}; `tables` lists their names")
            used.append(self._tables[name])
        num_cells = sum(table.file.num_rows * len(table.file.columns) for table in used)
        if num_cells > _MAX_CELLS:
            raise ToolError(
                f"the tables have {num_cells:,} cells, and one call may use {_MAX_CELLS:,}; "
                "use table_query to filter or aggregate them"
            )
        return used


_REASONS = {
    "time": "the program took longer than {seconds:.0f} s and was stopped",
    "memory": "the program needs more than {megabytes:,} MB, or prints without end; use less data at a time, "
    "or table_query",
    "size": "the program's result is too large; print only what is needed",
    "crash": "the program brought its process down, as too much memory does; use less data at a time",
}


def _reason(found: Mapping[str, Any]) -> str:
    if found["error"] == "program":
        return f"the program failed:\n{_cut(found['message'], 'told')}"
    return _REASONS[found["error"]].format(seconds=TIMEOUT_S, megabytes=MEMORY_BYTES // 2**20)


def _cut(text: str, what: str) -> str:
    text = text.rstrip("\n")
    if len(text) <= _MAX_CHARS:
        return text
    return f"{text[:_MAX_CHARS]}\n(only the first {_MAX_CHARS:,} characters of what was {what} are shown)"


def _shown(printed: str, result: str | None, used: Sequence[NamedTable]) -> str:
    parts = [printed] if printed else []
    if result is not None:
        parts.append(f"result: {_cut(result, 'returned')}")
    if not parts:
        return "The program ended; it printed nothing, and its last line is no expression with a value."
    if used:
        rows = "\n".join(f"- {table.name}: {table.citation} ({table.place})" for table in used)
        parts.append(
            f"To cite a row, find its line with `read`, by document, sheet and cells:\n{rows}"
        )
    return "\n\n".join(parts)
