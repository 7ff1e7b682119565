"""Stages that a person must agree to: their requests are withheld until then, once in a run.

A stage is asked about when the first of its requests would go out; while nobody has decided, its requests end as
`over_budget` with the class `awaiting_approval`, all other stages go on, and the question says how many wait. When all
else is done, whoever looks on is asked; else the decision is found when the run goes on.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from config.pipeline import StageConfig
from connectors.sinks.lake import Lake
from engine.profile import Prices
from engine.request import content_key
from flows.run.approvals import (
    ID_CHARS,
    Ask,
    Decision,
    Question,
    Waiting,
    decide,
    find_decision,
    now,
    question_from_json,
    question_path,
    questions,
)
from flows.run.counts import ShardReport, StageCount, add_up
from flows.run.plan import ShardPlan
from flows.run.progress import ProgressPart
from flows.run.rows import Inquiry
from flows.run.units import AWAITING_APPROVAL, REFUSED

if TYPE_CHECKING:
    from flows.run.bench import Bench

_LOOK_S = 2.0
"""Seconds that an undecided stage is not looked up again: its requests come by the thousand."""

_TELL_S = 5.0
"""Least seconds between two counts of what waits."""


class StageApproval:
    """What was decided on the stages of one run."""

    def __init__(
        self,
        lake: Lake,
        run_id: str,
        ask: Ask | None,
        *,
        record_tables: Mapping[str, str],
        prices: Prices | None,
    ) -> None:
        """Take where decisions lie.

        Args:
            lake: The sink.
            run_id: The run.
            ask: Asks somebody; None where nobody is there, and the stage waits.
            record_tables: Folder of each stage's records.
            prices: Of the pipeline's own engine; None where they are not known.
        """
        self._lake, self._run_id, self._ask = lake, run_id, ask
        self._tables, self._prices = record_tables, prices
        self._lock = threading.Lock()
        self._decided: dict[str, Decision] = {}
        self._looked_s: dict[str, float] = {}

    def withdraw_old(self, stages: Sequence[StageConfig]) -> None:
        """Withdraw what nobody has answered about stages that were changed since or are not asked about any more.

        Raises:
            StorageError: The sink cannot be read or written.
        """
        asked = {_approval_id(stage) for stage in stages if stage.approval}
        for question, decision in questions(self._lake, self._run_id):
            if question.tool is None and decision is None and question.approval_id not in asked:
                self._lake.storage.delete(question_path(self._run_id, question.approval_id))

    async def look(self, stage: StageConfig) -> Decision | None:
        """Return the decision on a stage, which is asked about from now on; None while there is none.

        Raises:
            StorageError: The sink cannot be read or written.
        """
        if stage.name in self._decided or not self._is_old(stage):
            return self._decided.get(stage.name)
        return await asyncio.to_thread(self._look, stage)

    def settle(self, stage: StageConfig, count: StageCount) -> Decision | None:
        """Return the decision on a stage, after whoever is there was asked; None while there is none.

        Args:
            stage: The stage.
            count: Its figures, with what is withheld.

        Raises:
            StorageError: The sink cannot be read or written.
        """
        question = self.tell(stage, count)
        found = find_decision(self._lake, self._run_id, question.approval_id)
        if found is None and self._ask is not None:
            is_approved, reason = self._ask(question)
            found = decide(
                self._lake, self._run_id, question, is_approved=is_approved, reason=reason
            )
        if found is not None:
            self._decided[stage.name] = found
        return found

    def tell(self, stage: StageConfig, count: StageCount) -> Question:
        """Put what waits into the question on a stage, and return it."""
        withheld = count.withheld
        tokens = withheld["prompt_tokens"], withheld["max_output_tokens"]
        waiting = Waiting(
            requests=withheld["requests"],
            documents=withheld["documents"],
            prompt_tokens=tokens[0],
            max_output_tokens=tokens[1],
            max_usd=_most_usd(self._prices, *tokens),
        )
        question = replace(self._asked(stage), waiting=waiting)
        self._lake.put_json(question_path(self._run_id, question.approval_id), asdict(question))
        return question

    def _is_old(self, stage: StageConfig) -> bool:
        looked_s = self._looked_s.get(stage.name)
        return looked_s is None or time.monotonic() - looked_s >= _LOOK_S

    def _look(self, stage: StageConfig) -> Decision | None:
        # One at a time: all who ask meanwhile are given what the first of them has found.
        with self._lock:
            if stage.name not in self._decided and self._is_old(stage):
                asked = self._asked(stage)
                found = find_decision(self._lake, self._run_id, asked.approval_id)
                if found is not None:
                    self._decided[stage.name] = found
                self._looked_s[stage.name] = time.monotonic()
            return self._decided.get(stage.name)

    def _asked(self, stage: StageConfig) -> Question:
        """Return the question on a stage as it lies in the sink, put there now if it was not."""
        question = Question(
            approval_id=_approval_id(stage),
            stage=stage.name,
            tool=None,
            description="\n\n".join(filter(None, (stage.prompt, stage.combine))),
            asked_at=now(),
            builds_on=tuple(f"{self._lake.url}/{self._tables[n]}/*.parquet" for n in stage.needs),
        )
        path = question_path(self._run_id, question.approval_id)
        return question_from_json({**self._lake.claim(path, asdict(question))})


def _approval_id(stage: StageConfig) -> str:
    """Return the id of the question on a stage, another one where the stage was changed: what is shown goes out."""
    return content_key("approval", "stage", stage.name, stage.asked())[:ID_CHARS]


def _most_usd(prices: Prices | None, prompt_tokens: int, output_tokens: int) -> float | None:
    if prices is None:
        return None
    return (prompt_tokens * prices.input_usd + output_tokens * prices.output_usd) / 1e6


def withhold(inquiry: Inquiry, decision: Decision | None, run_id: str) -> Inquiry:
    """Return an inquiry of a stage that nobody has agreed to, as it ends: waiting, or refused.

    Args:
        inquiry: With requests.
        decision: What was decided on its stage; None: nothing yet.
        run_id: The run.
    """
    name = inquiry.stage.name
    kept = replace(inquiry, requests=(), again=None, withheld=inquiry.requests)
    if decision is None:
        why = f"stage {name!r} waits for a person's approval: headrace approve {run_id}"
        return replace(kept, unasked=("over_budget", AWAITING_APPROVAL, why))
    why = f"{decision.by} refused stage {name!r} at {decision.decided_at}"
    if decision.reason:
        why += f": {decision.reason}"
    return replace(kept, unasked=("skipped", REFUSED, why))


@dataclass(slots=True)
class Withheld:
    """The shards of a run, or its gathered stages, with requests that wait for a person."""

    bench: Bench
    _shards: dict[str, tuple[ShardPlan, ShardReport, ProgressPart]] = field(default_factory=dict)
    _told_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, plan: ShardPlan, report: ShardReport, part: ProgressPart) -> None:
        """Take down what of a shard waits, and tell it in the question now and then.

        Args:
            plan: The shard.
            report: What it has come to.
            part: Its share of the run's counters.
        """
        with self._lock:
            self._shards.pop(plan.shard, None)
            if not any(count.withheld for count in report.stages.values()):
                return
            self._shards[plan.shard] = plan, report, part
            if time.monotonic() - self._told_s >= _TELL_S:
                self._told_s = time.monotonic()
                for stage, count in self._counts():
                    self.bench.stage_approval.tell(stage, count)

    def ready(self) -> list[ShardPlan]:
        """Return the shards with stages that have been decided on, by whoever looks on or elsewhere.

        Raises:
            StorageError: The sink cannot be read or written.
        """
        bench = self.bench
        if not self._shards:
            return []
        if bench.hopeless.is_set() or bench.budget.is_reached:
            for stage, count in self._counts():
                bench.stage_approval.tell(stage, count)
            return []
        decided = {
            stage.name
            for stage, count in self._counts()
            if bench.stage_approval.settle(stage, count) is not None
        }
        found = [
            name
            for name, (_, report, _) in self._shards.items()
            if any(count.withheld and stage in decided for stage, count in report.stages.items())
        ]
        ready = [self._shards.pop(name) for name in found]
        for _, _, part in ready:
            part.withdraw()
        return [plan for plan, _, _ in ready]

    def _counts(self) -> list[tuple[StageConfig, StageCount]]:
        """Return the stages of which something waits, with their figures."""
        total = add_up([report for _, report, _ in self._shards.values()])
        stages = {stage.name: stage for stage in self.bench.job.pipeline.stages}
        return [(stages[name], count) for name, count in total.stages.items() if count.withheld]
