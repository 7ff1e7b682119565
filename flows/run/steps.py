"""What a shard's agents have done so far: in its journal while it is in work.

With the commit it is kept for requests that have no answer yet.

A model turn that is on record is not paid for again, a call that has returned is not made again, on whichever
machine the request is taken up.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from connectors.sinks.lake import Lake
from connectors.storage import STATE_PREFIX
from engine.batch import Amount
from engine.request import Request
from engine.steps import Event, Paid, StepLog, from_json, to_json

_STEPS = f"{STATE_PREFIX}/steps"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One event, and whose it is."""

    key: str
    request_key: str
    stage: str
    event: Event

    def as_json(self) -> dict[str, Any]:
        """Return what `step_from_json` makes it of."""
        return {
            "key": self.key,
            "request": self.request_key,
            "stage": self.stage,
            "event": to_json(self.event),
        }

    @property
    def amount(self) -> Amount:
        """Return what it took of the budget."""
        event = self.event
        if not isinstance(event, Paid):
            return Amount()
        return Amount.paid(event.usage, event.cost_usd, event.gpu_seconds)


def step_from_json(value: Mapping[str, Any]) -> Step:
    """Return the step that `as_json` wrote."""
    return Step(
        key=value["key"],
        request_key=value["request"],
        stage=value["stage"],
        event=from_json(value["event"]),
    )


class Steps:  # noqa: PLR0904 - all that is known of a shard's agents
    """The events of one shard's requests."""

    def __init__(self, write: Callable[[Step], None]) -> None:
        """Begin with none.

        Args:
            write: Puts a step into the shard's journal; on this machine's disk when it returns.
        """
        self._write = write
        self._by_key: dict[str, list[Event]] = defaultdict(list)
        self._by_request: dict[str, list[Step]] = defaultdict(list)
        self._billed: set[int] = set()
        """Identities of events; they are kept as long as this."""
        self._earlier: set[int] = set()
        """Of those of earlier runs."""

    def restore(self, step: Step, *, is_billed: bool = False, is_earlier: bool = False) -> None:
        """Take what is on record.

        Args:
            step: An event.
            is_billed: Whether what it took is in a bill already.
            is_earlier: Whether it is of an earlier run.
        """
        self._by_key[step.key].append(step.event)
        self._by_request[step.request_key].append(step)
        if is_billed:
            self._billed.add(id(step.event))
        if is_earlier:
            self._earlier.add(id(step.event))

    def bill(self, request_key: str) -> None:
        """Take down that a result on record has in its sum what the request has taken so far."""
        self._billed |= {id(step.event) for step in self._by_request.get(request_key, ())}

    def paid(self, request_key: str) -> Sequence[Paid]:
        """Return what a request has paid for so far, but for what is in a bill already."""
        events = (step.event for step in self._by_request.get(request_key, ()))
        return [
            event for event in events if isinstance(event, Paid) and id(event) not in self._billed
        ]

    def forget(self, request_key: str) -> None:
        """Forget what came to an end that does not stand: the request begins anew."""
        self._drop(self._by_request.pop(request_key, []))

    def begin_anew(self, request_key: str) -> None:
        """Forget what earlier runs have done for a request that is asked afresh in this one."""
        steps = self._by_request.get(request_key, [])
        gone = [step for step in steps if id(step.event) in self._earlier]
        if gone:
            self._by_request[request_key] = [
                step for step in steps if id(step.event) not in self._earlier
            ]
            self._drop(gone)

    def _drop(self, gone: Sequence[Step]) -> None:
        identities = {id(step.event) for step in gone}
        # An event to come may be given the identity of one that is gone.
        self._billed -= identities
        self._earlier -= identities
        for key in {step.key for step in gone}:
            kept = [event for event in self._by_key[key] if id(event) not in identities]
            self._by_key[key] = kept

    def of(self, request: Request) -> StepLog:
        """Return the log of one request; what is under one key is the same for all."""
        return _Log(self, request)

    def events(self, key: str) -> Sequence[Event]:
        """Return what is on record under a key, oldest first."""
        return list(self._by_key.get(key, ()))

    def add(self, step: Step) -> None:
        """Put an event on record."""
        self._write(step)
        self.restore(step)

    def request_keys(self) -> Collection[str]:
        """Return the keys of the requests that have any."""
        return self._by_request.keys()

    def by_request(self) -> Mapping[str, Mapping[str, Sequence[Event]]]:
        """Return all events, by request and then by key."""
        found: dict[str, dict[str, list[Event]]] = defaultdict(lambda: defaultdict(list))
        for request_key, steps in self._by_request.items():
            for step in steps:
                found[request_key][step.key].append(step.event)
        return found

    def keep(self, lake: Lake, shard: str, run_id: str, unanswered: Collection[str]) -> None:
        """Keep in the sink what requests without an answer have done in a run; remove what else was kept.

        Raises:
            StorageError: The sink cannot be written.
        """
        kept = [
            step
            for request_key, steps in self._by_request.items()
            if request_key in unanswered
            for step in steps
        ]
        path = f"{_STEPS}/{shard}.jsonl"
        if kept:
            lines = (json.dumps({"run": run_id, **step.as_json()}) + "\n" for step in kept)
            lake.storage.put(path, "".join(lines).encode())
        elif lake.storage.find(path) is not None:
            lake.storage.delete(path)


def load_steps(lake: Lake, shard: str) -> list[tuple[str, Step]]:
    """Return what was kept of requests that had no answer at the last commit, and the run of that commit.

    The run is empty where it was not written down.
    """
    held = lake.storage.find(f"{_STEPS}/{shard}.jsonl")
    lines = (held.data if held else b"").decode().splitlines()
    values = [json.loads(line) for line in lines]
    return [(value.get("run", ""), step_from_json(value)) for value in values]


class _Log:
    """The log of one request's agent."""

    def __init__(self, steps: Steps, request: Request) -> None:
        self._steps, self._request = steps, request

    def events(self, key: str) -> Sequence[Event]:
        return self._steps.events(key)

    def paid(self) -> Sequence[Paid]:
        return self._steps.paid(self._request.request_key)

    async def add(self, key: str, event: Event) -> None:
        # One line to a local file, as for results: a thread would cost more than it.
        self._steps.add(
            Step(
                key=key,
                request_key=self._request.request_key,
                stage=self._request.stage,
                event=event,
            )
        )
