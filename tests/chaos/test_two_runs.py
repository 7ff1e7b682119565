"""Two runs on one sink at once: one yields to the other, and nothing is asked twice."""

import json
import re
import subprocess

import pytest

from connectors.storage import open_storage
from tests.chaos.checks import check_counts, check_paid, check_tables
from tests.chaos.driver import attempt
from tests.chaos.watcher import Watcher
from tests.chaos.world import ROOT, environment

RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{4}")


def run_ids(sink):
    """Return the ids of all runs that left something in a sink."""
    return {item.path.split("/")[1] for item in open_storage(sink).list("runs")}


def start(world, sink, state):
    return subprocess.Popen(
        world.start(sink), cwd=ROOT, env=environment(state),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("sinks", "machines"),
    [
        ("folder", 1),
        ("bucket", 2),
        pytest.param("folder", 2, marks=pytest.mark.slow),
        pytest.param("bucket", 1, marks=pytest.mark.slow),
    ],
    indirect=["sinks"],
)
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
            assert run.returncode == 0 or set(RUN_ID.findall(told)) & run_ids(sink), told
        done = [json.loads(out)["run_id"] for out, _ in said if out]
        if len(done) == 1:
            assert any(done[0] in told for _, told in said), said
        assert world.engine.paid(mark).total() <= reference.num_inputs
        if len(done) < 2:
            last = attempt(world.start(sink), environment(states[0]))
            assert last.code == 0, last.told
            check_counts(last.manifest)
    watcher.look()
    assert watcher.seen == []
    check_tables(sink, reference)
    assert check_paid(world.engine.paid(mark), reference, 0) == 0
