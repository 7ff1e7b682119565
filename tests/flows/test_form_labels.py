"""What a flow run keeps of its forms, on a real Prefect server, in this process in place of a worker's."""

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)
from prefect.states import AwaitingRetry

from connectors.sinks.lake import Lake
from flows.approval_form import suspend, take_answer
from flows.run.approvals import Question, question_path, questions


@pytest.fixture
def client(prefect):
    with (
        temporary_settings({
            PREFECT_API_URL: prefect.environment["PREFECT_API_URL"],
            PREFECT_LOGGING_TO_API_ENABLED: False,
        }),
        get_client(sync_client=True) as client,
    ):
        yield client


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


def deployed(client, called):
    """Return a flow run of a deployment, and what runs it as a worker's process does."""
    named = flow(name="form", persist_result=False)(called)
    deployment = client.create_deployment(client.create_flow(named), "form")
    made = client.create_flow_run_from_deployment(deployment)

    def process():
        return run_flow(named, flow_run=client.read_flow_run(made.id))

    return made.id, process


def fill_in(client, flow_run_id, **given):
    taken = client.resume_flow_run(flow_run_id, {"your_name": "Ada", **given})
    assert taken.status.value == "ACCEPT", taken


def test_answer_reaches_the_sink_when_the_page_could_not_be_labelled(client, lake):
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
