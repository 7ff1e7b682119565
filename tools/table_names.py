"""Names of a corpus' tables in SQL and in programs: `d3_t1` is the first table of the document `D3`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from connectors.document import TableFile
from engine.tool import ToolError
from tools.corpus import Corpus, Entry

_NAME = re.compile(r"\bd\d+_t\d+\b", re.IGNORECASE)
MAX_TABLES = 50
"""Most tables of one query or program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedTable:
    """One table and the document it is in."""

    name: str
    entry: Entry
    file: TableFile

    @property
    def place(self) -> str:
        """Return where it stands, to be read: document, path, sheet and cells."""
        where = f"{self.entry.label} {self.entry.path}"
        if self.file.sheet:
            where += f", sheet {self.file.sheet!r}"
        return where + (f", cells {self.file.cells}" if self.file.cells else "")

    @property
    def citation(self) -> str:
        """Return how a row of it is cited."""
        sheet = f", sheet {self.file.sheet!r}" if self.file.sheet else ""
        return f"{self.entry.label}{sheet}, row N, where N is its column `row`"


def named_tables(entries: Sequence[Entry]) -> dict[str, NamedTable]:
    """Return the tables by their names, in the order of documents."""
    found = (
        NamedTable(name=f"{entry.label.lower()}_t{number}", entry=entry, file=file)
        for entry in entries
        for number, file in enumerate(entry.tables, start=1)
    )
    return {table.name: table for table in found}


def mentioned(text: str, tables: Mapping[str, NamedTable]) -> list[NamedTable]:
    """Return the tables whose names stand anywhere in a text, each once.

    Raises:
        ToolError: It names too many.
    """
    names = dict.fromkeys(name.lower() for name in _NAME.findall(text))
    found = [tables[name] for name in names if name in tables]
    if len(found) > MAX_TABLES:
        raise ToolError(
            f"the query names {len(found)} tables, and one call may use {MAX_TABLES}; use fewer"
        )
    return found


def table_paths(corpus: Corpus, tables: Iterable[NamedTable]) -> dict[str, str]:
    """Return the local Parquet file of each table by its name. Blocks while a file is fetched.

    Raises:
        ToolError: The file of a table is not there.
    """
    paths = {}
    for table in tables:
        try:
            path = corpus.table(table.entry.label, table.file.name)
        except (KeyError, OSError) as exc:
            raise ToolError(
                f"the file of table {table.name} cannot be read; go on without it"
            ) from exc
        paths[table.name] = str(path.resolve())
    return paths
