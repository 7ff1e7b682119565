"""Lines that outlast the process that wrote them: a shard's journal.

Each line goes to a file of this machine at once, where it survives the process, and with the next
flush to the disk and to the sink, where it survives the machine.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from connectors.errors import DiskFull, StorageError, is_full
from connectors.storage import Storage


class Journal:
    """Lines of one shard, earlier attempts' included; several threads may add to it.

    Each attempt writes segments of its own, numbered behind those that are there.
    """

    def __init__(self, storage: Storage, prefix: str, file: Path) -> None:
        """Look which segments there are; nothing is written yet.

        Args:
            storage: The sink.
            prefix: Folder of the segments in it.
            file: This machine's copy.
        """
        self._storage, self._prefix, self._file = storage, prefix, file
        self._segments = sorted(item.path for item in storage.list(prefix))
        epochs = [int(Path(path).stem.partition("-")[0]) for path in self._segments]
        self._epoch = max(epochs, default=0) + 1
        self._number = 0
        self._pending: list[str] = []
        self._adding, self._flushing = threading.Lock(), threading.Lock()
        self._opened: int | None = None

    def lines(self) -> Iterator[str]:
        """Yield what earlier attempts wrote, oldest first, each line once.

        What only this machine has comes last. A line that the end of a process or a full disk has cut
        is left out.
        """
        yield from dict.fromkeys(self._written())

    def _written(self) -> Iterator[str]:
        for path in self._segments:
            yield from self._storage.get(path).decode().splitlines()
        with self._errors():
            text = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
        whole, _, _ = text.rpartition("\n")
        yield from whole.splitlines()

    def add(self, lines: Sequence[str]) -> int:
        """Write lines to this machine's file, and return how many the sink does not have yet."""
        data = "".join(f"{line}\n" for line in lines).encode()
        with self._adding, self._errors():
            if self._opened is None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._opened = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
                self._end_cut_line()
            written = os.write(self._opened, data)
            if written != len(data):
                # The disk is full: writing the rest says so.
                os.write(self._opened, data[written:])
            self._pending += lines
            return len(self._pending)

    def _end_cut_line(self) -> None:
        """Drop a line that was cut, so that the next one begins on its own."""
        assert self._opened is not None
        size = os.fstat(self._opened).st_size
        if size and os.pread(self._opened, 1, size - 1) != b"\n":
            os.ftruncate(self._opened, os.pread(self._opened, size, 0).rfind(b"\n") + 1)

    def flush(self) -> None:
        """Bring all lines so far to the disk and to the sink.

        Raises:
            StorageError: One of the two cannot be written; the next flush tries these lines again.
        """
        with self._flushing:
            with self._adding:
                lines, self._pending = self._pending, []
            if not lines:
                return
            try:
                with self._errors():
                    assert self._opened is not None
                    os.fsync(self._opened)
                self._put(("\n".join(lines) + "\n").encode())
            except BaseException:
                with self._adding:
                    self._pending = lines + self._pending
                raise

    def _put(self, data: bytes) -> None:
        """Put the next segment; a number that somebody else has taken is passed over."""
        while True:
            self._number += 1
            path = f"{self._prefix}/{self._epoch:06d}-{self._number:06d}.jsonl"
            if self._storage.put_if_absent(path, data) is not None:
                self._segments.append(path)
                return

    def close(self) -> None:
        """Let go of this machine's file."""
        if self._opened is not None:
            os.close(self._opened)
            self._opened = None

    def remove(self) -> None:
        """Remove the journal: what it says is kept elsewhere."""
        self.close()
        for path in self._segments:
            self._storage.delete(path)
        with self._errors():
            self._file.unlink(missing_ok=True)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise (DiskFull if is_full(exc) else StorageError)(
                f"journal {str(self._file)!r}: {exc.strerror}; free space there, or set"
                " HEADRACE_STATE to a folder on another disk",
                uri=self._file.as_uri(),
            ) from exc
