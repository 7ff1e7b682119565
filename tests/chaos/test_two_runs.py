"""Two runs on one sink at once: one yields to the other, and nothing is asked twice."""

import re
import subprocess

import pytest

from tests.chaos.checks import check_manifest, check_paid, check_tables
from tests.chaos.driver import attempt
from tests.chaos.watcher import Watcher
from tests.chaos.world import ROOT, environment

RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{4}")


def start(world, sink, state):
    return subprocess.Popen(
        world.start(sink), cwd=ROOT, env=environment(state),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.xfail(strict=True, reason="runs do not claim their shards yet, so both ask everything")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("machines", [1, 2], ids=["one-machine", "two-machines"])
def test_all_is_complete_and_paid_once_when_two_runs_share_a_sink(
    world, reference, sinks, tmp_path, machines
):
    name_sink, endpoint = sinks
    sink, mark = name_sink("lake"), world.engine.mark()
    states = [tmp_path / f"state{number % machines}" for number in range(2)]
    with Watcher(sink, endpoint) as watcher:
        runs = [start(world, sink, state) for state in states]
        said = [run.communicate(timeout=100) for run in runs]
        for run, (_, told) in zip(runs, said, strict=True):
            assert "Traceback" not in told
            assert run.returncode in {0, 1}, told
            # One that yields names the run to which it does.
            assert run.returncode == 0 or RUN_ID.search(told), told
        assert world.engine.paid(mark).total() <= reference.num_inputs
        last = attempt(world.start(sink), environment(states[0]))
        assert last.code == 0, last.told
    watcher.look()
    assert watcher.seen == []
    check_manifest(last.manifest, reference)
    check_tables(sink, reference)
    assert check_paid(world.engine.paid(mark), reference, 0) == 0
