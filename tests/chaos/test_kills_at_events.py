"""Kills that wait for what a run does, in place of a time: so many calls, or one object written."""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.chaos.checks import (
    Reference,
    check_manifest,
    check_paid,
    check_tables,
    inputs_of,
    parts_of,
)
from tests.chaos.driver import attempt, go_on, undisturbed
from tests.chaos.watcher import Watcher
from tests.chaos.world import PIPELINE, PaidEngine, World, environment, write_large_shard

NUM_FILES = 200
NUM_CALLS = 2 * NUM_FILES
CALLS_PER_KILL = 130
"""More than the requests in flight and the journal's window together."""

WRITTEN = [
    "runs/*/run.json",
    "chunks/*.parquet",
    "records/stage=kind/*.parquet",
    "records/stage=title/*.parquet",
    "documents/*.parquet",
    "runs/*/shards/*.json",
    "records/stage=sorts/*.parquet",
    "partial/stage=all/*.parquet",
    "records/stage=all/*.parquet",
    "reports/*/index.html",
]
"""One after the other, from the beginning of a run to its end."""


class AfterCalls(NamedTuple):
    """When so many calls have been paid since a mark."""

    engine: PaidEngine
    mark: int
    num_calls: int

    def __call__(self, *_: object) -> bool:
        return self.engine.paid(self.mark).total() >= self.num_calls


class AfterWrite:
    """When the sink has a file by this pattern that it had not before."""

    def __init__(self, lake: Path, pattern: str) -> None:
        self._lake, self._pattern = lake, pattern
        self._before = self._files()

    def __call__(self, *_: object) -> bool:
        return self._files() > self._before

    def _files(self) -> set[Path]:
        return set(self._lake.glob(self._pattern))


@pytest.mark.timeout(120)
def test_answers_are_journaled_when_one_large_shard_is_killed(tmp_path):
    write_large_shard(tmp_path / "in", NUM_FILES)
    pipeline = PIPELINE.replace("documents_per_shard: 4", f"documents_per_shard: {NUM_FILES}")
    (tmp_path / "large.yaml").write_text(pipeline, encoding="utf-8")
    with PaidEngine(tmp_path) as engine:
        world = World(source=tmp_path / "in", pipeline=tmp_path / "large.yaml", engine=engine)
        calm, pace = undisturbed(world, str(tmp_path / "calm"), tmp_path / "calm-state")
        paid = engine.paid()
        reference = Reference(parts_of(str(tmp_path / "calm")), paid, inputs_of(calm), pace)
        assert paid.total() == inputs_of(calm) > NUM_CALLS
        sink, mark = str(tmp_path / "lake"), engine.mark()
        env = environment(tmp_path / "state")
        for _ in range(2):
            kill = AfterCalls(engine, engine.mark(), CALLS_PER_KILL)
            ended = attempt(go_on(world, sink), env, kill)
            assert ended.code == -9, ended
        last = attempt(go_on(world, sink), env)
        assert last.code == 0, last.told
        check_manifest(last.manifest, reference)
        check_tables(sink, reference)
        excess = check_paid(engine.paid(mark), reference, 2)
    print(f"2 kills of one large shard, {excess} calls paid twice")  # noqa: T201


@pytest.mark.timeout(120)
def test_run_ends_as_if_undisturbed_when_killed_right_after_each_write(world, reference, tmp_path):
    lake, mark, kills = tmp_path / "lake", world.engine.mark(), 0
    env = environment(tmp_path / "state")
    with Watcher(str(lake)) as watcher:
        for pattern in WRITTEN:
            kill = AfterWrite(lake, pattern)
            ended = attempt(go_on(world, str(lake)), env, kill, poll_s=0.002)
            if ended.says_begin_anew:
                ended = attempt(world.start(str(lake)), env, kill, poll_s=0.002)
            if ended.code == 0:
                # On a busy machine it may end before the look at its files.
                break
            assert ended.code == -9, f"{pattern}: {ended}"
            kills += 1
        assert kills > len(WRITTEN) // 2
        last = attempt(go_on(world, str(lake)), env)
        assert last.code == 0, last.told
    watcher.look()
    assert watcher.seen == []
    check_manifest(last.manifest, reference)
    check_tables(str(lake), reference)
    excess = check_paid(world.engine.paid(mark), reference, kills)
    print(f"{kills} kills at writes, {excess} calls paid twice")  # noqa: T201
