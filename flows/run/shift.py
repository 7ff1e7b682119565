"""How many shards are in work at the same time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

SHARDS_AHEAD = 1
"""Shards that are open beside them: the next is read while these are asked about, or shards that are
alike would all be read at one time, and the engine would idle meanwhile."""


class Shift:
    """Lets a number of shards in at a time, and counts them, so that a closing bench can wait."""

    def __init__(self, asked: int, ahead: int = SHARDS_AHEAD) -> None:
        self._places = threading.Semaphore(asked + ahead)
        self._num_asked = asked
        self.num_expected = asked
        """Shards asked about at the same time, fewer than there are places where no more are left."""
        self._count = 0
        self._changed = threading.Condition()

    def expect(self, number: int) -> None:
        """Say that there are no more than so many shards, or stages, from now on."""
        self.num_expected = max(1, min(self._num_asked, number))

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Wait for a place, and hold it while the block runs."""
        with self._places:
            with self._changed:
                self._count += 1
            try:
                yield
            finally:
                with self._changed:
                    self._count -= 1
                    self._changed.notify_all()

    def wait(self, limit_s: float) -> None:
        """Wait until none is in work, at most `limit_s` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._count == 0, limit_s)
