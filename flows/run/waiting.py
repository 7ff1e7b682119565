"""Goes on with shards as the batches end that they wait for, as long as the pipeline lets the run wait."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flows.run.bench import Bench
from flows.run.counts import ShardReport
from flows.run.plan import ShardPlan


@dataclass(slots=True)
class Waits:
    """The shards of a run, or its stages over the corpus, that wait for batches of the host."""

    bench: Bench
    _plans: dict[str, ShardPlan] = field(default_factory=dict)
    _begun: dict[str, float] = field(default_factory=dict)
    """When each stage was seen to wait for the first time, by `time.monotonic`."""
    _was_idle: bool = False
    """Whether nothing was out when shards were asked about the last time."""

    def note(self, plan: ShardPlan, report: ShardReport) -> None:
        """Take down whether a shard has to be asked about once more."""
        if report.awaits_batch:
            self._plans[plan.shard] = plan

    def ready(self) -> list[ShardPlan]:
        """Return shards that have something to go on with, once there are some; none to end with the rest.

        Raises:
            EngineMisconfigured: The host refuses the key.
        """
        bench, desk = self.bench, self.bench.desk
        if desk is None or not self._plans or bench.hopeless.is_set() or bench.budget.is_reached:
            return []
        # What the budget was set aside for has come back by then: what does not fit now fits in no later round.
        was_idle, self._was_idle = self._was_idle, desk.is_idle
        if was_idle and self._was_idle:
            return []
        names = desk.wait(
            list(self._plans),
            until_s=self._until_s(desk.waiting()),
            is_cancelled=bench.cancelled.is_set,
            tell=lambda words: bench.progress.wait_for(words, desk.waiting()),
        )
        bench.progress.enter("processing")
        return [self._plans.pop(name) for name in names]

    def _until_s(self, waiting: Sequence[Mapping[str, Any]]) -> float | None:
        """Return when to give up what waits; None: never.

        A stage that has nothing out keeps the run from nothing: what it needs may be what is waited for.
        """
        terms = {
            stage.name: stage.batch_api
            for stage in self.bench.job.pipeline.stages
            if stage.batch_api is not None
        }
        now = time.monotonic()
        ends = []
        for name in {one["stage"] for one in waiting} & set(terms) or set(terms):
            limit_s = terms[name].max_wait_s
            if limit_s is None:
                return None
            ends.append(self._begun.setdefault(name, now) + limit_s)
        return max(ends, default=None)
