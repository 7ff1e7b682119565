"""The documents that tools work on: listed, read line by line, their pictures and tables found.

What an agent sees of a corpus has labels that stay the same for the whole request: `D3` is a document,
`D3L120` its 120th line. Answers quote them, and they lead back to page, cell or second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from connectors.document import Segment, TableFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One document of the corpus."""

    label: str
    """`D1`, `D2`, ... in the order of paths."""
    path: str
    """Below the source."""
    document_key: str
    media_type: str
    num_lines: int
    tables: tuple[TableFile, ...] = ()


class Corpus(Protocol):
    """The documents that one request may look at; no other can be reached through it."""

    @property
    def entries(self) -> Sequence[Entry]:
        """Return the documents in the order of their labels."""

    def lines(self, label: str) -> Sequence[Segment]:
        """Return a document's segments in reading order; the n-th, from 1, has the label `D3Ln`.

        Raises:
            KeyError: There is no such document.
        """

    def media(self, label: str, name: str) -> Path:
        """Return a local JPEG that one of the document's segments names.

        Raises:
            KeyError: No segment of the document names it.
            FileNotFoundError: The reader kept no picture of it.
        """

    def table(self, label: str, name: str) -> Path:
        """Return a local Parquet file of one of the document's tables.

        Raises:
            KeyError: The document has no such table.
        """
