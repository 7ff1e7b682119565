"""Lists the documents of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import islice
from typing import Any

from pydantic import Field

from engine.tool import Aside, ToolAnswer, ToolSpec
from tools.corpus import Entry
from tools.labels import path_matcher, shown_text
from tools.table_names import named_tables
from tools.tool import Arguments, Scope, spec_of

_MOST_TABLES = 6


class DocumentsArguments(Arguments):
    """Which documents to list."""

    match: str = ""
    """A part of the path, or a pattern with * and ?, such as reports/*.pdf. Empty: all documents."""
    first: int = Field(default=1, ge=1)
    """The number in the list to begin with; raise it to go on."""
    limit: int = Field(default=50, ge=1, le=200)
    """Most documents."""


class Documents:
    """Lists labels, paths, types, lengths and tables."""

    spec: ToolSpec = spec_of(
        "documents",
        "Lists the documents with their labels, paths, media types, numbers of lines, and tables.",
        DocumentsArguments,
    )

    def __init__(self, scope: Scope) -> None:
        self._corpus = scope.corpus

    async def call(self, arguments: Mapping[str, Any], aside: Aside) -> ToolAnswer:  # noqa: ARG002
        """Return one line per document."""
        return await asyncio.to_thread(self._list, DocumentsArguments.of(arguments))

    def _list(self, asked: DocumentsArguments) -> ToolAnswer:
        fits = path_matcher(asked.match)
        found = [entry for entry in self._corpus.entries if fits(entry.path) is not None]
        if not found:
            total = len(self._corpus.entries)
            return ToolAnswer(text=f"No path fits; the corpus has {total} documents.")
        shown = found[asked.first - 1 : asked.first - 1 + asked.limit]
        if not shown:
            return ToolAnswer(text=f"Only {len(found)} documents; give a lower `first`.")
        last = asked.first - 1 + len(shown)
        head = f"Documents {asked.first}-{last} of {len(found)}"
        rest = f"; go on with first={last + 1}" if last < len(found) else ""
        return ToolAnswer(text="\n".join([f"{head}{rest}:", *map(_described, shown)]))


def _described(entry: Entry) -> str:
    said = f"[{entry.label}] {shown_text(entry.path)} ({entry.media_type}, {entry.num_lines} lines)"
    tables = []
    # Under the names that SQL and programs know them by.
    for name, named in islice(named_tables([entry]).items(), _MOST_TABLES):
        table = named.file
        place = f"{table.sheet}!{table.cells}" if table.sheet else table.cells
        title = f" {table.title!r}" if table.title else ""
        tables.append(f"{name} = {place}{title}, {table.num_rows} rows")
    if len(entry.tables) > _MOST_TABLES:
        tables.append(f"and {len(entry.tables) - _MOST_TABLES} more")
    return said + (f"; tables: {shown_text('; '.join(tables))}" if tables else "")
