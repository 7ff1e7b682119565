"""Goes through a run's shards: those that another run holds are put off, a hopeless run is ended."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from flows.run.bench import NUM_SHARDS_AT_ONCE, Bench
from flows.run.claims import ShardClaimed
from flows.run.counts import ShardReport, add_up, failures
from flows.run.gather import gathered_levels, process_stage, to_gather
from flows.run.graph import stage_shard
from flows.run.plan import Planner, Retry, ShardPlan, ahead
from flows.run.shard import process_shard
from flows.run.stage_approval import Withheld
from flows.run.waiting import Waits

MIN_ASKED = 100
"""Questions after which a run may be called hopeless."""
HOPELESS_SHARE = 0.5
"""Share of them without an answer that is hopeless before it is known how many there will be."""

Worker = Callable[[ShardPlan], ShardReport | None]
"""Returns None for a shard that is put off."""
Dispatch = Callable[[Worker, Iterable[ShardPlan]], Iterator[ShardReport | None]]


class _Process(Protocol):
    """Brings a shard, or a stage over the corpus, as far as it can be brought now."""

    def __call__(
        self, bench: Bench, plan: ShardPlan, *, wait: bool = False, again: bool = False
    ) -> ShardReport: ...


@dataclass(slots=True)
class Work:
    """The shards of one run, from the plan to their reports."""

    bench: Bench
    planner: Planner | Retry
    dispatch: Dispatch
    notify: Callable[[str], None]
    markers: Mapping[str, ShardReport]
    """Reports of the shards that earlier attempts of the run have done."""
    _waits: Waits = field(init=False)
    _withheld: Withheld = field(init=False)
    _put_off: list[ShardPlan] = field(default_factory=list)
    _num_planned: int = 0
    _reports: dict[str, ShardReport] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._waits, self._withheld = Waits(self.bench), Withheld(self.bench)

    def reports(self) -> list[ShardReport]:
        """Return the reports of all shards, those of earlier attempts of the run included.

        Raises:
            ShardClaimed: Another run works on a shard; all others are done.
        """
        closed = threading.Event()
        try:
            planned = ahead(self._counted(self.planner.shards()), closed)
            self._go_through(self._sized(planned), wait=False)
        finally:
            closed.set()
        if self._put_off:
            shards, self._put_off = self._put_off, []
            self.notify(f"waiting for {len(shards)} shards that another run is working on")
            self._go_through(iter(shards), wait=True)
        while ready := self._waits.ready() or self._withheld.ready():
            self._go_through(iter(ready), wait=True, again=True)
        # Not those that have been opened again.
        done = [self.markers[s] for s in self.planner.unchanged if s in self.markers]
        if done:
            self.notify(
                f"run {self.bench.job.run_id}: {len(done)} shards were done in earlier attempts"
            )
        for report in done:
            del self.planner.unchanged[report.shard]
        return [*done, *self._reports.values()]

    def gather(self, reports: Sequence[ShardReport]) -> list[ShardReport]:
        """Return the reports of the stages over groups and the corpus, which need all shards.

        Raises:
            ShardClaimed: Another run works on one of them.
        """
        found: list[ShardReport] = []
        if self.bench.hopeless.is_set() or any(report.num_left for report in reports):
            return found
        for stages in gathered_levels(self.bench):
            self._waits, self._withheld = Waits(self.bench), Withheld(self.bench)
            plans = to_gather(self.bench, stages)
            self.bench.in_work.expect(max(1, len(plans)))
            done = {stage_shard(stage) for stage in stages} - {plan.shard for plan in plans}
            found += [self.markers[shard] for shard in sorted(done) if shard in self.markers]
            ends: dict[str, ShardReport] = {}
            again = False
            while plans:
                worker = partial(self._counting, process_stage, wait=True, again=again)
                for report in self.dispatch(worker, plans):
                    if report is not None:
                        ends[report.shard] = report
                plans, again = self._waits.ready() or self._withheld.ready(), True
            found += ends.values()
        return found

    def _counting(
        self, process: _Process, plan: ShardPlan, *, wait: bool, again: bool
    ) -> ShardReport:
        """Process a shard or a stage, and take down what of it waits for a batch or a person.

        It is counted in the run's progress when it is done, or waits for a person; then until it is asked about
        once more.
        """
        part = self.bench.progress.part()
        sensitive = self.bench.sensitive and replace(self.bench.sensitive, progress=part)
        bench = replace(self.bench, progress=part, sensitive=sensitive)
        report = process(bench, plan, wait=wait, again=again)
        if report.stages_in_batches:
            part.withdraw()
        self._waits.note(plan, report)
        self._withheld.note(plan, report, part)
        return report

    def _counted(self, shards: Iterator[ShardPlan]) -> Iterator[ShardPlan]:
        for shard in shards:
            self._num_planned += len(shard.sources)
            self.bench.progress.add(documents=len(shard.sources))
            yield shard

    def _sized(self, shards: Iterator[ShardPlan]) -> Iterator[ShardPlan]:
        """Yield the shards, after it is known whether there are enough to share the engine."""
        first = list(itertools.islice(shards, NUM_SHARDS_AT_ONCE))
        self.bench.in_work.expect(len(first))
        yield from first
        yield from shards

    def _go_through(self, shards: Iterator[ShardPlan], *, wait: bool, again: bool = False) -> None:
        def work(shard: ShardPlan) -> ShardReport | None:
            try:
                return self._counting(process_shard, shard, wait=wait, again=again)
            except ShardClaimed:
                if wait:
                    raise
                self._put_off.append(shard)
                return None

        for report in self.dispatch(work, shards):
            # One that found the budget reached has no more to say than it had before.
            if report is not None and not (again and report.num_left):
                self._reports[report.shard] = report
                if self._is_hopeless():
                    self.bench.hopeless.set()

    def _is_hopeless(self) -> bool:
        """Tell whether the failure limit cannot be kept any more, whatever the rest gives."""
        total = add_up(list(self._reports.values()))
        # What the budget did not cover has not failed: a run with more will ask it.
        unpaid = sum(stage.outcomes.get("over_budget", 0) for stage in total.stages.values())
        asked, unanswered = (count - unpaid for count in failures(total))
        if asked < MIN_ASKED:
            return False
        limit = self.bench.job.pipeline.failure_limit
        if not self.planner.is_done:
            return unanswered > max(limit, HOPELESS_SHARE) * asked
        return unanswered > limit * asked * self._num_planned / max(1, total.num_documents)
