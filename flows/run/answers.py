"""A shard's answers as the engine gave them, kept so that no finished request is sent again.

Put into the run's folder when a shard ends, for whatever reason; a resumed or retried run replays them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from connectors.sinks.lake import Lake
from engine.request import Outcome, Result, Usage
from flows.run.job import Start

FINAL: dict[Start, frozenset[Outcome]] = {
    "new": frozenset(),
    "resume": frozenset({"succeeded", "invalid_output", "rejected", "failed"}),
    "retry": frozenset({"succeeded"}),
}
"""Outcomes that stand, by how the run starts; requests with another one are sent again."""


class Answers:
    """The results of one shard, earlier attempts of the run included."""

    def __init__(self, lake: Lake, run_id: str, shard: str) -> None:
        self._lake = lake
        self._path = f"runs/{run_id}/answers/{shard}.jsonl"
        self._results: dict[str, Result] = {}
        self._changed = False

    def load(self, start: Start) -> None:
        """Read what earlier attempts answered for good."""
        data = None if start == "new" else self._lake.storage.find(self._path)
        for line in (data or b"").decode().splitlines():
            result = _from_json(json.loads(line))
            if result.outcome in FINAL[start]:
                self._results[result.request_key] = result

    def find(self, request_key: str) -> Result | None:
        """Return the request's result, if there is one."""
        return self._results.get(request_key)

    def add(self, result: Result) -> None:
        """Keep a result."""
        self._results[result.request_key] = result
        self._changed = True

    def save(self) -> None:
        """Put all results into the run's folder, if there are new ones."""
        if not self._changed:
            return
        lines = (json.dumps(asdict(result), default=dict) for result in self._results.values())
        self._lake.storage.put(self._path, ("\n".join(lines) + "\n").encode())
        self._changed = False

    def results(self) -> Iterable[Result]:
        """Return all results."""
        return self._results.values()


def _from_json(value: dict[str, Any]) -> Result:
    return Result(**{**value, "usage": Usage(**value["usage"])})
