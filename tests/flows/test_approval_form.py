"""Flow runs that are suspended until a person has filled in a form, on a real `headrace up`."""

import json
import os
import signal
import time
from collections import Counter
from dataclasses import replace

import polars as pl
import pytest

from flows.approval_form import _MOST_ASKED, _listed, told
from flows.automations import mark_dead
from flows.run.approvals import Question
from tests.fakes.engine_server import FakeEngine
from tests.flows.stack_client import Stack, below, write_files

NUM_FILES = 4


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = Stack(tmp_path_factory.mktemp("up"))
    stack.first = stack.up("--port", stack.port)
    yield stack
    stack.headrace("down")


def start(stack, tmp_path, engine, *held, **more):
    parameters = {
        "source": str(write_files(tmp_path / "source", NUM_FILES)),
        "sink": str(tmp_path / "lake"),
        "engine_url": engine.url,
        "settings": [f"stages.{stage}.approval=required" for stage in held],
        **more,
    }
    status, run = stack.create_run("process-corpus", parameters)
    assert status == 201, run
    return run["id"]


def form(stack, flow_run):
    """Return schema and description of the form that a flow run is suspended with."""
    keys = flow_run["state"]["state_details"]["run_input_keyset"]
    path = f"flow_runs/{flow_run['id']}/input"
    # It is put there behind the state.
    deadline = time.monotonic() + 20
    found = [stack.api(f"{path}/{keys[name]}") for name in ("schema", "description")]
    while any(status != 200 for status, _ in found) and time.monotonic() < deadline:
        time.sleep(0.2)
        found = [stack.api(f"{path}/{keys[name]}") for name in ("schema", "description")]
    return [value for _, value in found]


def answer(stack, flow_run_id, **given):
    return stack.api(f"flow_runs/{flow_run_id}/resume", {"run_input": given})


def ends(tmp_path, stage):
    rows = pl.read_parquet(f"{tmp_path}/lake/records/stage={stage}/*.parquet")
    return dict(Counter(zip(rows["outcome"], rows["error_class"], strict=True)))


def manifest(tmp_path):
    (path,) = (tmp_path / "lake" / "runs").glob("*/manifest.json")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.timeout(180)
def test_suspended_run_goes_on_on_another_worker_when_the_form_is_filled_in(stack, tmp_path):
    with FakeEngine() as engine:
        run_id = start(stack, tmp_path, engine, "merge")
        held = stack.wait(run_id, {"PAUSED", "FAILED", "CRASHED", "COMPLETED"})
        assert held["state"]["name"] == "Suspended"
        assert ends(tmp_path, "merge") == {("over_budget", "awaiting_approval"): NUM_FILES}
        first = manifest(tmp_path)
        num_paid = len(engine.calls)
        schema, description = form(stack, held)
        assert {"decision", "your_name"} <= set(schema["required"])
        assert schema["properties"]["decision"]["enum"] == ["agree", "refuse"]
        assert len(schema["properties"]["only"]["items"]["enum"]) == 1
        assert f"stage `merge`, {NUM_FILES} requests about {NUM_FILES} documents" in description
        assert first["run_id"] in description

        # Nothing of the run is left but what the sink and the server have.
        deadline = time.monotonic() + 30
        while below(stack.first["worker"]["pid"]):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        os.kill(stack.first["worker"]["pid"], signal.SIGKILL)
        stack.first = stack.up()

        _, refused = answer(stack, run_id, decision="agree")
        assert refused["status"] == "REJECT"
        assert "your_name" in refused["details"]["reason"]
        _, taken = answer(stack, run_id, decision="agree", your_name="Ada", reason="small")
        assert taken["status"] == "ACCEPT"
        ended = stack.wait(run_id, limit_s=90)
        assert ended["state"]["name"] == "Completed", ended["state"]
        assert len(engine.calls) > num_paid
        assert set(Counter(map(json.dumps, engine.calls)).values()) == {1}
    last = manifest(tmp_path)
    assert last["run_id"] == first["run_id"]
    assert last["verdict"] == "complete"
    (decided,) = last["approvals"]
    assert (decided["stage"], decided["decision"]) == ("merge", "approved")
    assert (decided["by"], decided["reason"]) == ("Ada (form in Prefect)", "small")
    assert stack.artifacts(run_id)["approvals"]


@pytest.mark.timeout(180)
def test_first_decision_stands_when_form_and_command_disagree(stack, tmp_path):
    with FakeEngine() as engine:
        run_id = start(stack, tmp_path, engine, "digest", "topic", "merge")
        stack.wait(run_id, {"PAUSED", "FAILED", "CRASHED", "COMPLETED"})
        run, sink = manifest(tmp_path)["run_id"], f"--sink={tmp_path / 'lake'}"
        shown = json.loads(stack.headrace("approve", run, sink, "--json").stdout)["questions"]
        ids = {one["stage"]: one["approval_id"] for one in shown}
        assert set(ids) == {"digest", "topic"}
        no = stack.headrace("approve", run, sink, "--id", ids["topic"], "--no", "--reason", "dear")
        assert no.returncode == 0, no.stderr
        answer(stack, run_id, decision="agree", your_name="Ada")
        # What needs the first stage waits in its turn.
        stack.wait(run_id, {"PAUSED", "FAILED", "CRASHED", "COMPLETED"}, limit_s=90)
        answer(stack, run_id, decision="refuse", your_name="Bob", reason="enough")
        ended = stack.wait(run_id, limit_s=90)
        assert ended["state"]["name"] == "Completed", ended["state"]
        assert len(engine.calls) == NUM_FILES
    assert ends(tmp_path, "digest") == {("succeeded", None): NUM_FILES}
    assert ends(tmp_path, "topic") == {("skipped", "refused"): NUM_FILES}
    assert ends(tmp_path, "merge") == {("skipped", "refused"): NUM_FILES}
    decided = {one["stage"]: one for one in manifest(tmp_path)["approvals"]}
    assert (decided["topic"]["decision"], decided["topic"]["reason"]) == ("refused", "dear")
    assert (decided["digest"]["decision"], decided["digest"]["by"]) == (
        "approved",
        "Ada (form in Prefect)",
    )
    assert decided["merge"]["by"] == "Bob (form in Prefect)"


@pytest.mark.timeout(120)
def test_run_ends_at_once_when_nobody_is_to_be_waited_for(stack, tmp_path):
    with FakeEngine() as engine:
        run_id = start(stack, tmp_path, engine, "merge", approval_hours=0)
        ended = stack.wait(run_id)
    assert ended["state"]["name"] == "AwaitingApproval"
    assert "headrace approve" in ended["state"]["message"]


def test_run_without_heartbeat_is_not_taken_for_dead_while_it_is_suspended():
    assert "prefect.flow-run.Suspended" in mark_dead()["trigger"]["expect"]


def call(number, arguments):
    return Question(
        approval_id=f"{number:010d}",
        stage="work",
        tool="mail__send`x",
        description="Sends it.",
        arguments=arguments,
        asked_at="2026-11-27T12:00:00+00:00",
    )


def test_form_of_a_stage_shows_what_it_asks():
    question = replace(call(1, ""), tool=None, description="Which colour?\n```\n# Agree")
    assert told(question).endswith("\n````\nWhich colour?\n```\n# Agree\n````")


def test_form_shows_as_many_as_a_person_can_read_and_none_in_part():
    assert len(_listed([call(number, "{}") for number in range(50)])) == _MOST_ASKED
    long = [call(number, "x" * 50_000) for number in range(3)]
    assert _listed(long) == long[:1]
    assert "x" * 50_000 in told(long[0])


def test_what_a_model_wrote_cannot_leave_its_block_when_it_is_shown():
    arguments = '{"body": "```\\n# Agree\\n````"}\n````\n**agree** <b>'
    head, fence, *lines = told(call(7, arguments + "\u202e")).replace("\n\n", "\n").split("\n")
    assert head == "**`0000000007`**: an agent of stage `work` wants to call `` mail__send`x ``:"
    assert fence == lines[-1] == "`````"
    assert "\n".join(lines[:-1]) == arguments + "\\u202e"
