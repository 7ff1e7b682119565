"""What the documents table says of a run's documents, read once and in memory that does not grow with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from flows.run.bench import Room

MAX_CARDS = 200
"""Documents shown in full; the page says how many more the tables hold."""

MAX_FLAWED = 200
"""Documents listed as not read, or read in part; the page says how many more there are."""

Row = Mapping[str, Any]

_COLUMNS = (
    "path",
    "uri",
    "document_key",
    "shard",
    "media_type",
    "status",
    "error_class",
    "error",
    "num_chunks",
    "units",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The documents as a whole, and those that are shown."""

    statuses: Mapping[str, int]
    """Documents by status."""
    num_pages: int
    """Units that were read: pages, sheets and runs of frames."""
    first: Sequence[Row]
    """The first `MAX_CARDS` rows by path."""
    flawed: Sequence[Row]
    """The first `MAX_FLAWED` rows by path that were not read, or in part."""
    shards: Mapping[str, str]
    """Shard by path, of the documents that were asked for."""


def load_overview(room: Room, cited: Collection[str]) -> Overview:
    """Return the overview of the sink's documents.

    Args:
        room: The run's.
        cited: Paths whose shards are wanted.

    Raises:
        StorageError: The table cannot be read.
    """
    statuses: Counter[str] = Counter()
    num_pages = 0
    first, flawed, shards = _First(MAX_CARDS), _First(MAX_FLAWED), {}
    for frame in room.lake.iter_table("documents", _COLUMNS):
        statuses.update(dict(frame["status"].value_counts().iter_rows()))
        units = frame.select(pl.col("units").explode().struct.field("status")).to_series()
        num_pages += int((units != "failed").sum())
        first.add(frame)
        flawed.add(frame.filter(pl.col("status") != "read"))
        named = frame.filter(pl.col("path").is_in(list(cited)))
        shards.update(dict(named.select("path", "shard").iter_rows()))
    return Overview(
        statuses=dict(sorted(statuses.items())),
        num_pages=num_pages,
        first=first.rows(),
        flawed=flawed.rows(),
        shards=shards,
    )


class _First:
    """The first rows by path of all that are added."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: pl.DataFrame | None = None

    def add(self, frame: pl.DataFrame) -> None:
        whole = frame if self._kept is None else pl.concat([self._kept, frame])
        self._kept = whole.sort("path").head(self._limit)

    def rows(self) -> list[dict[str, Any]]:
        return [] if self._kept is None else self._kept.to_dicts()
