"""Vectors of texts by what the texts say: kept in the sink, and searched on this machine.

A text is paid for once: what another search, run or machine has had made into a vector is found here. The
search is exact: it compares a query with every vector, so nothing is trained and nothing goes stale.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from connectors.errors import DiskFull, StorageError, is_full
from connectors.storage import Storage

logger = logging.getLogger(__name__)

Key = bytes
_KEY_BYTES = 16
_NUM_FETCHERS = 8
_BLOCK_ROWS = 16_384
"""Vectors that are compared at once: 64 MiB of vectors of 1,024 numbers."""
_NUMBER_BYTES = np.dtype(np.float32).itemsize
_KIND = np.dtype("<f2")
"""In the sink: half precision, which takes less than 0.001 off a cosine. On this machine's disk they are in
single precision, with which a processor reckons many times faster."""


def key_of(text: str) -> Key:
    """Return the key of a text: equal for equal texts."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:_KEY_BYTES]


class Claimed(NamedTuple):
    """Texts without a vector, by who is about to pay for it; each once, in their order."""

    own: list[Key]
    """Left to the one who claims."""
    others: list[Key]
    """Claimed by others before."""
    ends: set[Future[None]]
    """Of the claims of those others: each is done when its claim has come to an end, well or not."""

    async def others_end(self) -> None:
        """Return when all of those others have come to an end."""
        await asyncio.gather(*map(asyncio.wrap_future, self.ends))


class VectorStore:
    """The vectors of one model; shared by all searches of a run, whatever thread they are in.

    In the sink, each object holds the vectors of one call and is named by their texts, so that runs on
    several machines can only write the same. On this machine's disk, all are in one file.
    """

    def __init__(
        self, storage: Storage, prefix: str, folder: Path, *, num_dims: int, texts_per_call: int
    ) -> None:
        """Begin with nothing; what the sink has is read when it is first asked for.

        Args:
            storage: Of the sink.
            prefix: Folder in it, of this model only.
            folder: On this machine's disk; is made.
            num_dims: Numbers of each vector.
            texts_per_call: Texts that are made into vectors by one call.
        """
        self.texts_per_call = texts_per_call
        self._storage, self._prefix, self._folder = storage, prefix, folder
        self._row = np.dtype([("key", f"V{_KEY_BYTES}"), ("vector", _KIND, (num_dims,))])
        self._num_dims = num_dims
        self._lock = threading.Lock()
        self._is_loaded = False
        self._num_rows = 0
        self._held: NDArray[np.float32] | None = None
        self._numbers: dict[Key, int] = {}
        self._ends: dict[Key, Future[None]] = {}
        """Ends of the claims to keys that have no vector yet."""
        # All begin with a claim, and the first one reads the sink: in a thread of their own those who wait
        # for it leave the loops' threads to others.
        self._claims = ThreadPoolExecutor(1, thread_name_prefix="vectors-claims")

    @asynccontextmanager
    async def claiming(self, keys: Sequence[Key]) -> AsyncIterator[Claimed]:
        """Yield which of these have no vector yet; others leave those alone that are claimed while the block runs.

        Raises:
            StorageError: The sink cannot be read, or this machine's disk cannot be written.
        """
        end: Future[None] = Future()
        # One who waits for it and gives up must not end it for all.
        end.set_running_or_notify_cancel()
        try:
            loop = asyncio.get_running_loop()
            yield await loop.run_in_executor(self._claims, self._claimed, keys, end)
        finally:
            end.set_result(None)

    def _claimed(self, keys: Sequence[Key], end: Future[None]) -> Claimed:
        self._load()
        with self._lock:
            claimed = Claimed([], [], set())
            for key in dict.fromkeys(keys):
                if key in self._numbers:
                    continue
                other = self._ends.get(key)
                if other is None or other.done():
                    self._ends[key] = end
                    claimed.own.append(key)
                else:
                    claimed.others.append(key)
                    claimed.ends.add(other)
            return claimed

    def put(self, vectors: Mapping[Key, Sequence[float]]) -> None:
        """Keep vectors; they are in the sink when this returns.

        Raises:
            StorageError: The sink, or this machine's disk, cannot be written.
        """
        rows = np.zeros(len(vectors), dtype=self._row)
        rows["key"] = [np.void(key) for key in vectors]
        rows["vector"] = _unit(np.array(list(vectors.values()), dtype=np.float32))
        data = io.BytesIO()
        np.save(data, rows, allow_pickle=False)
        name = hashlib.sha256(b"".join(sorted(vectors))).hexdigest()[:32]
        # Not on condition that it is absent: a broken object is replaced by a whole one.
        self._storage.put(f"{self._prefix}/{name}.npy", data.getvalue())
        self._keep(rows)

    def numbers(self, keys: Sequence[Key]) -> NDArray[np.int64]:
        """Return what `nearest` calls the vectors of these keys, which there are."""
        with self._lock:
            return np.array([self._numbers[key] for key in keys], dtype=np.int64)

    def nearest(
        self, query: Sequence[float], numbers: NDArray[np.int64], limit: int
    ) -> list[tuple[int, float]]:
        """Return the places in `numbers` of the vectors nearest to a query, with their cosines, nearest first."""
        wanted = _unit(np.array([query], dtype=np.float32))[0]
        if not len(numbers):
            return []
        held = self._mapped()
        if 2 * len(numbers) > len(held):
            # In the order of the file: to pick them out first would take longer.
            scores = _scores(held, wanted)[numbers]
        else:
            starts = range(0, len(numbers), _BLOCK_ROWS)
            blocks = (held[numbers[at : at + _BLOCK_ROWS]] for at in starts)
            scores = np.concatenate([block @ wanted for block in blocks])
        # Stable: of equal ones the earlier passage comes first.
        best = np.argsort(-scores, kind="stable")[:limit]
        return [(int(place), float(scores[place])) for place in best]

    def _mapped(self) -> NDArray[np.float32]:
        """Return all vectors; the file stays mapped, since to map it anew takes longer than to reckon with it."""
        with self._lock:
            if self._held is None or len(self._held) < self._num_rows:
                shape = (self._num_rows, self._num_dims)
                self._held = np.memmap(self._file, dtype=np.float32, mode="r", shape=shape)
            return self._held

    @property
    def _file(self) -> Path:
        return self._folder / "vectors.f4"

    def _load(self) -> None:
        with self._lock:
            if self._is_loaded:
                return
            # An attempt that failed in between leaves nothing behind.
            self._forget()
            names = [item.path for item in self._storage.list(f"{self._prefix}/")]
            with ThreadPoolExecutor(_NUM_FETCHERS, thread_name_prefix="vectors") as threads:
                for rows in threads.map(self._read, names):
                    self._keep_locked(rows)
            self._is_loaded = True

    def _forget(self) -> None:
        """Begin anew with no vectors on this machine.

        Raises:
            StorageError: This machine's disk cannot be written.
        """
        with self._writing():
            self._file.unlink(missing_ok=True)
        self._num_rows, self._held = 0, None
        self._numbers.clear()

    def _read(self, path: str) -> NDArray[np.void]:
        """Return what an object holds; nothing where it is broken, so that it is made anew."""
        held = self._storage.find(path)
        try:
            rows = np.load(io.BytesIO(held.data if held else b""), allow_pickle=False)
            is_whole = rows.dtype == self._row and bool(np.isfinite(rows["vector"]).all())
        except (ValueError, EOFError, OSError) as exc:
            logger.warning("%s is passed over: %s", self._storage.uri(path), exc)
            return np.zeros(0, dtype=self._row)
        if not is_whole:
            logger.warning("%s is passed over: it holds something else", self._storage.uri(path))
            return np.zeros(0, dtype=self._row)
        found: NDArray[np.void] = rows
        return found

    def _keep(self, rows: NDArray[np.void]) -> None:
        with self._lock:
            self._keep_locked(rows)

    def _keep_locked(self, rows: NDArray[np.void]) -> None:
        with self._writing():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file.touch()
            with self._file.open("r+b") as file:
                # A write that failed may have left a part of its rows behind those that count.
                file.truncate(self._num_rows * self._num_dims * _NUMBER_BYTES)
                file.seek(0, io.SEEK_END)
                file.write(rows["vector"].astype(np.float32).tobytes())
        for number, key in enumerate(map(bytes, rows["key"]), start=self._num_rows):
            self._numbers.setdefault(key, number)
            self._ends.pop(key, None)
        self._num_rows += len(rows)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            uri = str(self._file)
            raise (DiskFull if is_full(exc) else StorageError)(
                f"vectors cannot be kept in {uri!r}: {exc}; check that the disk has room", uri=uri
            ) from exc


def _scores(held: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosines of a query with all vectors; memory does not grow with them."""
    starts = range(0, len(held), _BLOCK_ROWS)
    found: NDArray[np.float32] = np.concatenate([
        held[at : at + _BLOCK_ROWS] @ wanted for at in starts
    ])
    return found


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors of length 1, whose product is their cosine; one of zeros stays as it is."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: NDArray[np.float32] = vectors / np.maximum(lengths, np.float32(1e-30))
    return found
