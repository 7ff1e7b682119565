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
    _until_s: float | None = None
    _is_begun: bool = False
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
        if not self._is_begun:
            self._is_begun = True
            limit_s = _most_s(bench)
            self._until_s = None if limit_s is None else time.monotonic() + limit_s
        # What the budget was set aside for has come back by then: what does not fit now fits in no later round.
        was_idle, self._was_idle = self._was_idle, desk.is_idle
        if was_idle and self._was_idle:
            return []
        names = desk.wait(
            list(self._plans),
            until_s=self._until_s,
            is_cancelled=bench.cancelled.is_set,
            tell=lambda words: bench.progress.wait_for(words, desk.waiting()),
        )
        bench.progress.enter("processing")
        return [self._plans.pop(name) for name in names]


def _most_s(bench: Bench) -> float | None:
    """Return how long the run waits at most; None for as long as it takes."""
    terms = [stage.batch_api for stage in bench.job.pipeline.stages]
    limits = [one.max_wait_s for one in terms if one is not None]
    known = [limit for limit in limits if limit is not None]
    return max(known) if limits and len(known) == len(limits) else None
