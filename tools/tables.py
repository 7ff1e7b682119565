"""Lists the tables of a corpus: their names in SQL, where they stand, their columns and first rows."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from connectors.control_marks import disarm
from engine.tool import Aside, ToolAnswer, ToolError, ToolSpec
from tools.table_names import NamedTable, named_tables, table_paths
from tools.table_query import ask_child, grid_line
from tools.tool import Arguments, Scope, spec_of

_PAGE = 10
_MAX_COLUMNS = 40
_NUM_SAMPLES = 3
_MAX_SAMPLE_CHARS = 600


class TablesArguments(Arguments):
    """Which tables."""

    document: str = Field(default="", max_length=20)
    """Label of one document, such as D3; empty for all."""
    contains: str = Field(default="", max_length=200)
    """Words, all of which must be in the table's name, path, sheet, title or columns; case does not matter."""
    start: int = Field(default=1, ge=1)
    """Number of the first table to show; ten are shown at a time."""


class Tables:
    """The tool `tables`."""

    def __init__(self, scope: Scope) -> None:
        """Offer the tables of a scope."""
        self._corpus = scope.corpus
        self._tables = named_tables(scope.corpus.entries)
        self.spec: ToolSpec = spec_of(
            "tables",
            "List the documents' tables: the name of each in SQL (`table_query`) and programs (`python`), "
            "its document and sheet, columns with types, number of rows, and first rows.",
            TablesArguments,
        )

    async def call(self, arguments: Mapping[str, Any], aside: Aside) -> ToolAnswer:  # noqa: ARG002 - the protocol's
        """Return a page of the list.

        Raises:
            ToolError: There is no such document or page, or a table cannot be read.
        """
        asked = TablesArguments.of(arguments)
        found = self._found(asked)
        if not found:
            return ToolAnswer(text=self._none(asked))
        if asked.start > len(found):
            raise ToolError(f"start is {asked.start}, and there are {len(found):,} such tables")
        page = found[asked.start - 1 : asked.start - 1 + _PAGE]
        paths = await asyncio.to_thread(table_paths, self._corpus, page)
        columns = {table.name: table.file.columns[:_MAX_COLUMNS] for table in page}
        request = {"columns": columns, "max_rows": _NUM_SAMPLES}
        described = (await ask_child(paths, request))["described"]
        last = asked.start + len(page) - 1
        head = f"Tables {asked.start:,} to {last:,} of {len(found):,}"
        head += f"; the next ones with start={last + 1}." if last < len(found) else "."
        parts = [_shown(table, facts) for table, facts in zip(page, described, strict=True)]
        return ToolAnswer(text=disarm("\n\n".join([head, *parts])))

    def _found(self, asked: TablesArguments) -> list[NamedTable]:
        words = asked.contains.casefold().split()
        label = asked.document.strip().upper()
        if label and all(entry.label.upper() != label for entry in self._corpus.entries):
            raise ToolError(f"there is no document {asked.document!r}; labels are D1, D2, ...")
        return [
            table
            for table in self._tables.values()
            if (not label or table.entry.label.upper() == label)
            and all(word in _searched(table) for word in words)
        ]

    def _none(self, asked: TablesArguments) -> str:
        if not self._tables:
            return "The documents have no tables."
        return (
            f"No table matches document={asked.document!r}, contains={asked.contains!r}; "
            f"there are {len(self._tables):,} in all. Use fewer words."
        )


def _searched(table: NamedTable) -> str:
    file = table.file
    return " ".join((
        table.name,
        table.entry.path,
        file.sheet,
        file.title,
        *file.columns,
    )).casefold()


def _shown(table: NamedTable, facts: Mapping[str, Any]) -> str:
    title = f", {table.file.title!r}" if table.file.title else ""
    lines = [f"{table.name}: {table.place}{title}; {table.file.num_rows:,} rows"]
    pairs = zip(facts["columns"], facts["types"], strict=True)
    columns = ", ".join(f'"{name}" {kind}' for name, kind in pairs)
    hidden = len(table.file.columns) - len(facts["columns"])
    if hidden > 0:
        columns += f", and {hidden:,} more (DESCRIBE {table.name})"
    lines.append(f"columns: {columns}")
    lines += [f"  {_sample(row)}" for row in facts["rows"]]
    return "\n".join(lines)


def _sample(row: Sequence[str | None]) -> str:
    line = grid_line(row)
    return line if len(line) <= _MAX_SAMPLE_CHARS else f"{line[:_MAX_SAMPLE_CHARS]}..."
