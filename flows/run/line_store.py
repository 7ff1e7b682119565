"""The lines of a sink's documents on this machine's disk, brought there shard by shard when asked for.

Memory holds a few parts of the sink while they are brought, and a few blocks of lines; of a document that has
a hundred thousand lines too. Used by `flows.run.corpus_view`.
"""

from __future__ import annotations

import pickle
import sqlite3
import threading
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count, groupby
from pathlib import Path
from typing import Any, overload

import polars as pl

from connectors.document import Chunk, Segment, TableFile
from connectors.errors import DiskFull, StorageError
from connectors.sinks.lake import Lake
from connectors.sinks.parquet import span_from_row
from flows.run.sink_files import SinkFiles

_BLOCK_LINES = 128
_HELD_BLOCKS = 64
_PARTS_AHEAD = 4
_ROWS_AT_ONCE = 16
_DOCUMENT_COLUMNS = ("path", "document_key", "shard", "status", "media_type", "tables")
_CHUNK_COLUMNS = ("path", "document_key", "ordinal", "segments")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDocument:
    """A document that could be read, as the sink's documents table has it."""

    number: int
    """Its own in this store."""
    path: str
    document_key: str
    shard: str
    media_type: str
    tables: tuple[TableFile, ...]


def in_reading_order(chunks: Sequence[Sequence[Segment]]) -> list[Segment]:
    """Return the segments of a document's chunks, in order, each once, without labels.

    A chunk repeats the last heading and the overlap in front of its own segments; images that no
    text-only model can read have a chunk of their own at the end, and go back to their page or time.
    """
    lines: list[Segment] = []
    heading: Segment | None = None
    for chunk in chunks:
        own = [segment.with_label("") for segment in chunk]
        if heading is not None and own and own[0] == heading:
            del own[0]
        del own[: _overlap(lines, own)]
        lines += own
        heading = next((s for s in reversed(own) if s.kind == "heading"), heading)
    return _with_images_in_place(lines, len(chunks[-1]) if chunks else 0)


def _overlap(lines: Sequence[Segment], own: Sequence[Segment]) -> int:
    """Return how many segments at the begin of a chunk are those that stand in front of it."""
    most = next((n for n, s in enumerate(own) if s.kind != "paragraph"), len(own))
    for number in range(min(most, len(lines)), 0, -1):
        if own[number - 1] == lines[-1] and list(own[:number]) == lines[-number:]:
            return number
    return 0


def _with_images_in_place(lines: list[Segment], num_last: int) -> list[Segment]:
    images = lines[len(lines) - num_last :]
    rest = lines[: len(lines) - num_last]
    if not rest or not all(s.kind == "image" and _position(s) is not None for s in images):
        return lines
    found: list[Segment] = []
    waiting = iter(images)
    image = next(waiting, None)
    for line in rest:
        at = _position(line)
        while image is not None and at is not None and (_position(image) or 0.0) < at:
            found.append(image)
            image = next(waiting, None)
        found.append(line)
    return [*found, *([image] if image is not None else []), *waiting]


def _position(segment: Segment) -> float | None:
    return segment.span.t0 if segment.span.page is None else segment.span.page


class LineStore:
    """Brings lines from a sink into one file, and reads them back. Threads may share it."""

    def __init__(self, lake: Lake, folder: Path) -> None:
        """Make an empty store.

        Args:
            lake: The sink; only what it has committed is seen.
            folder: Where lines and files are kept; lines that lie there are replaced.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.files = SinkFiles(lake, folder)
        self._lake = lake
        self._lock = threading.RLock()
        self._documents: Mapping[str, StoredDocument] | None = None
        self._brought: set[str] = set()
        self._blocks: OrderedDict[tuple[int, int], Sequence[Segment]] = OrderedDict()
        self._file = folder / "lines.sqlite"
        self._file.unlink(missing_ok=True)
        self._db = sqlite3.connect(self._file, isolation_level=None, check_same_thread=False)
        # It is gone with the run: no journal is needed.
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute(
            "CREATE TABLE blocks (document INT, block INT, lines BLOB, PRIMARY KEY (document, block))"
        )
        self._db.execute("CREATE TABLE documents (document INTEGER PRIMARY KEY, num_lines INT)")
        self._db.execute(
            "CREATE TABLE media (document INT, name TEXT, PRIMARY KEY (document, name))"
        )

    def close(self) -> None:
        """Give up the file."""
        with self._lock:
            self._db.close()

    def documents(self) -> Mapping[str, StoredDocument]:
        """Return the documents that could be read, by path.

        Raises:
            StorageError: The sink cannot be read.
        """
        with self._lock:
            if self._documents is None:
                found: dict[str, StoredDocument] = {}
                numbers = count()
                for frame in self._lake.iter_table("documents", _DOCUMENT_COLUMNS):
                    for row in frame.filter(pl.col("status") != "rejected").iter_rows(named=True):
                        found[row["path"]] = _stored(row, next(numbers))
                self._documents = found
            return self._documents

    def bring(self, paths: Collection[str]) -> None:
        """Bring the lines of documents here, with those of the shards that they are in.

        Raises:
            StorageError: The sink cannot be read, or this machine's disk is full.
        """
        with self._lock:
            documents = self.documents()
            shards = {documents[path].shard for path in paths}
            wanted = shards - self._brought
            if not wanted:
                return
            for frame in self._parts(wanted):
                with self._writing():
                    for path, chunks in _by_document(frame, documents):
                        self._keep(documents[path], in_reading_order(chunks))
            self._brought |= wanted

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Write all that is put meanwhile.

        Raises:
            DiskFull: This machine's disk has no room left.
            StorageError: It cannot be written.
        """
        try:
            self._db.execute("BEGIN")
            yield
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as exc:
            is_full = exc.sqlite_errorcode == sqlite3.SQLITE_FULL
            raise (DiskFull if is_full else StorageError)(
                f"lines for tools cannot be kept in {str(self._file)!r}: {exc}; make room there, or"
                " point TMPDIR to a larger disk",
                uri=str(self._file),
            ) from exc

    def _parts(self, shards: Collection[str]) -> Iterator[pl.DataFrame]:
        coming: deque[Future[pl.DataFrame | None]] = deque()
        with ThreadPoolExecutor(_PARTS_AHEAD) as threads:
            for shard in sorted(shards):
                read = partial(self._lake.read_table, "chunks", _CHUNK_COLUMNS, shard=shard)
                coming.append(threads.submit(read))
                if len(coming) >= _PARTS_AHEAD:
                    yield from _there(coming.popleft())
            while coming:
                yield from _there(coming.popleft())

    def _keep(self, document: StoredDocument, lines: Sequence[Segment]) -> None:
        number = document.number
        blocks = (
            (number, first // _BLOCK_LINES, pickle.dumps(list(lines[first : first + _BLOCK_LINES])))
            for first in range(0, len(lines), _BLOCK_LINES)
        )
        self._db.executemany("INSERT OR REPLACE INTO blocks VALUES (?, ?, ?)", blocks)
        self._db.execute("INSERT OR REPLACE INTO documents VALUES (?, ?)", (number, len(lines)))
        names = {line.media for line in lines if line.media is not None}
        self._db.executemany(
            "INSERT OR IGNORE INTO media VALUES (?, ?)", ((number, name) for name in sorted(names))
        )

    def num_lines(self, document: StoredDocument) -> int:
        """Return how many lines a document has that was brought here."""
        with self._lock:
            row = self._db.execute(
                "SELECT num_lines FROM documents WHERE document = ?", (document.number,)
            ).fetchone()
        return 0 if row is None else int(row[0])

    def names(self, document: StoredDocument, name: str) -> bool:
        """Tell whether a line of a document names a picture."""
        with self._lock:
            row = self._db.execute(
                "SELECT 1 FROM media WHERE document = ? AND name = ?", (document.number, name)
            ).fetchone()
        return row is not None

    def block(self, document: StoredDocument, block: int) -> Sequence[Segment]:
        """Return a block of a document's lines; the last ones asked for stay in memory."""
        key = (document.number, block)
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
                return self._blocks[key]
            row = self._db.execute(
                "SELECT lines FROM blocks WHERE document = ? AND block = ?", key
            ).fetchone()
            # Written by this process a moment ago, to a folder of its own.
            lines: Sequence[Segment] = pickle.loads(row[0])
            self._blocks[key] = lines
            if len(self._blocks) > _HELD_BLOCKS:
                self._blocks.popitem(last=False)
            return lines


class StoredLines(Sequence[Segment]):
    """A document's lines, read block by block as they are asked for."""

    def __init__(self, store: LineStore, document: StoredDocument) -> None:
        self._store = store
        self._document = document
        self._num_lines = store.num_lines(document)

    def __len__(self) -> int:
        return self._num_lines

    @overload
    def __getitem__(self, index: int) -> Segment: ...
    @overload
    def __getitem__(self, index: slice) -> list[Segment]: ...
    def __getitem__(self, index: int | slice) -> Segment | list[Segment]:
        chosen = range(self._num_lines)[index]
        if isinstance(chosen, range):
            return [self._at(number) for number in chosen]
        return self._at(chosen)

    def __iter__(self) -> Iterator[Segment]:
        for block in range(-(-self._num_lines // _BLOCK_LINES)):
            yield from self._store.block(self._document, block)

    def _at(self, number: int) -> Segment:
        block, place = divmod(number, _BLOCK_LINES)
        return self._store.block(self._document, block)[place]


def _there(part: Future[pl.DataFrame | None]) -> Iterator[pl.DataFrame]:
    """Yield the part, unless it was removed since its documents were read."""
    frame = part.result()
    if frame is not None:
        yield frame


def _stored(row: Mapping[str, Any], number: int) -> StoredDocument:
    return StoredDocument(
        number=number,
        path=row["path"],
        document_key=row["document_key"],
        shard=row["shard"],
        media_type=row["media_type"] or "",
        tables=tuple(
            TableFile(**{**table, "columns": tuple(table["columns"])})
            for table in row["tables"] or ()
        ),
    )


def _by_document(
    frame: pl.DataFrame, documents: Mapping[str, StoredDocument]
) -> Iterator[tuple[str, list[list[Segment]]]]:
    """Yield the chunks of each document as the documents table has it; a document is in one part."""
    # A few rows at a time: as Python objects they take several times as much.
    rows = frame.sort("path", "ordinal").iter_rows(named=True, buffer_size=_ROWS_AT_ONCE)
    for path, chunks in groupby(rows, key=lambda row: row["path"]):
        document = documents.get(path)
        if document is None:
            continue
        yield (
            path,
            [
                [_segment(segment) for segment in row["segments"]]
                for row in chunks
                if row["document_key"] == document.document_key
            ],
        )


def _segment(row: Mapping[str, Any]) -> Segment:
    return Segment(**{**row, "span": span_from_row(row["span"])})


def segments_of(chunks: Sequence[Chunk]) -> list[Segment]:
    """Return the lines of a document that is in memory."""
    return in_reading_order([chunk.segments for chunk in chunks])


class LineStores:
    """The line stores of a run: one for each state that its sink has been in. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stores: dict[str, LineStore] = {}

    def at(self, key: str, lake: Lake, folder: Path) -> LineStore:
        """Return the store of the sink as it is now.

        Args:
            key: Of all that is committed; another one means that there is something new.
            lake: The sink.
            folder: Where stores are kept.
        """
        with self._lock:
            if key not in self._stores:
                self._stores[key] = LineStore(lake, folder / key[:16])
            return self._stores[key]
