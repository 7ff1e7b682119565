"""Calls that a person has to agree to: one decision is on one call, and what is shown is what is called."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from dataclasses import asdict

import pytest
from typer.testing import CliRunner

from connectors.sinks.lake import Lake
from engine.modes.mode import AwaitingApproval
from engine.request import Request
from engine.steps import AskedCall
from engine.tool import ToolSpec
from flows.cli import app
from flows.report.words import approval_story, shown_arguments
from flows.run.approvals import (
    Question,
    SinkApproval,
    decide,
    find_decision,
    question_path,
    questions,
    summary,
)
from tests.flows.stack_client import HEADRACE

REQUEST = Request(
    request_key="key",
    stage="work",
    mode="agent",
    instructions="",
    material="",
    question="",
    schema={},
    max_output_tokens=10,
)
CALL = AskedCall(call_id="functions.mail__send:0", name="mail__send", arguments="{}")
SPEC = ToolSpec(name="mail__send", description="Sends it.", parameters={"type": "object"})


def test_decision_holds_for_the_call_it_was_on_and_not_for_one_of_an_agent_that_began_anew(
    tmp_path,
):
    lake = Lake(str(tmp_path))
    approval = SinkApproval(lake, "run", None)

    def ask(written_at):
        return asyncio.run(approval.decide(REQUEST, CALL, SPEC, written_at=written_at))

    with pytest.raises(AwaitingApproval):
        ask(1.5)
    ((question, _),) = questions(lake, "run")
    decide(lake, "run", question, is_approved=True, reason="")
    assert ask(1.5).is_approved
    with pytest.raises(AwaitingApproval):
        ask(2.5)
    assert [decision is None for _, decision in questions(lake, "run")].count(True) == 1


def test_work_goes_on_while_a_person_thinks_about_many_calls(tmp_path):
    goes_on = threading.Event()

    def think(_question):
        return goes_on.wait(20), ""

    approval = SinkApproval(Lake(str(tmp_path)), "run", think)

    async def work():
        asked = [
            asyncio.ensure_future(approval.decide(REQUEST, CALL, SPEC, written_at=float(number)))
            for number in range(100)
        ]
        await asyncio.sleep(0.05)
        # What flushes the journal runs in such a thread; it ends before anybody has decided.
        async with asyncio.timeout(10):
            await asyncio.to_thread(goes_on.set)
        return await asyncio.gather(*asked)

    assert all(decided.is_approved for decided in asyncio.run(work()))


def test_arguments_are_shown_without_what_a_terminal_would_obey():
    hidden = '{"sql": "DROP\u009b2K\u202e\u200b é 日本"}'
    assert shown_arguments(hidden) == '{"sql": "DROP\\x9b2K\\u202e\\u200b é 日本"}'
    assert shown_arguments('{\n  "a": 1\r}') == '{\n  "a": 1\\r}'


def test_what_a_person_types_is_kept_as_a_line_that_no_terminal_obeys(tmp_path):
    lake = Lake(str(tmp_path))
    question = Question(approval_id="1", stage="work", tool=None, description="?", asked_at="2026")
    lake.put_json(question_path("run", "1"), asdict(question))
    typed = "too dear\x1b[2K\n\nask again"
    decide(lake, "run", question, is_approved=False, reason=typed, by="ada\r\nbo")
    stands = find_decision(lake, "run", "1")
    assert (stands.by, stands.reason) == ("ada\\r bo", "too dear\\x1b[2K ask again")


def test_calls_that_wait_are_told_since_the_first_of_them():
    waiting = [
        (
            Question(
                approval_id=at, stage="work", tool="send", description="", asked_at=f"2026-11-{at}"
            ),
            None,
        )
        for at in ("23", "27")
    ]
    (one,) = summary(waiting)
    assert approval_story(one) == "stage work, 2 calls of send: waiting since 2026-11-23"


@pytest.fixture
def asked(tmp_path):
    """A sink with a call that waits, and the question on it."""
    lake = Lake(str(tmp_path))
    with pytest.raises(AwaitingApproval):
        asyncio.run(SinkApproval(lake, "run", None).decide(REQUEST, CALL, SPEC, written_at=1.5))
    ((question, _),) = questions(lake, "run")
    return lake, question


def agree(lake, question):
    return decide(lake, "run", question, is_approved=True, reason="", by="ada")


def test_whoever_decides_second_is_told_which_decision_stands(asked, tmp_path):
    lake, question = asked
    command = ["approve", "run", f"--sink={tmp_path}"]
    thinking = subprocess.Popen(
        [HEADRACE, *command],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    shown = ""
    while "Agree?" not in shown:
        letter = thinking.stderr.read(1)
        assert letter, shown
        shown += letter
    stands = agree(lake, question)
    meanwhile, _ = thinking.communicate("n\nnot this one\n")
    told = f"({question.approval_id}): approved by ada at {stands.decided_at}"
    assert f"mail__send of stage work {told}" in meanwhile
    for more in (["--no"], ["--no", "--id", question.approval_id]):
        late = CliRunner().invoke(app, [*command, *more])
        assert told in late.stdout
        assert "nothing waits" in late.stdout
    assert told not in CliRunner().invoke(app, [*command, "--yes"]).stdout


def test_whoever_decides_first_is_told_of_no_other_decision(asked, tmp_path):
    result = CliRunner().invoke(app, ["approve", "run", f"--sink={tmp_path}", "--no"])
    assert result.exit_code == 0, result.output
    assert "stands" not in result.stdout
    ((_, decision),) = questions(Lake(str(tmp_path)), "run")
    assert not decision.is_approved
