"""What a shard's parts hold already: documents that have not changed are not fetched and read again."""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from connectors.document import Chunk, Content, Document, Segment, SourceRef, TableFile, Unit
from connectors.sinks.lake import Lake
from connectors.sinks.parquet import span_from_row
from flows.run.commits import Commit, find_commit

READ_AGAIN = frozenset({"unreadable_object"})
"""Reasons of rejection that are not the document's own, so that the next run tries again."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldShard:
    """A shard as the sink has it."""

    commit: Commit | None = None
    commit_etag: str | None = None
    documents: Mapping[str, Row] = field(default_factory=dict)
    """Rows by path; empty where they cannot be used."""
    chunks: Mapping[str, Sequence[Row]] = field(default_factory=dict)

    def find(self, source: SourceRef) -> tuple[Document, list[Chunk]] | None:
        """Return the document and its chunks, if they are of this version of the source."""
        row = self.documents.get(source.path)
        if row is None or (row["etag"], row["size_bytes"]) != (source.etag, source.size_bytes):
            return None
        if row["error_class"] in READ_AGAIN:
            return None
        return _document(row, source), [_chunk(chunk) for chunk in self.chunks.get(source.path, ())]


def load_held(lake: Lake, shard: str, reading_key: str) -> HeldShard:
    """Return what the sink has of a shard; its rows only where they would be made the same way."""
    commit, etag = find_commit(lake, shard)
    if commit is None or commit.reading_key != reading_key:
        return HeldShard(commit=commit, commit_etag=etag)
    documents = _rows(lake, f"documents/{shard}.parquet", commit)
    chunks = _rows(lake, f"chunks/{shard}.parquet", commit)
    if documents is None or chunks is None:
        return HeldShard(commit=commit, commit_etag=etag)
    by_path: dict[str, list[Row]] = defaultdict(list)
    for chunk in chunks:
        by_path[chunk["path"]].append(chunk)
    rows = {row["path"]: row for row in documents}
    return HeldShard(commit=commit, commit_etag=etag, documents=rows, chunks=by_path)


def _rows(lake: Lake, path: str, commit: Commit) -> list[Row] | None:
    """Return a part's rows; None where it is not the one that was written."""
    held = lake.storage.find(path)
    part = commit.parts.get(path)
    if held is None or part is None or hashlib.sha256(held.data).hexdigest() != part.sha256:
        return None
    rows: list[Row] = [*pl.read_parquet(io.BytesIO(held.data)).iter_rows(named=True)]
    return rows


def _document(row: Row, source: SourceRef) -> Document:
    content = None
    if row["status"] != "rejected":
        content = Content(
            media_type=row["media_type"],
            reader=row["reader"],
            units=tuple(Unit(**unit) for unit in row["units"]),
            segments=(),
            tables=tuple(
                TableFile(**{**table, "columns": tuple(table["columns"])})
                for table in row["tables"]
            ),
            metadata=tuple((item["name"], item["value"]) for item in row["metadata"]),
        )
    return Document(
        source=source,
        document_key=row["document_key"],
        status=row["status"],
        content=content,
        error_class=row["error_class"],
        error=row["error"],
    )


def _chunk(row: Row) -> Chunk:
    return Chunk(
        chunk_key=row["chunk_key"],
        document_key=row["document_key"],
        ordinal=row["ordinal"],
        segments=tuple(
            Segment(**{**segment, "span": span_from_row(segment["span"])})
            for segment in row["segments"]
        ),
        num_tokens=row["num_tokens"],
    )


def fetch_images(lake: Lake, document_key: str, images: Sequence[Path]) -> None:
    """Bring the pictures of a document that was not read again onto this machine."""
    for image in images:
        if not image.exists():
            image.write_bytes(lake.storage.get(f"media/{document_key}/{image.name}"))
