"""One sink: the folders of the lake, its parts and its manifests.

Layout, below the sink's URL:
    documents/<shard>.parquet               one row per source object
    chunks/<shard>.parquet                  one row per chunk
    records/stage=<name>/<shard>.parquet    one row per request and source; <name>@2 with new columns
    media/<document_key>/<name>             page rasters and frames that chunks refer to
    runs/<run_id>/usage/<shard>.parquet     what varies from try to try, by request_key
    runs/<run_id>/transcripts/<shard>.parquet  what agents did for their requests, where there are any
    runs/<run_id>/manifest.json             counts that add up, resolved configuration, versions
    reports/<run_id>/index.html, report.md

A shard owns exactly one part per table, replaced as a whole. Parts are written through
connectors.storage; tables are read back by glob, as a user's tools would do.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from connectors.document import Chunk
from connectors.errors import StorageError
from connectors.sinks import parquet
from connectors.storage import Access, S3Storage, Storage, open_storage

_MOST_TRIES = 5
_ROWS_AT_ONCE = 1024
_PARTS_AHEAD = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PartInfo:
    """Which bytes a part has."""

    etag: str
    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, data: bytes, etag: str) -> PartInfo:
        """Return what these bytes are."""
        digest = hashlib.sha256(data).hexdigest()
        return cls(etag=etag, size_bytes=len(data), sha256=digest)


class Lake:
    """Writes a run's tables and reads them back."""

    def __init__(self, url: str, access: Access | None = None) -> None:
        self.storage: Storage = open_storage(url, access)
        self.url = self.storage.url

    def put_part(self, path: str, data: bytes, *, history: str) -> PartInfo:
        """Write a shard's one part of a table, in one step for all who read it.

        Args:
            path: Where it belongs for life, such as `documents/s00001.parquet`.
            data: The whole part.
            history: Folder that gets the part which it replaces, if there is one.

        Raises:
            StorageError: Somebody else writes it at the same time, or it cannot be written.
        """
        etag = self.storage.put_if_absent(path, data)
        held = None
        for _ in range(_MOST_TRIES):
            if etag is not None:
                return PartInfo.of(data, etag)
            found = self.storage.find(path)
            if found is None or (held is not None and held.data != found.data):
                break
            held = found
            if held.data != data:
                name = hashlib.sha256(held.data).hexdigest()[:16]
                kept = f"{history}/{path.removesuffix('.parquet')}-{name}.parquet"
                self.storage.put_if_absent(kept, held.data)
            # Not met where the store's answer was wrong, or somebody was faster.
            etag = self.storage.put_if_match(path, data, held.etag)
        uri = self.storage.uri(path)
        raise StorageError(f"{uri} was written by somebody else meanwhile; resume the run", uri=uri)

    def put_json(self, path: str, value: Mapping[str, Any]) -> None:
        """Write one JSON object, keys in the order given."""
        text = json.dumps(value, indent=2, ensure_ascii=False)
        self.storage.put(path, text.encode())

    def find_json(self, path: str) -> dict[str, Any] | None:
        """Return one JSON object, or None where there is none.

        Raises:
            StorageError: What is there is no JSON object.
        """
        held = self.storage.find(path)
        if held is None:
            return None
        try:
            value = json.loads(held.data)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            uri = self.storage.uri(path)
            raise StorageError(f"{uri} is no JSON object; was it changed by hand?", uri=uri)
        return value

    def claim(self, path: str, value: Mapping[str, Any]) -> Mapping[str, Any]:
        """Put one JSON object where there is none, and return the one that is there."""
        if self.storage.put_if_absent(path, json.dumps(value, indent=2).encode()):
            return value
        held = json.loads(self.storage.get(path))
        assert isinstance(held, dict)
        return held

    def read_table(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        paths: Sequence[str] | None = None,
        shard: str | None = None,
    ) -> pl.DataFrame | None:
        """Return the rows of `table`, or None where it has no part yet.

        Args:
            table: Folder of the table, such as `documents` or `records/stage=digest`.
            columns: Columns to read; all where None.
            paths: Values of column `path` to keep; all where None.
            shard: The shard whose part is read; all where None.

        Raises:
            StorageError: The parts cannot be listed or read.
        """
        if shard is not None:
            return self._read_part(f"{table}/{shard}.parquet", columns, paths)
        filesystem, root = _filesystem(self.storage)
        files = [f"{root}/{part}" for part in self._parts(table)]
        if not files:
            return None
        keep = None if paths is None else ds.field("path").isin(list(paths))
        with self._reading(table):
            data = ds.dataset(files, filesystem=filesystem, format="parquet")
            return _frame(data.to_table(columns=list(columns) if columns else None, filter=keep))

    def _read_part(
        self,
        path: str,
        columns: Sequence[str] | None,
        paths: Sequence[str] | None,
        optional: Sequence[str] = (),
    ) -> pl.DataFrame | None:
        held = self.storage.find(path)
        if held is None:
            return None
        with self._reading(path):
            file = pa.BufferReader(held.data)
            if columns and optional:
                there = {*pq.read_schema(file).names}
                columns = [*columns, *(name for name in optional if name in there)]
                file.seek(0)
            # Read by Arrow, as the whole table is, so that types are the same.
            frame = _frame(
                pq.read_table(file, columns=list(columns) if columns else None, use_threads=False)
            )
        return frame if paths is None else frame.filter(pl.col("path").is_in(list(paths)))

    def iter_table(
        self, table: str, columns: Sequence[str], optional: Sequence[str] = ()
    ) -> Iterator[pl.DataFrame]:
        """Yield the rows of `table`, about a thousand at a time: memory does not grow with the table.

        Args:
            table: Folder of the table.
            columns: Columns to read.
            optional: Columns to read where a part has them; null in the others.

        Raises:
            StorageError: The parts cannot be listed or read.
        """
        # Part by part: what Arrow keeps of each file of a dataset is more than these files hold.
        parts: list[pl.DataFrame] = []
        for part in self._read_ahead(self._parts(table), columns, optional):
            parts.append(part)
            if sum(map(len, parts)) >= _ROWS_AT_ONCE:
                yield pl.concat(parts, how="diagonal")
                parts = []
        if parts:
            yield pl.concat(parts, how="diagonal")

    def _read_ahead(
        self, paths: Iterable[str], columns: Sequence[str], optional: Sequence[str]
    ) -> Iterator[pl.DataFrame]:
        coming: deque[Future[pl.DataFrame | None]] = deque()
        with ThreadPoolExecutor(_PARTS_AHEAD) as threads:
            for path in paths:
                coming.append(threads.submit(self._read_part, path, columns, None, optional))
                if len(coming) >= _PARTS_AHEAD:
                    yield from _there(coming.popleft())
            while coming:
                yield from _there(coming.popleft())

    def _parts(self, table: str) -> Iterator[str]:
        listed = (item.path for item in self.storage.list(table))
        return (path for path in listed if path.endswith(".parquet"))

    @contextmanager
    def _reading(self, table: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowInvalid) as exc:
            raise StorageError(
                f"{table!r} of {self.url} cannot be read: {exc}", uri=self.url
            ) from exc


def _there(part: Future[pl.DataFrame | None]) -> Iterator[pl.DataFrame]:
    """Yield the part, unless it was removed since it was listed."""
    frame = part.result()
    if frame is not None:
        yield frame


def _frame(read: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(read)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _filesystem(storage: Storage) -> tuple[Any, str]:
    """Return an fsspec file system and the root path in it; S3 through s3fs."""
    if not isinstance(storage, S3Storage):
        return fsspec.filesystem("file"), storage.url
    session = storage.session
    # It resolves credentials itself, and renews them.
    filesystem = fsspec.filesystem(
        "s3",
        profile=session.profile,
        anon=session.keys is None,
        endpoint_url=session.endpoint_url,
        client_kwargs={"region_name": session.region},
        use_listings_cache=False,
        # Stores other than AWS need not know the checksums that botocore adds by itself.
        config_kwargs={
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        },
    )
    return filesystem, storage.url.removeprefix("s3://")


def chunk_row(chunk: Chunk, *, uri: str, path: str) -> dict[str, Any]:
    """Return a chunk as a row of the chunks table."""
    return {
        "chunk_key": chunk.chunk_key,
        "document_key": chunk.document_key,
        "uri": uri,
        "path": path,
        "ordinal": chunk.ordinal,
        "num_tokens": chunk.num_tokens,
        "segments": [
            {
                "label": segment.label,
                "kind": segment.kind,
                "text": segment.text,
                "tier": segment.tier,
                "media": segment.media,
                "is_rest": segment.is_rest,
                "span": parquet.span_row(segment.span),
            }
            for segment in chunk.segments
        ],
    }
