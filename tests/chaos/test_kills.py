"""A run that is killed over and over ends as one that nobody disturbed, and pays no answer twice."""

import random

import pytest

from tests.chaos.checks import check_manifest, check_paid, check_tables
from tests.chaos.driver import Driver
from tests.chaos.watcher import Watcher

_PER_RUN = 6
"""Kills of one run at most; then it may end, and another begins."""


def punish(world, reference, sinks, tmp_path, *, kills, seed, elsewhere=False):
    """Kill runs so many times, each until it is complete, and check what they leave."""
    name_sink, endpoint = sinks
    killed, excess = 0, 0
    # Every run takes a kill at least, but for one that ends before its moment comes.
    for number in range(3 * kills):
        sink, mark = name_sink(f"lake{number}"), world.engine.mark()
        driver = Driver(
            world=world, sink=sink, pace=reference.pace, state=tmp_path / f"state{number}",
            random=random.Random(f"{seed}/{number}"), elsewhere=elsewhere,
        )  # fmt: skip
        with Watcher(sink, endpoint) as watcher:
            manifest = driver.finish(max_kills=min(_PER_RUN, kills - killed))
            watcher.look()
        assert watcher.seen == [], driver.report()
        assert watcher.most_rows > 0
        check_manifest(manifest, reference)
        check_tables(sink, reference)
        excess += check_paid(world.engine.paid(mark), reference, driver.kills)
        killed += driver.kills
        if killed >= kills:
            break
    assert killed >= kills
    print(f"seed {seed}: {killed} kills over {number + 1} runs, {excess} calls paid twice")  # noqa: T201


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("sinks", "elsewhere", "kills"),
    [("folder", True, 3), ("bucket", False, 5), ("bucket", True, 4)],
    indirect=["sinks"],
    ids=["folder-elsewhere", "bucket-here", "bucket-elsewhere"],
)
def test_run_ends_as_if_undisturbed_when_it_is_killed_anywhere(
    world, reference, sinks, tmp_path, elsewhere, kills
):
    punish(world, reference, sinks, tmp_path, kills=kills, seed=1, elsewhere=elsewhere)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
@pytest.mark.parametrize("seed", range(2, 7))
def test_run_ends_as_if_undisturbed_when_killed_hundreds_of_times(
    world, reference, sinks, tmp_path, elsewhere, seed
):
    punish(world, reference, sinks, tmp_path, kills=15, seed=seed, elsewhere=elsewhere)
