"""Which shard owns a document, for life: a log of blocks in the sink that only grows.

A block is put on condition that its number is free. Of two runs that cut new documents at once one
gets the number; the other reads what that block has, and goes on with what is left to it.
"""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Sequence

import polars as pl

from connectors.sinks.lake import Lake
from connectors.storage import STATE_PREFIX

_FOLDER = f"{STATE_PREFIX}/shards"
_MOST_SHARDS = 256
"""Shards of a block: the first has one, so that work begins at once, each next one twice as many."""


class Assignments:
    """The shards of all documents that the sink has ever seen."""

    def __init__(self, lake: Lake) -> None:
        """Read the log."""
        self._storage = lake.storage
        self.shard_of: dict[str, str] = {}
        """By path below the source."""
        self.num_documents: Counter[str] = Counter()
        """By shard, deleted documents included."""
        self._next_block = 0
        self._read_on()

    def _read_on(self) -> None:
        while (held := self._storage.find(self._path())) is not None:
            frame = pl.read_parquet(io.BytesIO(held.data), columns=["path", "shard"])
            # One string for all of a shard's documents.
            names = {name: name for name in frame["shard"].unique()}
            for path, shard in frame.iter_rows():
                self.shard_of[path] = names[shard]
            self.num_documents.update(frame["shard"].to_list())
            self._next_block += 1

    def _path(self) -> str:
        return f"{_FOLDER}/{self._next_block:06d}.parquet"

    @property
    def shards_per_block(self) -> int:
        """Return how many new shards the next block should hold."""
        return int(min(_MOST_SHARDS, 2 ** min(self._next_block, 20)))

    def add(self, groups: Sequence[Sequence[str]]) -> list[str] | None:
        """Give each group of new paths a shard of its own.

        Returns:
            The shards' names; None where another run has added to the log, whose documents are now
            known.
        """
        numbers = itertools.count(len(self.num_documents))
        names = [f"s{next(numbers):05d}" for _ in groups]
        rows = {
            "path": [path for group in groups for path in group],
            "shard": [name for name, group in zip(names, groups, strict=True) for _ in group],
        }
        file = io.BytesIO()
        pl.DataFrame(rows, schema={"path": pl.String, "shard": pl.String}).write_parquet(file)
        if self._storage.put_if_absent(self._path(), file.getvalue()) is None:
            self._read_on()
            return None
        self._next_block += 1
        for name, group in zip(names, groups, strict=True):
            self.shard_of.update(dict.fromkeys(group, name))
            self.num_documents[name] = len(group)
        return names
