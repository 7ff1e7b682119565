"""Flow runs that wait for a person, on a real Prefect server; what a worker would run is run here."""

import json
import os
import subprocess
import time

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.context import refresh_global_settings_context
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow
from prefect.states import AwaitingRetry, Crashed

from connectors.sinks.lake import Lake
from flows.approval_form import RUN_LABEL, SINK_LABEL, suspend, take_answer
from flows.corpus import process_corpus, resume_crashed
from flows.run.approvals import Question, decide, question_path, questions
from flows.run.core import run_job
from flows.run.job import Options, make_job
from flows.run.resume import manifest_path
from tests.fakes.agent_faults import Latency
from tests.fakes.agent_script import ScriptedCall, ScriptedReply, Transcript
from tests.fakes.agent_server import AgentServer
from tests.flows.stack_client import HEADRACE, write_files
from tests.flows.test_agents import PROFILE


@pytest.fixture
def client(prefect, monkeypatch):
    # In the environment, since threads of a flow see no other settings.
    for name, value in prefect.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PREFECT_LOGGING_TO_API_ENABLED", "false")
    refresh_global_settings_context()
    with get_client(sync_client=True) as client:
        yield client
    monkeypatch.undo()
    refresh_global_settings_context()


@pytest.fixture
def lake(tmp_path):
    return Lake(str(tmp_path / "lake"))


def ask(lake, approval_id):
    question = Question(
        approval_id=approval_id,
        stage="work",
        tool="mail__send",
        description="Sends it.",
        arguments="{}",
        asked_at="2026-11-27T12:00:00+00:00",
    )
    value = {name: getattr(question, name) for name in question.__dataclass_fields__}
    lake.put_json(question_path("run", approval_id), value)


def deployed(client, called, **parameters):
    """Return a flow run of a deployment, and what runs it as a worker's process does."""
    deployment = client.create_deployment(client.create_flow(called), "waits")
    made = client.create_flow_run_from_deployment(deployment, parameters=parameters)

    def process():
        return run_flow(called, flow_run=client.read_flow_run(made.id))

    return made.id, process


def fill_in(client, flow_run_id, **given):
    taken = client.resume_flow_run(flow_run_id, {"your_name": "Ada", **given})
    assert taken.status.value == "ACCEPT", taken


def test_answer_reaches_the_sink_when_the_page_could_not_be_labelled(client, lake):
    @flow(persist_result=False)
    def wait():
        suspended = take_answer()
        if suspended is None:
            suspend("run", lake.url, hours=1, report="report.html")
        return suspended

    ask(lake, "0000000001")
    flow_run_id, process = deployed(client, wait)
    with pytest.raises(Pause):
        process()
    fill_in(client, flow_run_id, decision="agree", reason="small")
    assert process() == ("run", lake.url)
    ((_, decision),) = questions(lake, "run")
    assert (decision.is_approved, decision.by) == (True, "Ada (form in Prefect)")


def test_retry_goes_on_with_the_run_and_shows_a_form_of_its_own(client, lake):
    @flow(persist_result=False)
    def wait():
        found.append(take_answer())
        suspend("run", lake.url, hours=1, report="report.html")

    found = []
    ask(lake, "0000000001")
    flow_run_id, process = deployed(client, wait)
    with pytest.raises(Pause):
        process()
    fill_in(client, flow_run_id, decision="agree")
    process()
    assert client.read_flow_run(flow_run_id).state.is_completed()

    ask(lake, "0000000002")
    # As the button of Prefect's page does it.
    client.set_flow_run_state(flow_run_id, AwaitingRetry())
    with pytest.raises(Pause):
        process()
    shown = client.read_flow_run(flow_run_id).state.state_details.run_input_keyset
    assert "0000000002" in client.read_flow_run_input(flow_run_id, shown["schema"])
    fill_in(client, flow_run_id, decision="refuse", reason="enough")
    process()
    assert found == [None, *[("run", lake.url)] * 3]
    decided = {asked.approval_id: decision for asked, decision in questions(lake, "run")}
    assert decided["0000000001"].is_approved
    assert (decided["0000000002"].is_approved, decided["0000000002"].reason) == (False, "enough")


WORK = """\
name: work
stages:
  - name: kind
    mode: agent
    over: chunk
    tools: [read]
    approve_calls: [read]
    prompt: What is it?
    output: {says: string}
"""


class ReadsOne:
    """Wants to read the quick document, and knows the slow one."""

    def reply(self, body):
        sent = Transcript(body)
        if "quick.txt" in sent.notes and sent.tools and not sent.calls:
            return ScriptedReply(calls=[ScriptedCall("read", {"document": "D1"})])
        return ScriptedReply(content=json.dumps({"says": "a text"}), reasoning="Done.")


class SlowForOne(Latency):
    """Leaves a person time to decide while the run goes on."""

    def of(self, body, nth):
        del nth
        return self.median_s if "slow.txt" in json.dumps(body["messages"]) else 0.0


@pytest.mark.timeout(150)
def test_run_goes_on_with_what_was_decided_while_it_did_the_rest(prefect, tmp_path, lake):
    (tmp_path / "in").mkdir()
    for name in ("quick.txt", "slow.txt"):
        (tmp_path / "in" / name).write_text(f"A text, {name}.\n", encoding="utf-8")
    (tmp_path / "work.yaml").write_text(WORK, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    with AgentServer(ReadsOne(), latency=SlowForOne(median_s=8.0)) as server:
        (tmp_path / "scripted.yaml").write_text(PROFILE.format(url=server.url), encoding="utf-8")
        process = subprocess.Popen(
            [
                HEADRACE, "run", tmp_path / "work.yaml", f"--source={tmp_path / 'in'}",
                f"--sink={lake.url}", f"--engine={tmp_path / 'scripted.yaml'}", "--json",
            ],
            env=kept | prefect.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not (found := [*(tmp_path / "lake" / "runs").glob("*/approvals/*.json")]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # It has been looked for, and not been found.
        time.sleep(2)
        assert process.poll() is None
        run_id = found[0].parent.parent.name
        ((question, _),) = questions(lake, run_id)
        decide(lake, run_id, question, is_approved=True, reason="", by="ada")
        told, errors = process.communicate(timeout=90)
    manifest = json.loads(told)
    assert (process.returncode, manifest["verdict"]) == (0, "complete"), errors[-2000:]
    assert manifest["run_id"] == run_id
    assert manifest["stages"]["kind"]["outcomes"] == {"succeeded": 2}


HELD = """\
name: held
stages:
  - {name: kind, approval: required, prompt: What is it?, output: {kind: string}}
"""


@pytest.mark.timeout(120)
def test_answer_counts_when_the_crashed_flow_run_was_deleted_meanwhile(
    client, lake, tmp_path, engine
):
    (tmp_path / "held.yaml").write_text(HELD, encoding="utf-8")
    source = str(write_files(tmp_path / "in", 2))
    options = Options(source=source, sink=lake.url, engine=engine.url)
    run_id = run_job(make_job(tmp_path / "held.yaml", options))["run_id"]
    crashed, _ = deployed(client, process_corpus)
    client.update_flow_run_labels(crashed, {RUN_LABEL: run_id, SINK_LABEL: lake.url})
    client.set_flow_run_state(crashed, Crashed(), force=True)

    flow_run_id, process = deployed(client, resume_crashed, flow_run=str(crashed))
    with pytest.raises(Pause):
        process()
    client.delete_flow_run(crashed)
    fill_in(client, flow_run_id, decision="agree")
    process()
    ((_, decision),) = questions(lake, run_id)
    assert decision.is_approved
    assert lake.find_json(manifest_path(run_id))["verdict"] == "complete"
    assert len(engine.calls) == 2
