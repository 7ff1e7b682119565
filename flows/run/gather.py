"""Stages over groups and the corpus: they begin when all documents have been asked about.

Each is one unit of work with a claim, a ledger and a commit of its own, under the name `stage-NAME`
where a shard has its number. It is done again only where the records it rests on, or its question, have
changed; answers to parts that have not changed are not paid for again.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import polars as pl

from config.graph import by_field
from config.pipeline import StageConfig
from connectors.sinks.lake import Lake
from engine.request import content_key
from flows.run.agents import catalogue, looks_itself, scope_key
from flows.run.claims import claimed
from flows.run.commit import (
    Done,
    awaited_keys,
    bills,
    put_done,
    record_parts,
    usage_rows,
    withheld_keys,
)
from flows.run.compute import compute, tables_key
from flows.run.counts import UNANSWERED, ShardReport, count_stage, left_alone
from flows.run.families import Scheduler
from flows.run.graph import levels, stage_shard
from flows.run.in_order import in_order
from flows.run.keys import policy_key
from flows.run.layout import whole_blocks
from flows.run.ledger import journaled
from flows.run.plan import AGAIN, ShardPlan
from flows.run.reduce import Members, reduce_all
from flows.run.rows import Answered, given_of_row, record_row
from flows.run.shard import open_shard, send_batches, until_cancelled
from flows.run.spool import Group, Spool
from flows.run.transcripts import transcripts_of
from flows.run.units import (
    CORPUS,
    UNPAID,
    UPSTREAM_OVER_BUDGET,
    Reply,
    Subject,
    inputs_of,
    upstream_of,
)

if TYPE_CHECKING:
    from flows.run.bench import Bench
    from flows.run.shard import Shard

logger = logging.getLogger(__name__)


def gathered_levels(bench: Bench) -> list[tuple[StageConfig, ...]]:
    """Return the stages over groups and the corpus, those first that others need."""
    stages = bench.job.pipeline.stages
    return [
        found
        for level in levels(stages)
        if (found := tuple(stage for stage in level if stage.is_gathered))
    ]


def to_gather(bench: Bench, stages: Iterable[StageConfig]) -> list[ShardPlan]:
    """Return those of the stages that have something to do.

    Raises:
        StorageError: The sink cannot be read.
    """
    bench = bench.gathering
    lake = bench.lake
    in_work = claimed(lake.storage) | journaled(lake) | bench.to_rebuild
    again = UNANSWERED if bench.job.start == "retry" else AGAIN
    found = []
    for stage in stages:
        name = stage_shard(stage)
        commit = bench.commits.get(name)
        is_current = (
            commit is not None
            and name not in in_work
            and commit.work_key == _work_key(bench, stage)
            and not commit.again
            and not again & commit.outcomes.keys()
        )
        if not is_current:
            found.append(ShardPlan(shard=name, sources=()))
    return found


def _work_key(bench: Bench, stage: StageConfig) -> str:
    """Return the key of what the stage's rows follow from: its question, and the records it needs."""
    tables = [bench.record_tables[need] for need in stage.needs]
    parts = sorted(
        (path, part.sha256)
        for commit in bench.commits.values()
        for path, part in commit.parts.items()
        if path.rpartition("/")[0] in tables
    )
    prepared = bench.asker.stages.get(stage.name)
    ways = [way.fingerprint for way in (prepared.way, prepared.again) if way] if prepared else []
    reference = tables_key(bench.lake, stage) if stage.tables else None
    run = bench.job.run_id if stage.fresh else None
    scope = scope_key(bench) if stage.tools else None
    policy = policy_key(bench.job, bench.asker)
    return content_key("gather", stage.asked(), ways, parts, reference, run, scope, *policy)


def process_stage(
    bench: Bench, plan: ShardPlan, *, wait: bool = False, again: bool = False
) -> ShardReport:
    """Return the counts of a stage over groups or the corpus, after its records are in the lake.

    Raises:
        ShardClaimed: Another run works on it.
        StorageError: The sink cannot be read or written.
    """
    bench = bench.gathering
    stage = next(s for s in bench.job.pipeline.stages if stage_shard(s) == plan.shard)
    with bench.in_work(), bench.asking:
        # As the parents are now: another run may write them again while this goes on.
        key = _work_key(bench, stage)
        with open_shard(bench, plan, wait=wait, again=again) as shard:
            if stage.compute is not None:
                return put_done(shard, compute(shard, stage, work_key=key))
            try:
                return _process(shard, stage, key)
            finally:
                bench.flights.leave(shard.boarded)


def _process(shard: Shard, stage: StageConfig, work_key: str) -> ShardReport:
    bench = shard.bench
    folder = bench.scratch / shard.plan.shard
    folder.mkdir(exist_ok=True)
    file = folder / "inputs.sqlite"
    file.unlink(missing_ok=True)
    with closing(Spool(file)) as spool:
        replies = _fill(spool, shard, stage)
        ends = _Ends(stage=stage)
        groups = list(_groups(spool, stage))
        unpaid = _is_unpaid(bench, stage)
        scope = scope_key(bench) if stage.tools else ""
        subjects = [
            replace(_subject(stage, group, left_out=bool(replies)), is_unpaid=unpaid, scope=scope)
            for group in groups
        ]
        bench.progress.add(expected=len(subjects) * stage.samples)
        members = (
            Members(subject=subject, marks=group.marks, tokens=group.tokens, load=group.load)
            for subject, group in zip(subjects, groups, strict=True)
        )
        ask = partial(in_order, Scheduler(shard), max_in_flight=bench.max_in_flight)
        work = reduce_all(shard, members, (ends.done, ends.part), ask)
        try:
            asyncio.run(until_cancelled(shard, work))
        finally:
            shard.ledger.save()
    send_batches(shard)
    report = put_done(shard, ends.finish(shard, len(subjects), work_key))
    logger.info(
        "run_id=%s stage=%s inputs=%d parts=%d committed",
        bench.job.run_id,
        stage.name,
        len(subjects),
        len(ends.parts),
    )
    return report


def _groups(spool: Spool, stage: StageConfig) -> Iterator[Group]:
    found = False
    for group in spool.groups():
        found = True
        yield group
    if not found and stage.over == "corpus":
        # The question about nothing has an end too.
        yield Group(value=None, marks=(), tokens=(), load=lambda _: ())


def _subject(stage: StageConfig, group: Group, *, left_out: bool) -> Subject:
    if stage.over == "corpus":
        return Subject(stage=stage, name=CORPUS, left_out=left_out and not group.marks)
    name = "group" if group.value is None else f"group-{group.value}"
    return Subject(stage=stage, name=name, group=group.value)


@dataclass(slots=True, kw_only=True)
class _Ends:
    """What became of a stage's questions, without what they showed."""

    stage: StageConfig
    answers: dict[int, Answered] = field(default_factory=dict)
    """By the number of the unit."""
    parts: list[Answered] = field(default_factory=list)

    def done(self, number: int, end: Answered) -> None:
        self.answers[number] = _slim(end)

    def part(self, _number: int, end: Answered) -> None:
        self.parts.append(_slim(end))

    def finish(self, shard: Shard, num_units: int, work_key: str) -> Done:
        """Return what is put into the sink."""
        answers = [self.answers[number] for number in sorted(self.answers)]
        parts = sorted(self.parts, key=lambda end: end.inquiry.unit)
        every = [*parts, *answers]
        name = self.stage.name
        bill = bills(shard.ledger, {name: answers}, {name: parts})[name]
        bench = shard.bench
        planned = len(bill.paid) * whole_blocks(
            bench.asker.instructions_tokens, bench.cache_block_tokens
        )
        count = count_stage(
            num_units, answers, parts, planned=planned, bill=bill, prices=shard.bench.prices
        )
        report = replace(
            left_alone(shard.plan.shard, 0),
            stages={name: count},
        )
        return Done(
            report=report,
            parts=record_parts(
                shard, self.stage, [*map(record_row, answers)], [*map(record_row, parts)]
            ),
            usage=usage_rows(every, shard.ledger),
            transcripts=transcripts_of(every, shard.ledger.steps.by_request()),
            is_open=any(end.result.error_class == UPSTREAM_OVER_BUDGET for end in every),
            withheld_keys=withheld_keys(every),
            awaited_keys=awaited_keys(every),
            results={"": [result for end in every for result in end.results]},
            outcomes=Counter(end.result.outcome for end in every),
            work_key=work_key,
        )


def _slim(end: Answered) -> Answered:
    """Return the end without the material that was sent."""
    requests, withheld = (
        tuple(replace(one, material="", schema={}) for one in every)
        for every in (end.inquiry.requests, end.inquiry.withheld)
    )
    inquiry = replace(end.inquiry, requests=requests, withheld=withheld, again=None, lines=())
    return replace(end, inquiry=inquiry)


def _fill(spool: Spool, shard: Shard, stage: StageConfig) -> int:
    """Bring the stage's inputs into the spool, shard by shard, and return how many records there are."""
    bench = shard.bench
    when = bench.asker.stages[stage.name].when
    by_name = {one.name: one for one in bench.job.pipeline.stages}
    by = by_field(stage, by_name) if stage.by else None
    num_replies = 0
    if looks_itself(stage):
        told = catalogue(bench)
        spool.add(None, told, bench.asker.weigh(told.lines))
    for replies in _replies(bench, stage.needs):
        num_replies += len(replies)
        by_unit: dict[str, list[Reply]] = defaultdict(list)
        for reply in replies:
            by_unit[reply.unit].append(reply)
        for one in inputs_of(replies, when, titled=True):
            unit = one.identity.partition("\0")[2]
            group = _group_of(by, unit, by_unit) if by else None
            spool.add(group, one, bench.asker.weigh(one.lines))
    return num_replies


def _group_of(by: tuple[str, str], unit: str, by_unit: Mapping[str, Sequence[Reply]]) -> str | None:
    stage, name = by
    value = (upstream_of(unit, by_unit).get(stage) or {}).get(name)
    if value is None:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def _replies(bench: Bench, needs: Sequence[str]) -> Iterator[list[Reply]]:
    """Yield the records of the stages needed, those of one document together."""
    stages = {stage.name: stage for stage in bench.job.pipeline.stages}
    names = {
        path.rpartition("/")[2]
        for commit in bench.commits.values()
        for path in commit.parts
        if path.rpartition("/")[0] in {bench.record_tables[need] for need in needs}
    }
    for name in sorted(names):
        by_path: dict[str, list[Reply]] = defaultdict(list)
        for need in needs:
            for reply in _read(bench.lake, f"{bench.record_tables[need]}/{name}", stages[need]):
                by_path[reply.path].append(reply)
        for path in sorted(by_path):
            yield by_path[path]


def _is_unpaid(bench: Bench, stage: StageConfig) -> bool:
    """Tell whether an answer that the stage needs, through SQL too, is missing for want of budget."""
    if not any(commit.outcomes.get("over_budget") for commit in bench.commits.values()):
        return False
    stages = {one.name: one for one in bench.job.pipeline.stages}
    for need in stage.needs:
        if stages[need].compute is not None:
            if _is_unpaid(bench, stages[need]):
                return True
            continue
        classes = bench.lake.iter_table(bench.record_tables[need], ["error_class"])
        if any(frame["error_class"].is_in(UNPAID).any() for frame in classes):
            return True
    return False


def _read(lake: Lake, path: str, stage: StageConfig) -> Iterator[Reply]:
    held = lake.storage.find(path)
    if held is None:
        return
    names = list(stage.output["properties"])
    columns = ["path", "unit", "outcome", "error_class", *names, "citations", "claims"]
    row: dict[str, Any]
    for row in pl.read_parquet(io.BytesIO(held.data), columns=columns).iter_rows(named=True):
        yield Reply(
            stage=stage.name,
            path=row["path"] or "",
            unit=row["unit"],
            error_class=row["error_class"],
            given=given_of_row(row, names) if row["outcome"] == "succeeded" else None,
        )
