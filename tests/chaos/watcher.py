"""Reads a sink's tables all the time, as a user's query does, and notes what no reader may see."""

from __future__ import annotations

import threading
import traceback
from collections import Counter
from typing import Any, Self
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

_PAUSE_S = 0.1
TABLES = {
    "documents": ("path",),
    "chunks": ("path", "ordinal"),
    "records": ("row_key",),
    "partial": ("row_key",),
}
"""Columns that tell the rows of each table apart."""


class Watcher:
    """A thread that lists and reads every part, over and over, while a context lasts.

    Lasting faults are in `seen`: a row twice, a part that stays unreadable, a file that is no part.
    """

    def __init__(self, sink: str, endpoint: dict[str, str] | None = None) -> None:
        """Watch `sink`; `endpoint` is the environment of a bucket's client, None for a folder."""
        self.seen: list[str] = []
        self.num_rounds = 0
        self.most_rows = 0
        self._root = sink.removeprefix("s3://").rstrip("/")
        self._files = pafs.LocalFileSystem() if endpoint is None else _bucket(endpoint)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()

    def _watch(self) -> None:
        while not self._stop.wait(_PAUSE_S):
            try:
                self.look()
            except BaseException:
                # A watcher that has ended sees nothing, so this is a failure too.
                self.seen.append(traceback.format_exc())
                raise

    def look(self) -> None:
        """Read everything once."""
        rows = sum(self._look_at(table) for table in TABLES)
        self.most_rows = max(self.most_rows, rows)
        self.num_rounds += 1

    def _look_at(self, table: str) -> int:
        columns = list(TABLES[table])
        counts: Counter[tuple[Any, ...]] = Counter()
        for path in self._list(table):
            if not path.endswith(".parquet"):
                self.seen.append(f"{path}: lies among the parts and is none")
                continue
            found = self._read(path, columns)
            if found is not None:
                # A row key is of one stage, and each stage is a table.
                rows = zip(*(found[column].to_pylist() for column in columns), strict=True)
                counts.update((path.rsplit("/", 1)[0], *row) for row in rows)
        doubled = [row for row, count in counts.items() if count > 1]
        self.seen += [f"{table}: {row} stands {counts[row]} times" for row in doubled[:3]]
        return counts.total()

    def _list(self, table: str) -> list[str]:
        chosen = pafs.FileSelector(f"{self._root}/{table}", recursive=True, allow_not_found=True)
        try:
            found = self._files.get_file_info(chosen)
        except FileNotFoundError:
            # A folder that came or went during the walk.
            return []
        return sorted(info.path for info in found if info.type == pafs.FileType.File)

    def _read(self, path: str, columns: list[str]) -> pa.Table | None:
        """Return a part's columns; a part replaced under the reader is read once more."""
        for last in (False, True):
            try:
                return pq.read_table(path, columns=columns, filesystem=self._files)
            except FileNotFoundError:
                return None
            except (OSError, pa.ArrowException) as exc:
                if last:
                    self.seen.append(f"{path}: cannot be read: {exc}")
        return None


def _bucket(endpoint: dict[str, str]) -> pafs.S3FileSystem:
    address = urlsplit(endpoint["AWS_ENDPOINT_URL"])
    return pafs.S3FileSystem(
        access_key=endpoint["AWS_ACCESS_KEY_ID"],
        secret_key=endpoint["AWS_SECRET_ACCESS_KEY"],
        region=endpoint["AWS_REGION"],
        scheme=address.scheme,
        endpoint_override=address.netloc,
    )
