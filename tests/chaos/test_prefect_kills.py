"""A flow run that is killed goes on in the next flow run, on a real Prefect server."""

import json
import random
import sys

import pytest

from tests.chaos.checks import check_manifest, check_paid, check_tables
from tests.chaos.driver import Moment, attempt
from tests.chaos.watcher import Watcher
from tests.chaos.world import environment

NUM_KILLS = 3


@pytest.mark.timeout(150)
def test_flow_run_is_completed_by_the_next_ones_when_it_is_killed(
    world, reference, prefect, tmp_path
):
    run_id, sink, mark = "20260101T000000Z-c4a0", str(tmp_path / "lake"), world.engine.mark()
    command = [
        sys.executable, "-m", "tests.chaos.flow_process", run_id, str(world.pipeline),
        str(world.source), sink, world.engine.url,
    ]  # fmt: skip
    env, pick = environment(tmp_path / "state", **prefect.environment), random.Random(8)
    resume: list[str] = []
    with Watcher(sink) as watcher:
        for _ in range(NUM_KILLS):
            # Each in the first half of what is left, so that there is something left.
            moment = Moment(early=False, delay_s=reference.pace.work_s * pick.random() / 2)
            ended = attempt([*command, *resume], env, moment)
            assert ended.code == -9, ended
            assert ended.began_s is not None
            resume = ["resume"]
        ended = attempt([*command, *resume], env)
        assert ended.code == 0, ended.told
        assert ended.out.startswith("Completed: "), ended
    watcher.look()
    assert watcher.seen == []
    manifest = tmp_path / "lake" / "runs" / run_id / "manifest.json"
    check_manifest(json.loads(manifest.read_text(encoding="utf-8")), reference)
    check_tables(sink, reference)
    excess = check_paid(world.engine.paid(mark), reference, NUM_KILLS)
    print(f"{NUM_KILLS} flow runs killed, {excess} calls paid twice")  # noqa: T201
