"""What a process knows of the batches at one host: the records in the sink, by line and by shard."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from engine.batch_api.record import BatchRecord, HeldRecord, Store

_LOADED_AT_ONCE = 16
_MOST_LINES = 16
"""More lines than one request takes: its turns, each sent three times at most."""


class Index:  # noqa: PLR0904 - all that is known of the records
    """Records of one host in one sink; several threads may use it."""

    def __init__(self, store: Store, folder: str, base_url: str) -> None:
        self.store, self.folder = store, folder
        self._base_url = base_url
        self._lock = threading.RLock()
        self._held: dict[str, HeldRecord] = {}
        self._of_line: dict[str, str] = {}
        self._ends: dict[str, Mapping[str, Any]] = {}
        self._awaited: dict[str, set[str]] = defaultdict(set)
        self.unsent: dict[str, str] = {}
        """Why a shard's lines could not be sent, or it is not known whether they were."""

    def load(self, shard: str = "") -> Iterator[HeldRecord]:
        """Yield the records of a shard, or of all, as the sink has them now, and know them from here on."""
        prefix = f"{self.folder}/{shard}/" if shard else f"{self.folder}/"
        paths = [one.path for one in self.store.list(prefix) if one.path.endswith(".json")]
        with ThreadPoolExecutor(_LOADED_AT_ONCE) as threads:
            for held in threads.map(self._find, paths):
                if held is not None:
                    self.add(held)
                    yield held

    def _find(self, path: str) -> HeldRecord | None:
        held = HeldRecord.find(self.store, path, self.folder)
        return held if held is not None and held.record.base_url == self._base_url else None

    def reload(self, held: HeldRecord) -> HeldRecord | None:
        """Return a record as somebody else has written it, and know it so; None where it has gone."""
        found = self._find(f"{self.folder}/{held.record.path}")
        if found is None:
            self.forget(held)
        else:
            self.add(found)
        return found

    def create(self, record: BatchRecord) -> HeldRecord:
        """Put a new record, and know it.

        Raises:
            SinkChanged: There is one for the same lines.
        """
        held = HeldRecord.create(self.store, record, self.folder)
        self.add(held)
        return held

    def add(self, held: HeldRecord) -> None:
        """Know a record."""
        with self._lock:
            self._held[held.record.path] = held
            for line_id in held.record.lines:
                self._of_line[line_id] = held.record.path

    def forget(self, held: HeldRecord) -> None:
        """Forget a record that has gone."""
        path = held.record.path
        with self._lock:
            self._held.pop(path, None)
            self._ends.pop(path, None)
            for line_id in held.record.lines:
                if self._of_line.get(line_id) == path:
                    del self._of_line[line_id]

    def records(self) -> list[HeldRecord]:
        """Return all records."""
        with self._lock:
            return list(self._held.values())

    def of(self, shard: str, prefixes: Iterable[str]) -> list[HeldRecord]:
        """Return the records of a shard, and those of others that have lines of these requests."""
        ids = (f"{prefix}-{number}" for prefix in prefixes for number in range(_MOST_LINES))
        with self._lock:
            paths = {path for line_id in ids if (path := self._of_line.get(line_id)) is not None}
            every = self._held.items()
            return [h for path, h in every if path in paths or h.record.shard == shard]

    def of_line(self, line_id: str) -> HeldRecord | None:
        """Return the record of the batch that a line is in; None where it is in none."""
        with self._lock:
            path = self._of_line.get(line_id)
            return None if path is None else self._held.get(path)

    def ends(self, held: HeldRecord) -> Mapping[str, Any]:
        """Return what became of the lines of a batch that has ended, by id."""
        path = held.record.path
        with self._lock:
            found = self._ends.get(path)
        if found is None:
            found = held.load_ends()
            with self._lock:
                self._ends[path] = found
        return found

    def let_go(self, shard: str) -> None:
        """Have what became of a shard's lines in memory no longer."""
        with self._lock:
            for path in [path for path in self._ends if path.startswith(f"{shard}/")]:
                del self._ends[path]

    def begin(self, shard: str) -> None:
        """Take down that nothing is known yet of what a shard waits for."""
        with self._lock:
            self._awaited.pop(shard, None)
            self.unsent.pop(shard, None)

    def await_(self, shard: str, held: HeldRecord) -> None:
        """Take down that requests of a shard wait for a batch, be it another shard's."""
        with self._lock:
            self._awaited[shard].add(held.record.path)

    def awaited(self, shards: Collection[str] | None = None) -> list[HeldRecord | None]:
        """Return the records that shards wait for, all of them where None; None for one that has gone."""
        with self._lock:
            names = self._awaited if shards is None else shards
            paths = {path for name in names for path in self._awaited.get(name, ())}
            return [self._held.get(path) for path in sorted(paths)]
