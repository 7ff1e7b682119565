"""What a shard has asked and got: each request is answered, never sent, or sent with an unknown end.

The journal has it while the shard is in work; with the commit the results move to the sink's answers,
where every later run finds them. Both are by `request_key`, so an answer is paid for once.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import logging
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from config.load import load_surroundings
from connectors.errors import StorageError
from connectors.sinks.journal import Journal
from connectors.sinks.lake import Lake
from connectors.storage import STATE_PREFIX
from engine.batch import WINDOW, Amount
from engine.request import Outcome, Result
from flows.run.answers import LINES, Answer, as_line, from_json, result_as_json, result_from_json
from flows.run.claims import Claim
from flows.run.counts import add_amounts
from flows.run.job import Start
from flows.run.steps import Step, Steps, load_steps, step_from_json

logger = logging.getLogger(__name__)

FLUSH_S = 1.0
"""Most seconds until a result is in the sink; `WINDOW` results are flushed sooner."""

JOURNAL = f"{STATE_PREFIX}/journal"
ANSWERS = f"{STATE_PREFIX}/answers"

STANDS: Mapping[Start, frozenset[Outcome]] = {
    "new": frozenset({"succeeded", "invalid_output", "rejected"}),
    "resume": frozenset({"succeeded", "invalid_output", "rejected", "failed"}),
    "retry": frozenset({"succeeded"}),
}
"""Outcomes that stand, by how the run starts; requests with another one are sent again. An endpoint
that did not answer may do so in the next run, so that `failed` stands in the same run only."""


ENDED: frozenset[Outcome] = frozenset({"invalid_output", "rejected"})
"""Outcomes after which an agent has nothing to go on with."""
_REFUSED = "request_rejected"
"""A host refuses what an agent's conversation has become: the same one would be refused again."""


_OPEN: frozenset[Outcome] = frozenset({"failed", "over_budget"})


def open_journal(lake: Lake, shard: str) -> Journal:
    """Return a shard's journal, in the sink and on this machine."""
    name = hashlib.sha256(lake.url.encode()).hexdigest()[:16]
    file = load_surroundings().state / "journal" / name / f"{shard}.jsonl"
    return Journal(lake.storage, f"{JOURNAL}/{shard}", file)


class Ledger:  # noqa: PLR0904 - all that is known of one shard's requests
    """One shard's requests and results; the engine's log."""

    def __init__(
        self, lake: Lake, run_id: str, start: Start, claim: Claim, *, has_agents: bool
    ) -> None:
        """Read what earlier attempts and runs know of the shard.

        Args:
            lake: The run's sink.
            run_id: Of the run.
            start: How the run starts.
            claim: On the shard.
            has_agents: Whether the pipeline has agents, of which steps may be kept.
        """
        self._lake, self._shard = lake, claim.shard
        self._by = {"run": run_id, "claim": claim.holder.token}
        self._stands = STANDS[start]
        self._journal = open_journal(lake, claim.shard)
        self.steps = Steps(self._write_step)
        """What agents have done for the shard's requests."""
        kept = load_steps(lake, claim.shard) if has_agents else []
        for run, step in kept:
            self.steps.restore(step, is_billed=True, is_earlier=run != run_id)
        kept_steps = [step for _, step in kept]
        self._kept = load_answers(lake, claim.shard)
        self._results: dict[str, Answer] = {}
        self._this_attempt: dict[str, Answer] = {}
        self._of_cache: set[str] = set()
        self._sent: set[str] = set()
        self._paid = _Paid()
        self.num_sent_again = 0
        """Requests that earlier attempts sent without learning their end, and this one sent again."""
        for answer in self._kept:
            self._take(answer)
        self._read_journal(frozenset(kept_steps))
        self._flushing = asyncio.Lock()
        self._full = asyncio.Event()

    def _read_journal(self, kept_steps: Collection[Step]) -> None:
        for line in self._journal.lines():
            value = json.loads(line)
            is_own = value.get("run") == self._by["run"]
            self._sent |= set(value.get("sent", ()))
            if "step" in value:
                step = step_from_json(value["step"])
                # A commit that did not get as far as removing the journal has kept it already.
                if step not in kept_steps:
                    self.steps.restore(step, is_billed=not is_own, is_earlier=not is_own)
                if is_own:
                    self._paid.take_step(value["claim"], step)
            if "result" not in value:
                continue
            result = result_from_json(value["result"])
            self._sent.discard(result.request_key)
            self.steps.bill(result.request_key)
            self._take(self._answer(result, value["run"]))
            if is_own:
                self._paid.take_result(value["claim"], result)

    def _write_step(self, step: Step) -> None:
        line = json.dumps({**self._by, "step": step.as_json()}, default=dict)
        if self._journal.add([line]) >= WINDOW:
            self._full.set()
        self._paid.take_step(self._by["claim"], step)

    def _answer(self, result: Result, run: str) -> Answer:
        """Return a result that was paid for under this shard's claim."""
        return Answer(document_key="", run=run, shard=self._shard, result=result)

    def _take(self, answer: Answer) -> None:
        key = answer.result.request_key
        if self._does_stand(answer):
            self._results[key] = answer
        else:
            self._results.pop(key, None)
            if answer.result.outcome in ENDED or answer.result.error_class == _REFUSED:
                self.steps.forget(key)

    def _does_stand(self, answer: Answer) -> bool:
        outcome = answer.result.outcome
        return outcome in self._stands and (outcome != "failed" or answer.run == self._by["run"])

    def find(self, request_key: str, *, fresh: bool = False) -> Result | None:
        """Return the request's result, if there is one that stands or is of this attempt.

        Args:
            request_key: Of the request.
            fresh: Whether answers of earlier runs do not count.
        """
        found = self._find(request_key)
        if found is None or (fresh and found.run != self._by["run"]):
            return None
        return found.result

    def _find(self, request_key: str) -> Answer | None:
        return self._this_attempt.get(request_key) or self._results.get(request_key)

    def answer(self, request_key: str) -> Answer:
        """Return a request's result, which there is, with who has paid for it."""
        found = self._find(request_key)
        assert found is not None
        return found

    def has_paid(self, request_key: str) -> bool:
        """Tell whether this run has paid for the request, under this shard's claims."""
        found = self._find(request_key)
        return found is not None and (found.run, found.shard) == (self._by["run"], self._shard)

    def is_cached(self, request_key: str) -> bool:
        """Tell whether the request's result comes from the cache."""
        return request_key in self._of_cache

    async def intend(self, request_keys: Sequence[str]) -> None:
        """Return when it is on record that these requests are about to be sent."""
        self.num_sent_again += len(self._sent & set(request_keys))
        await self.flush([json.dumps({"sent": list(request_keys)})])

    def note(self, result: Result) -> None:
        """Take a result down; it is in this machine's file at once, and in the sink soon after."""
        self._this_attempt[result.request_key] = self._answer(result, self._by["run"])
        self._paid.take_result(self._by["claim"], result)
        line = LINES.encode({**self._by, "result": result_as_json(result)})
        if self._journal.add([line]) >= WINDOW:
            self._full.set()

    def take_over(self, answer: Answer) -> None:
        """Take a result that another shard has just been given."""
        self._this_attempt[answer.result.request_key] = answer

    def keep(self, answer: Answer) -> None:
        """Take a result that another shard has paid for, if it stands."""
        key, run = answer.result.request_key, self._by["run"]
        held = self._results.get(key)
        if self._does_stand(answer) and (held is None or held.run != run == answer.run):
            self._results[key] = answer

    def replay(self, answer: Answer) -> Result | None:
        """Take a result that the cache has, and return it if it stands."""
        key = answer.result.request_key
        if not self._does_stand(answer):
            return None
        self._this_attempt[key] = replace(answer, shard="")
        self._of_cache.add(key)
        return answer.result

    async def flush(self, lines: Sequence[str] = ()) -> None:
        """Bring what was taken down so far to the sink, and these lines with it."""

        def write() -> None:
            if lines:
                self._journal.add(lines)
            self._journal.flush()

        async with self._flushing:
            self._full.clear()
            await asyncio.to_thread(write)

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

    def commit(
        self, answered: Mapping[str, Sequence[Result]], awaited_keys: Collection[str]
    ) -> None:
        """Put the results that the shard's rows rest on into the sink's answers.

        Earlier results about a document stay, so that a prompt that comes back costs nothing; those
        about documents that are gone leave.

        Args:
            answered: Results by the key of their document.
            awaited_keys: Requests on which a person has yet to decide. What was answered to them before and did
                not stand leaves: it must not stand once they may be asked.
        """
        leaves = {key for key in awaited_keys if self._find(key) is None}
        kept = {
            _place(answer): answer
            for answer in self._kept
            if answer.document_key in answered and answer.result.request_key not in leaves
        }
        kept |= {_place(answer): answer for answer in self._answers(answered)}
        if list(kept.values()) != self._kept:
            data = "".join(map(as_line, kept.values())).encode()
            self._lake.storage.put(answers_path(self._shard), data)

    def keep_steps(self, withheld_keys: Collection[str]) -> None:
        """Keep what agents have done whose requests have no answer yet: a later run goes on from there.

        What was begun for requests that nobody asks any more, such as those of an edited prompt, is dropped.

        Args:
            withheld_keys: Requests that this run has not asked, since a person has not agreed to them.
        """
        found = {key: self._find(key) for key in self.steps.request_keys()}
        going_on = {
            key
            for key, end in found.items()
            if key in withheld_keys
            or (
                end is not None
                and end.result.outcome in _OPEN
                and end.result.error_class != _REFUSED
            )
        }
        self.steps.keep(self._lake, self._shard, self._by["run"], going_on)

    def new_answers(self, answered: Mapping[str, Sequence[Result]]) -> list[Answer]:
        """Return those of the results that the sink's answers do not have yet."""
        kept = {_place(answer): answer.result for answer in self._kept}
        every = self._answers(answered)
        return [answer for answer in every if kept.get(_place(answer)) != answer.result]

    def _answers(self, answered: Mapping[str, Sequence[Result]]) -> list[Answer]:
        return [
            replace(self.answer(result.request_key), document_key=key, result=result)
            for key, results in answered.items()
            for result in results
        ]

    def claims(self) -> set[str]:
        """Return the claims under which this run has paid for the shard and not committed it."""
        return {self._by["claim"], *self._paid.claims}

    def paid(self, counted: Collection[str]) -> dict[str, Amount]:
        """Return what this run has paid under its claims, by stage, but for those counted already."""
        return self._paid.but_for(counted)

    def remove_journal(self) -> None:
        """Remove the journal, after the commit."""
        self._journal.remove()


def answers_path(shard: str) -> str:
    """Return where the results lie that a shard's rows rest on."""
    return f"{ANSWERS}/{shard}.jsonl"


def load_answers(lake: Lake, shard: str) -> list[Answer]:
    """Return the results that a shard's rows rest on."""
    held = lake.storage.find(answers_path(shard))
    lines = (held.data if held else b"").decode().splitlines()
    return [from_json(json.loads(line)) for line in lines]


def _place(answer: Answer) -> tuple[str, str]:
    """Return what an answer is kept by: one question may be about several documents."""
    return answer.document_key, answer.result.request_key


class _Paid:
    """What a run has paid for a shard, by claim: results, and steps that no result has in its sum yet."""

    def __init__(self) -> None:
        self.claims: set[str] = set()
        self._results: list[_Payment] = []
        self._steps: dict[str, list[_Payment]] = defaultdict(list)
        """By request: a result has the steps before it in its own sum, and those after it have none yet."""

    def take_step(self, claim: str, step: Step) -> None:
        """Take what an agent has done for a request that goes on."""
        self.claims.add(claim)
        if step.amount != Amount():
            self._steps[step.request_key].append((claim, step.stage, step.amount))

    def take_result(self, claim: str, result: Result) -> None:
        """Take the end of a request."""
        self.claims.add(claim)
        amount = Amount.paid(result.usage, result.cost_usd, result.gpu_seconds)
        self._results.append((claim, result.stage, amount))
        self._steps.pop(result.request_key, None)

    def but_for(self, counted: Collection[str]) -> dict[str, Amount]:
        """Return the sum by stage, without that of some claims."""
        payments = itertools.chain(self._results, *self._steps.values())
        return add_amounts(
            {stage: amount} for claim, stage, amount in payments if claim not in counted
        )


_Payment = tuple[str, str, Amount]
"""Claim, stage, and how much."""


def journal_spent(
    lake: Lake, shard: str, run_id: str, counted: Collection[str]
) -> dict[str, Amount]:
    """Return what a run has paid for a shard, by stage, by its journal, but for the claims counted."""
    paid = _Paid()
    for value in map(json.loads, open_journal(lake, shard).lines()):
        if value.get("run") != run_id:
            continue
        if "step" in value:
            paid.take_step(value["claim"], step_from_json(value["step"]))
        if "result" in value:
            paid.take_result(value["claim"], result_from_json(value["result"]))
    return paid.but_for(counted)


def journaled(lake: Lake) -> set[str]:
    """Return the shards that have a journal: their last commit is not there or not finished."""
    return {item.path.split("/")[2] for item in lake.storage.list(JOURNAL)}
