"""What a shard has asked and got: each request is answered, never sent, or sent with an unknown end.

The journal has it while the shard is in work; with the commit the results move to the sink's answers,
where every later run finds them. Both are by `request_key`, so an answer is paid for once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from config.load import load_surroundings
from connectors.errors import StorageError
from connectors.sinks.journal import Journal
from connectors.sinks.lake import Lake
from connectors.storage import STATE_PREFIX
from engine.batch import WINDOW, Amount
from engine.request import Outcome, Result, Usage
from flows.run.claims import Claim
from flows.run.job import Start

logger = logging.getLogger(__name__)

FLUSH_S = 1.0
"""Most seconds until a result is in the sink; `WINDOW` results are flushed sooner."""

JOURNAL = f"{STATE_PREFIX}/journal"

STANDS: Mapping[Start, frozenset[Outcome]] = {
    "new": frozenset({"succeeded", "invalid_output", "rejected"}),
    "resume": frozenset({"succeeded", "invalid_output", "rejected", "failed"}),
    "retry": frozenset({"succeeded"}),
}
"""Outcomes that stand, by how the run starts; requests with another one are sent again. An endpoint
that did not answer may do so in the next run, so that `failed` stands in the same run only."""


def open_journal(lake: Lake, shard: str) -> Journal:
    """Return a shard's journal, in the sink and on this machine."""
    name = hashlib.sha256(lake.url.encode()).hexdigest()[:16]
    file = load_surroundings().state / "journal" / name / f"{shard}.jsonl"
    return Journal(lake.storage, f"{JOURNAL}/{shard}", file)


class Ledger:  # noqa: PLR0904 - all that is known of one shard's requests
    """One shard's requests and results; the engine's log."""

    def __init__(self, lake: Lake, run_id: str, start: Start, claim: Claim) -> None:
        """Read what earlier attempts and runs know of the shard."""
        shard = claim.shard
        self._lake, self._shard = lake, shard
        self._by = {"run": run_id, "claim": claim.holder.token}
        self._stands = STANDS[start]
        self._journal = open_journal(lake, shard)
        self._kept = load_answers(lake, shard)
        self._results: dict[str, Result] = {}
        self._this_attempt: dict[str, Result] = {}
        self._sent: set[str] = set()
        self._paid: list[tuple[str, Result]] = []
        """By claim."""
        self.num_sent_again = 0
        """Requests that earlier attempts sent without learning their end, and this one sent again."""
        for _, result in self._kept:
            self._take(result)
        self._read_journal()
        self._flushing = asyncio.Lock()
        self._full = asyncio.Event()

    def _read_journal(self) -> None:
        for line in self._journal.lines():
            value = json.loads(line)
            self._sent |= set(value.get("sent", ()))
            if "result" not in value:
                continue
            result = result_from_json(value["result"])
            self._sent.discard(result.request_key)
            self._take(result)
            if value["run"] == self._by["run"]:
                self._paid.append((value["claim"], result))

    def _take(self, result: Result) -> None:
        if result.outcome in self._stands:
            self._results[result.request_key] = result
        else:
            self._results.pop(result.request_key, None)

    def find(self, request_key: str) -> Result | None:
        """Return the request's result, if there is one that stands or is of this attempt."""
        return self._this_attempt.get(request_key) or self._results.get(request_key)

    async def intend(self, request_keys: Sequence[str]) -> None:
        """Return when it is on record that these requests are about to be sent."""
        self.num_sent_again += len(self._sent & set(request_keys))
        await asyncio.to_thread(self._journal.add, [json.dumps({"sent": list(request_keys)})])
        await self.flush()

    def note(self, result: Result) -> None:
        """Take a result down; it is in this machine's file at once, and in the sink soon after."""
        self._this_attempt[result.request_key] = result
        self._paid.append((self._by["claim"], result))
        line = json.dumps({**self._by, "result": asdict(result)}, default=dict)
        if self._journal.add([line]) >= WINDOW:
            self._full.set()

    def take_over(self, result: Result) -> None:
        """Take a result that another shard has just been given."""
        self._this_attempt[result.request_key] = result

    def keep(self, result: Result) -> None:
        """Take a result that another shard has paid for, if it stands."""
        if result.outcome in self._stands:
            self._results.setdefault(result.request_key, result)

    async def flush(self) -> None:
        """Bring what was taken down so far to the sink."""
        async with self._flushing:
            self._full.clear()
            await asyncio.to_thread(self._journal.flush)

    async def keep_flushing(self) -> None:
        """Flush by number of results and by time, until cancelled."""
        while True:
            # Not wait_for: in Python 3.11 it loses a cancellation that comes as the wait ends, and
            # the shard would wait for this task for ever.
            with suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_S):
                    await self._full.wait()
            await self.flush()

    def save(self) -> None:
        """Flush once more; what cannot reach the sink is left in this machine's file."""
        try:
            self._journal.flush()
        except StorageError as exc:
            logger.warning("shard=%s: answers stay on this machine for now: %s", self._shard, exc)
        self._journal.close()

    def commit(self, answered: Mapping[str, Sequence[Result]]) -> None:
        """Put the results that the shard's rows rest on into the sink's answers.

        Earlier results about a document stay, so that a prompt that comes back costs nothing; those
        about documents that are gone leave.

        Args:
            answered: Results by the key of their document.
        """
        kept = {
            result.request_key: (document_key, result)
            for document_key, result in self._kept
            if document_key in answered
        }
        for document_key, results in answered.items():
            kept |= {result.request_key: (document_key, result) for result in results}
        if list(kept.values()) != self._kept:
            lines = [
                json.dumps({"document_key": key, "result": asdict(result)}, default=dict) + "\n"
                for key, result in kept.values()
            ]
            self._lake.storage.put(answers_path(self._shard), "".join(lines).encode())

    def claims(self) -> set[str]:
        """Return the claims under which this run has paid for the shard and not committed it."""
        return {self._by["claim"], *(claim for claim, _ in self._paid)}

    def paid(self, counted: Collection[str]) -> dict[str, Amount]:
        """Return what this run has paid under its claims, by stage, but for those counted already."""
        return _spent(result for claim, result in self._paid if claim not in counted)

    def remove_journal(self) -> None:
        """Remove the journal, after the commit."""
        self._journal.remove()


def answers_path(shard: str) -> str:
    """Return where the results lie that a shard's rows rest on."""
    return f"{STATE_PREFIX}/answers/{shard}.jsonl"


def load_answers(lake: Lake, shard: str) -> list[tuple[str, Result]]:
    """Return the results that a shard's rows rest on, each with the key of its document."""
    held = lake.storage.find(answers_path(shard))
    values = [json.loads(line) for line in (held.data if held else b"").decode().splitlines()]
    return [(value["document_key"], result_from_json(value["result"])) for value in values]


def _spent(results: Iterable[Result]) -> dict[str, Amount]:
    """Return what results took of the budget, by stage."""
    total: dict[str, Amount] = {}
    for result in results:
        usage = result.usage
        amount = Amount(
            tokens=usage.prompt_tokens + usage.completion_tokens,
            usd=result.cost_usd or 0.0,
            gpu_seconds=result.gpu_seconds or 0.0,
        )
        total[result.stage] = total.get(result.stage, Amount()) + amount
    return total


def journal_spent(
    lake: Lake, shard: str, run_id: str, counted: Collection[str]
) -> dict[str, Amount]:
    """Return what a run has paid for a shard, by stage, by its journal, but for the claims counted."""
    values = map(json.loads, open_journal(lake, shard).lines())
    return _spent(
        result_from_json(value["result"])
        for value in values
        if value.get("run") == run_id and value["claim"] not in counted
    )


def journaled(lake: Lake) -> set[str]:
    """Return the shards that have a journal: their last commit is not there or not finished."""
    return {item.path.split("/")[2] for item in lake.storage.list(JOURNAL)}


def result_from_json(value: dict[str, Any]) -> Result:
    """Return the result that `asdict` wrote."""
    fields = {**value, "usage": Usage(**value["usage"]), "mode_notes": tuple(value["mode_notes"])}
    return Result(**fields)
