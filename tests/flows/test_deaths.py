"""Flow runs whose process, or process and worker, is killed: what they are then, and what goes on."""

import os
import signal
import sqlite3
import time
from contextlib import closing

import polars as pl
import pytest

from flows.automations import GO_ON, MARK_DEAD, automate
from tests.fakes.engine_server import FakeEngine, Fault
from tests.flows.stack_client import Stack, below, write_files

NUM_FILES = 12


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = Stack(tmp_path_factory.mktemp("up"))
    stack.first = stack.up("--port", stack.port)
    yield stack
    stack.headrace("down")


@pytest.fixture
def engine():
    """An engine that answers after two seconds, until `slow` is set to false."""
    with FakeEngine(script=lambda *_: Fault(hang_s=2.0) if engine.slow else None) as engine:
        engine.slow = True
        yield engine


def start(stack, tmp_path, engine):
    parameters = {
        "source": str(write_files(tmp_path / "source", NUM_FILES)),
        "sink": str(tmp_path / "lake"),
        "engine_url": engine.url,
        "settings": ["documents_per_shard=4"],
    }
    status, run = stack.create_run("process-corpus", parameters)
    assert status == 201, run
    return run["id"]


def until(found, limit_s=60):
    """Return what `found` returns, once that is something."""
    deadline = time.monotonic() + limit_s
    while not (value := found()):
        assert time.monotonic() < deadline, f"nothing after {limit_s} s"
        time.sleep(0.2)
    return value


def kill(pids):
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def kill_at_work(stack, engine):
    """Kill the flow run in work, and nothing else, once it asks."""
    before = len(engine.calls)
    until(lambda: len(engine.calls) > before + 3)
    kill(below(stack.first["worker"]["pid"]))


def begin_earlier(stack, flow_run):
    """Make a run of a server that is down one that began ten minutes ago.

    Where a run began less than five minutes before its end, a server started anew waits 15 minutes
    for the event of its begin, which the old one has had.
    """
    with closing(sqlite3.connect(stack.state / "up" / "home" / "prefect.db")) as database, database:
        changed = database.execute(
            "UPDATE flow_run_state SET timestamp = strftime('%Y-%m-%d %H:%M:%f', timestamp, '-10 minutes')"
            " WHERE flow_run_id = ? AND type = 'RUNNING'",
            [flow_run],
        )
        assert changed.rowcount == 1


def check_complete(tmp_path):
    documents = pl.read_parquet(f"{tmp_path}/lake/documents/*.parquet")
    assert documents["path"].n_unique() == len(documents) == NUM_FILES
    for stage in (tmp_path / "lake" / "records").iterdir():
        rows = pl.read_parquet(f"{stage}/*.parquet")
        assert rows["row_key"].n_unique() == len(rows)
        assert set(rows["outcome"]) == {"succeeded"}
    (run,) = (tmp_path / "lake" / "runs").iterdir()
    return run.name


@pytest.mark.timeout(180)
def test_killed_run_is_gone_on_with_once_and_then_by_hand(stack, tmp_path, engine):
    first = start(stack, tmp_path, engine)
    kill_at_work(stack, engine)
    crashed = stack.wait(first)
    assert crashed["state"]["name"] == "Crashed"
    run_id = crashed["labels"]["headrace.run"]
    (second,) = until(lambda: stack.runs("resume-crashed"))
    assert second["parameters"] == {"flow_run": first}
    kill_at_work(stack, engine)
    assert stack.wait(second["id"])["state"]["name"] == "Crashed"
    engine.slow = False
    parameters = {"resume": run_id[5:], "sink": str(tmp_path / "lake")}
    _, third = stack.create_run("process-corpus", parameters)
    ended = stack.wait(third["id"])
    assert ended["state"]["name"] == "Completed", ended["state"]
    assert check_complete(tmp_path) == run_id
    # It crashed as well, and was left to a person.
    assert len(stack.runs("resume-crashed")) == 1
    _, refused = stack.create_run("process-corpus", {**parameters, "limit": 3, "run_id": "mine"})
    state = stack.wait(refused["id"])["state"]
    assert state["type"] == "FAILED"
    assert "limit, run_id: cannot change when a run goes on" in state["message"]
    _, refused = stack.create_run("process-corpus", {**parameters, "resume": "../etc"})
    assert "does not match" in refused


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "killed",
    [
        pytest.param(["worker"], id="worker"),
        pytest.param(["worker", "prefect", "reports"], id="machine", marks=pytest.mark.slow),
    ],
)
def test_run_without_heartbeat_is_crashed_and_gone_on_with_when_up_again(
    stack, tmp_path, engine, killed
):
    api, before = f"http://127.0.0.1:{stack.port}/api", len(stack.runs("resume-crashed"))
    # Prefect beats no faster than every 30 s: this run is killed before its second heartbeat.
    automate(api, missing_s=20)
    shown = stack.up()
    first = start(stack, tmp_path, engine)
    until(lambda: len(engine.calls) > 3)
    until(lambda: stack.heartbeats(first))
    kill([*below(shown["worker"]["pid"]), *(shown[name]["pid"] for name in killed)])
    engine.slow = False
    if "prefect" in killed:
        begin_earlier(stack, first)
        again = stack.up("--port", stack.port)
        assert [again[name]["state"] for name in killed] == ["started"] * 3
    crashed = stack.wait(first)
    assert crashed["state"]["name"] == "Crashed"
    assert "no heartbeat for 20 s" in crashed["state"]["message"]
    assert stack.deployment("process-corpus")["global_concurrency_limit"]["active_slots"] == 0
    until(lambda: len(stack.runs("resume-crashed")) > before)
    automate(api)
    stack.first = stack.up("--port", stack.port)
    second = next(
        run for run in stack.runs("resume-crashed") if run["parameters"]["flow_run"] == first
    )
    ended = stack.wait(second["id"])
    assert ended["state"]["name"] == "Completed", ended["state"]
    assert check_complete(tmp_path) == crashed["labels"]["headrace.run"]


def test_automations_are_two_and_stay_off_when_put_again(stack):
    api = f"http://127.0.0.1:{stack.port}/api"
    chosen = {"automations": {"name": {"any_": [MARK_DEAD, GO_ON]}}}
    held = {item["name"]: item for item in stack.api("automations/filter", chosen)[1]}
    off = f"automations/{held[GO_ON]['id']}"
    assert stack.api(off, {"enabled": False}, method="PATCH")[0] == 204
    automate(api)
    again = stack.api("automations/filter", chosen)[1]
    assert {item["name"]: item["enabled"] for item in again} == {MARK_DEAD: True, GO_ON: False}
    stack.api(off, {"enabled": True}, method="PATCH")
    mark = next(item for item in again if item["name"] == MARK_DEAD)
    assert mark["trigger"]["within"] == 90
