"""Single flight: of two shards of a process that ask the same question, one sends it."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import Future

from flows.run.answers import Answer


class Withdrawn(Exception):
    """The shard that was to send the request did not come to it."""


class Flights:
    """The requests that the shards in work have sent or answered, by key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[str, Future[Answer]] = {}

    def board(self, request_key: str) -> Future[Answer] | None:
        """Return the other shard's answer to come; None where the caller is to send the request."""
        with self._lock:
            found = self._flights.get(request_key)
            if found is None:
                self._flights[request_key] = Future()
            return found

    def land(self, answer: Answer) -> None:
        """Hand a result to all who wait for it."""
        with self._lock:
            self._flights[answer.result.request_key].set_result(answer)

    def leave(self, request_keys: Iterable[str]) -> None:
        """Forget the requests of a shard that has ended; those without an answer are others' to send."""
        with self._lock:
            for key in request_keys:
                flight = self._flights.pop(key, None)
                if flight is not None and not flight.done():
                    flight.set_exception(Withdrawn())
