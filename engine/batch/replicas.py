"""Which of several servers of one model a request goes to: the one that holds its prefix.

A prefix cache belongs to one server, so requests that share a prefix stay together, and the same prefix
comes to the same server in every run and process: by rendezvous hashing, which moves few prefixes
when a server is added. A server that has much more to do than the others is passed over. Shared by all
shards of a process; so it is guarded by a lock.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

MOST_REMEMBERED = 4096
"""Prefixes whose server is remembered: more than are in work at once. A forgotten one is placed anew."""
_OVERLOAD = 1.25
"""A server is passed over while it has so many times its share of the requests; as in consistent hashing
with bounded loads (arXiv 1608.01350), where a quarter more costs little balance and few moves."""


class Replicas:
    """The servers of one model, by their addresses."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self._lock = threading.Lock()
        self._chosen: OrderedDict[str, int] = OrderedDict()
        self._loads = [0] * len(addresses)

    def __len__(self) -> int:
        """Return how many servers there are."""
        return len(self._addresses)

    @contextmanager
    def place(self, prefix: str) -> Iterator[Sequence[int]]:
        """Yield the numbers of the servers in the order in which they are tried, for one request.

        Args:
            prefix: What requests that share a prefix have in common; empty: they share nothing.
        """
        order = self._order(prefix)
        with self._lock:
            first = self._chosen.get(prefix) if prefix else None
            if first is None:
                first = self._choose(order)
            if prefix:
                self._chosen[prefix] = first
                self._chosen.move_to_end(prefix)
                if len(self._chosen) > MOST_REMEMBERED:
                    self._chosen.popitem(last=False)
            self._loads[first] += 1
        try:
            yield [first, *(number for number in order if number != first)]
        finally:
            with self._lock:
                self._loads[first] -= 1

    def _choose(self, order: Sequence[int]) -> int:
        most = _OVERLOAD * (sum(self._loads) + 1) / len(self._loads)
        return next(
            (number for number in order if self._loads[number] + 1 <= max(1, most)),
            min(order, key=self._loads.__getitem__),
        )

    def _order(self, prefix: str) -> list[int]:
        """Return the servers by how well the prefix hashes with their address."""
        if len(self._addresses) == 1:
            return [0]
        ranks = [
            hashlib.blake2b(f"{address}\0{prefix}".encode(), digest_size=8).digest()
            for address in self._addresses
        ]
        return sorted(range(len(ranks)), key=ranks.__getitem__, reverse=True)
