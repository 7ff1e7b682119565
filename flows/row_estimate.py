"""What rows of tables take as prompts, and what they share in the order in which they are asked about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from connectors.chunker import Counter, render
from connectors.document import Chunk
from flows.run.units import Row, rows_of


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTokens:
    """Tokens of the material of rows, each shown once."""

    total: float = 0.0
    shared: float = 0.0
    """Those that a row begins with as the one asked before it does."""
    shared_as_given: float = 0.0
    """The same, were they asked about as the tables have them."""

    def times(self, factor: float) -> RowTokens:
        """Return the tokens of so many times these rows."""
        return RowTokens(
            total=self.total * factor,
            shared=self.shared * factor,
            shared_as_given=self.shared_as_given * factor,
        )

    def __add__(self, other: RowTokens) -> RowTokens:
        return RowTokens(
            total=self.total + other.total,
            shared=self.shared + other.shared,
            shared_as_given=self.shared_as_given + other.shared_as_given,
        )


def row_tokens(
    documents: Iterable[Sequence[Chunk]], counter: Counter, order: Literal["shared", "given"]
) -> RowTokens:
    """Return the tokens of the rows of documents, of which the chunks are given."""
    total = RowTokens()
    for chunks in documents:
        given = rows_of(chunks, "given").rows
        rows = given if order == "given" else rows_of(chunks, order).rows
        as_given = _shared(given, counter)
        total += RowTokens(
            total=sum(counter.weigh([render([row.shown]) for row in rows])),
            shared=as_given if order == "given" else _shared(rows, counter),
            shared_as_given=as_given,
        )
    return total


def _shared(rows: Sequence[Row], counter: Counter) -> int:
    texts = [
        render([replace(row.segment, text=row.beginning)]).rstrip("\n")
        for row in rows
        if row.num_shared
    ]
    return sum(counter.weigh(texts))
