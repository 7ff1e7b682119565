"""Requests brought to their ends through a fake host's batch API, round by round, as a run does it."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.batch import AWAITING_BATCH, Budget, RetryRule, route_to, run
from engine.batch_api.desk import Desk, Keeping
from engine.endpoint import Endpoint, open_endpoint
from engine.profile import Profile
from engine.request import BatchTerms, Request, Result

SCHEMA = {
    "type": "object",
    "properties": {"topic": {"type": "string", "enum": ["a", "b", "c"]}},
    "required": ["topic"],
    "additionalProperties": False,
}
AT_ONCE = RetryRule(max_attempts=3, first_delay_s=0.0)
LIMITS = {"min_window": "12h", "max_window": "7d", "poll_s": 0.005, "list_lag_s": 0.01}
PRICES = {"input_usd": 1.0, "cached_input_usd": 0.1, "output_usd": 10.0, "batch_factor": 0.5}
SHARD = "s00000"
FOLDER = "_headrace/batches"


@dataclass(frozen=True, slots=True)
class Held:
    data: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class Item:
    path: str


class MemoryStore:
    """A sink in memory; what it holds outlasts a desk, as a sink outlasts a process."""

    def __init__(self) -> None:
        self.objects: dict[str, Held] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def list(self, prefix: str = "") -> Iterator[Item]:
        with self._lock:
            return iter([Item(path) for path in sorted(self.objects) if path.startswith(prefix)])

    def find(self, path: str) -> Held | None:
        return self.objects.get(path)

    def put(self, path: str, data: bytes) -> None:
        self._put(path, data)

    def put_if_absent(self, path: str, data: bytes) -> str | None:
        with self._lock:
            return None if path in self.objects else self._put(path, data)

    def put_if_match(self, path: str, data: bytes, etag: str) -> str | None:
        with self._lock:
            held = self.objects.get(path)
            return self._put(path, data) if held is not None and held.etag == etag else None

    def delete(self, path: str) -> None:
        self.objects.pop(path, None)

    def _put(self, path: str, data: bytes) -> str:
        etag = str(next(self._numbers))
        self.objects[path] = Held(data, etag)
        return etag


def request(number: int, *, again: str = "batch_api", **changes: object) -> Request:
    """Return one of any number of questions."""
    base = Request(
        request_key=f"{number:064x}"[::-1],
        stage="topic",
        mode="instant",
        instructions="Read.",
        material=f"[L1] line {number}\n",
        question="Which topic?",
        schema=SCHEMA,
        max_output_tokens=16,
        batch_api=BatchTerms(window="24h", again="at_once" if again == "at_once" else "batch_api"),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


@dataclass(kw_only=True)
class Rounds:
    """One process's work on one shard, until nothing waits any more."""

    url: str
    store: MemoryStore
    folder: Path
    limits: dict[str, object] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)
    run_id: str = "run-1"
    api_key: str | None = None
    num_rounds: int = 0

    def endpoint(self) -> Endpoint:
        profile = Profile.model_validate({
            "name": "host",
            "base_url": self.url,
            "model": "fake-model",
            "context_tokens": 8192,
            "prices": PRICES,
            "capabilities": {
                "structured_output": True,
                "stream": False,
                "batch_api": {**LIMITS, **self.limits},
            },
            "modes": {"instant": {}},
        })
        return open_endpoint(
            profile,
            venv=self.folder,
            cache=self.folder,
            environment={},
            api_key=self.api_key,
            notify=print,
        )

    def carry_out(
        self, requests: Sequence[Request], *, most: int = 12, shard: str = SHARD
    ) -> dict[str, Result]:
        """Return the results by key: of the last round, where some still wait after so many."""
        endpoint = self.endpoint()
        limits = endpoint.profile.capabilities.batch_api
        assert limits is not None
        keeping = Keeping(store=self.store, folder=FOLDER, scratch=self.folder / "scratch")
        done: dict[str, Result] = {}
        with Desk(
            endpoint, limits, keeping, self.budget, run_id=self.run_id, retry=AT_ONCE
        ) as desk:
            desk.begin([])
            for _ in range(most):
                self.num_rounds += 1
                left = [one for one in requests if one.request_key not in done]
                found = self._round(desk, endpoint, left, shard)
                waiting = {key for key, end in found.items() if end.outcome == "over_budget"}
                done |= {key: end for key, end in found.items() if key not in waiting}
                if not any(end.error_class == AWAITING_BATCH for end in found.values()):
                    break
                desk.wait([shard], until_s=None, is_cancelled=lambda: False, tell=lambda _: None)
        return found | done

    def _round(
        self, desk: Desk, endpoint: Endpoint, requests: Sequence[Request], shard: str
    ) -> dict[str, Result]:
        async def source() -> AsyncIterator[Request]:
            for one in requests:
                yield one

        async def collect(own: object) -> dict[str, Result]:
            batch = run(
                source(),
                route_to(endpoint),
                max_in_flight=8,
                retry=AT_ONCE,
                budget=self.budget,
                desk=desk.open(shard),
            )
            return {end.request_key: end async for end in batch}

        found = asyncio.run(collect(None))
        desk.submit(shard)
        open_keys: Collection[str] = [
            key for key, end in found.items() if end.outcome == "over_budget"
        ]
        desk.close(shard, open_keys)
        return found


def spent(results: dict[str, Result]) -> float:
    """Return what results cost together."""
    return sum(end.cost_usd or 0.0 for end in results.values())
