"""Goes on with shards as the batches end that they wait for, as long as the pipeline lets the run wait."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from flows.run.bench import Bench
from flows.run.counts import ShardReport
from flows.run.plan import ShardPlan


@dataclass(slots=True)
class Waits:
    """The shards of a run, or its stages over the corpus, that wait for batches of the host."""

    bench: Bench
    _plans: dict[str, ShardPlan] = field(default_factory=dict)
    _stages: dict[str, frozenset[str]] = field(default_factory=dict)
    """Which stages of a shard wait."""
    _begun: dict[str, float] = field(default_factory=dict)
    """When each stage was seen to wait for the first time, by `time.monotonic`."""
    _was_idle: bool = False
    """Whether nothing was out when shards were asked about the last time."""

    def note(self, plan: ShardPlan, report: ShardReport) -> None:
        """Take down whether a shard has to be asked about once more."""
        if stages := report.stages_in_batches:
            self._plans[plan.shard], self._stages[plan.shard] = plan, stages

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
            until_s=self._until_s(),
            is_cancelled=bench.cancelled.is_set,
            tell=lambda words: bench.progress.wait_for(words, desk.waiting()),
        )
        bench.progress.enter("processing")
        return [self._plans.pop(name) for name in names]

    def _until_s(self) -> float | None:
        """Return when to give up what waits; None: never.

        A stage of which nothing waits has no say: what it needs may be what is waited for.
        """
        waiting = frozenset().union(*(self._stages[shard] for shard in self._plans))
        now = time.monotonic()
        ends = []
        for stage in self.bench.job.pipeline.stages:
            if stage.batch_api is None or stage.name not in waiting:
                continue
            if stage.batch_api.max_wait_s is None:
                return None
            ends.append(self._begun.setdefault(stage.name, now) + stage.batch_api.max_wait_s)
        return max(ends, default=None)
