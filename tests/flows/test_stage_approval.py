"""Stages that a person must agree to: nothing of them goes out before, whatever becomes of the run."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from config.errors import ConfigError
from connectors.sinks.lake import Lake
from flows.artifacts import describe
from flows.cli import app
from flows.report.words import waiting_words
from flows.run.approvals import Waiting, decide, questions
from flows.run.core import run_job
from flows.run.job import Options, make_job
from flows.run.progress import Progress
from flows.run.resume import reopen, with_pipeline
from flows.terminal import print_summary
from tests.fakes.engine_server import FakeEngine, Fault
from tests.flows.notes import write_notes

HEADRACE = Path(sys.executable).with_name("headrace")
NUM_FILES = 6
PIPELINE = """
name: notes
documents_per_shard: 3
stages:
  - {name: kind, prompt: What is it?, output: {kind: a|b|c}}
  - {name: weight, needs: [kind], approval: required, prompt: How heavy is it?, output: {weight: light|heavy}}
  - {name: title, over: document, needs: [weight], prompt: Which line?, output: {title: string}}
  - {name: colour, prompt: Which colour?, output: {colour: string}}
  - {name: all, over: corpus, needs: [colour], approval: required, prompt: What is it about?, output: {about: string}}
"""
QUESTIONS = {
    "kind": "What is it?",
    "weight": "How heavy is it?",
    "colour": "Which colour?",
    "all": "What is it about?",
}


@pytest.fixture
def corpus(tmp_path):
    return write_notes(tmp_path, PIPELINE, NUM_FILES)


def job(corpus, engine, *settings):
    options = Options(
        source=str(corpus / "in"), sink=str(corpus / "lake"), engine=engine.url, settings=settings
    )
    return make_job(corpus / "notes.yaml", options)


def command(corpus, engine, *more):
    """Return the command that runs `notes.yaml` in a process of its own."""
    places = f"--source={corpus / 'in'}", f"--sink={corpus / 'lake'}", f"--engine={engine.url}"
    return [HEADRACE, "run", str(corpus / "notes.yaml"), *places, *more]


def asked(engine):
    """Return how often each stage was asked whose every question is of its own."""
    texts = [json.dumps(call["messages"]) for call in engine.calls]
    return {name: sum(QUESTIONS[name] in text for text in texts) for name in QUESTIONS}


def rows(corpus, stage):
    return pl.read_parquet(f"{corpus}/lake/records/stage={stage}/*.parquet")


def ends(corpus, stage):
    table = rows(corpus, stage)
    return dict(Counter(zip(table["outcome"], table["error_class"], strict=True)))


def found(corpus, run_id):
    lake = Lake(str(corpus / "lake"))
    return {question.stage: (question, decision) for question, decision in questions(lake, run_id)}


def settle(corpus, run_id, stage, *, is_approved, reason=""):
    question, _ = found(corpus, run_id)[stage]
    lake = Lake(str(corpus / "lake"))
    return decide(lake, run_id, question, is_approved=is_approved, reason=reason, by="ada")


def test_nothing_of_a_stage_goes_out_before_a_person_has_agreed(corpus, engine):
    first = run_job(job(corpus, engine))
    assert first["verdict"] == "awaiting_approval"
    assert asked(engine) == {"kind": 6, "weight": 0, "colour": 6, "all": 0}
    assert ends(corpus, "weight") == {("over_budget", "awaiting_approval"): 6}
    assert ends(corpus, "title") == {("skipped", "upstream_over_budget"): 6}
    assert ends(corpus, "all") == {("over_budget", "awaiting_approval"): 1}
    assert first["stages"]["weight"]["waiting"] == {"awaiting_approval": 6}
    assert {one["stage"]: one["decision"] for one in first["approvals"]} == {
        "weight": "waiting",
        "all": "waiting",
    }
    question, decision = found(corpus, first["run_id"])["weight"]
    assert decision is None
    assert (question.waiting.requests, question.waiting.documents) == (6, 6)
    assert question.waiting.prompt_tokens > 6
    (place,) = question.builds_on
    assert pl.read_parquet(place).height == NUM_FILES

    settle(corpus, first["run_id"], "weight", is_approved=True, reason="small")
    second = run_job(reopen(first["run_id"], None, "resume"))
    assert second["verdict"] == "awaiting_approval"
    assert asked(engine) == {"kind": 6, "weight": 6, "colour": 6, "all": 0}
    settle(corpus, first["run_id"], "all", is_approved=True)
    last = run_job(reopen(first["run_id"], None, "resume"))
    assert last["verdict"] == "complete"
    assert asked(engine) == {"kind": 6, "weight": 6, "colour": 6, "all": 1}
    told = {one["stage"]: one for one in last["approvals"]}
    assert (told["weight"]["decision"], told["weight"]["by"]) == ("approved", "ada")
    assert told["weight"]["reason"] == "small"
    assert told["weight"]["at"]


def test_what_waits_for_a_person_is_told_so_and_not_as_out_of_money(corpus, engine, capsys):
    said = []
    progress = Progress(lambda snapshot: said.append(describe("r", snapshot)))
    first = run_job(job(corpus, engine), progress=progress)
    assert "7 waiting for approval" in said[-1]
    print_summary(first)
    shown = capsys.readouterr().out
    assert "6 waiting for approval" in shown
    assert "stage weight: waiting since 20" in shown
    folder = corpus / "lake" / "reports" / first["run_id"]
    page, report = ((folder / n).read_text(encoding="utf-8") for n in ("index.html", "report.md"))
    assert "6 waiting for an earlier stage" in report
    for text in (page, report, shown, said[-1]):
        assert "waiting for approval" in text
        assert "over_budget" not in text
        assert "over budget" not in text.replace("over budget, in a batch, or waiting", "")


def test_refused_stage_is_skipped_with_who_refused_it_and_the_next_run_asks_again(corpus, engine):
    first = run_job(job(corpus, engine))
    settle(corpus, first["run_id"], "weight", is_approved=False, reason="too dear")
    settle(corpus, first["run_id"], "all", is_approved=False)
    done = run_job(reopen(first["run_id"], None, "resume"))
    assert done["verdict"] == "complete"
    assert ends(corpus, "weight") == {("skipped", "refused"): 6}
    assert ends(corpus, "title") == {("skipped", "no_input"): 6}
    assert ends(corpus, "all") == {("skipped", "refused"): 1}
    (error,) = set(rows(corpus, "weight")["error"])
    assert error.startswith("ada refused stage 'weight' at 20")
    assert error.endswith(": too dear")
    assert done["stages"]["weight"]["skipped"] == {"refused": 6}
    assert asked(engine) == {"kind": 6, "weight": 0, "colour": 6, "all": 0}

    again = run_job(job(corpus, engine))
    assert again["verdict"] == "awaiting_approval"
    assert {question for question, (_, d) in found(corpus, again["run_id"]).items() if not d} == {
        "weight",
        "all",
    }
    for stage in ("weight", "all"):
        settle(corpus, again["run_id"], stage, is_approved=True)
    last = run_job(reopen(again["run_id"], None, "resume"))
    assert last["verdict"] == "complete"
    assert asked(engine) == {"kind": 6, "weight": 6, "colour": 6, "all": 1}


def test_whoever_looks_on_is_asked_when_all_that_waits_is_known(corpus, engine):
    told = []

    def ask(question):
        told.append((question.stage, question.waiting.requests, asked(engine)["kind"]))
        return question.stage == "weight", "not now"

    done = run_job(job(corpus, engine), ask=ask)
    assert told == [("weight", 6, 6), ("all", 1, 6)]
    assert done["verdict"] == "complete"
    assert ends(corpus, "weight") == {("succeeded", None): 6}
    assert ends(corpus, "title") == {("succeeded", None): 6}
    assert ends(corpus, "all") == {("skipped", "refused"): 1}


def test_what_is_decided_while_the_run_goes_on_goes_out_in_the_same_run(corpus):
    def agree():
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for path in (corpus / "lake" / "runs").glob("*/approvals/*.json"):
                settle(corpus, path.parent.parent.name, "weight", is_approved=True)
                return
            time.sleep(0.02)

    person = threading.Thread(target=agree)
    person.start()
    with FakeEngine(latency_s=0.4) as engine:
        done = run_job(job(corpus, engine, "stages.all.approval=null"))
    person.join()
    assert done["verdict"] == "complete"
    assert ends(corpus, "weight") == {("succeeded", None): 6}
    assert asked(engine) == {"kind": 6, "weight": 6, "colour": 6, "all": 1}


def test_answers_that_the_sink_has_need_nobodys_agreement(corpus, engine):
    run_job(job(corpus, engine, "stages.weight.approval=null", "stages.all.approval=null"))
    before = asked(engine)
    text = PIPELINE.replace("Which colour?", "Which hue?")
    (corpus / "notes.yaml").write_text(text, encoding="utf-8")
    # All shards are gone through again, since what they ask has changed.
    again = run_job(job(corpus, engine, "stages.all.approval=null"))
    assert again["verdict"] == "complete"
    assert sum("Which hue?" in json.dumps(call["messages"]) for call in engine.calls) == NUM_FILES
    assert asked(engine)["weight"] == before["weight"]
    assert again["approvals"] == []


@pytest.mark.timeout(120)
def test_decision_and_question_outlast_kills(corpus):
    with FakeEngine(latency_s=0.3) as slow:
        process = subprocess.Popen(
            command(corpus, slow, "--json"),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        folder = corpus / "lake" / "runs"
        deadline = time.monotonic() + 60
        while not [*folder.glob("*/approvals/*.json")] and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        (path,) = folder.glob("*/approvals/*.json")
        run_id = path.parent.parent.name
        assert asked(slow)["weight"] == 0
        # Decided while nobody runs.
        sink = f"--sink={corpus / 'lake'}"
        result = CliRunner().invoke(app, ["approve", run_id, sink, "--yes", "--json"])
        assert result.exit_code == 0, result.output
        (question,) = json.loads(result.stdout)["questions"]
        assert (question["stage"], question["tool"]) == ("weight", None)
        waiting = run_job(reopen(run_id, str(corpus / "lake"), "resume"))
        assert waiting["verdict"] == "awaiting_approval"
        assert ends(corpus, "weight") == {("succeeded", None): 6}
        assert asked(slow)["weight"] == 6
        assert asked(slow)["all"] == 0
    with FakeEngine() as engine:
        settle(corpus, run_id, "all", is_approved=True)
        again = Options(engine=engine.url)
        last = run_job(reopen(run_id, str(corpus / "lake"), "resume", again))
    assert last["verdict"] == "complete"
    assert asked(engine) == {"kind": 0, "weight": 0, "colour": 0, "all": 1}


@pytest.mark.timeout(120)
def test_person_at_the_terminal_is_asked_with_what_waits_and_what_it_builds_on(corpus, engine):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(corpus, engine),
        stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, start_new_session=True,
        env=os.environ | {"TERM": "dumb"},
    )  # fmt: skip
    os.close(theirs)
    answers = [b"y\n", b"n\n", b"too dear\n"]
    shown = b""
    with suppress(OSError):
        # Each prompt ends with a colon and a blank, and nothing comes behind it.
        while more := os.read(ours, 4096):
            shown += more
            if answers and shown.endswith(b": "):
                os.write(ours, answers.pop(0))
    out, _ = process.communicate()
    os.close(ours)
    assert answers == [], shown.decode()
    assert process.returncode == 0, shown.decode()
    text = " ".join(shown.decode().split())
    assert "Stage weight waits for you" in text
    assert "6 requests about 6 documents" in text
    assert "it asks: How heavy is it?" in text
    assert f"it builds on {corpus}/lake/records/stage=kind/*.parquet" in text
    assert ends(corpus, "weight") == {("succeeded", None): 6}
    assert ends(corpus, "all") == {("skipped", "refused"): 1}
    assert "stage all: refused by" in out.decode()
    assert "too dear" in out.decode()


GATHERED = """
name: notes
stages:
  - {name: kind, approval: required, prompt: What is it?, output: {kind: a|b|c}}
  - {name: colour, prompt: Which colour?, output: {colour: string}}
  - name: totals
    over: corpus
    needs: [kind, colour]
    compute: SELECT COUNT(*) AS n FROM colour
    output: {n: integer}
  - {name: summary, over: corpus, needs: [totals], prompt: What is it about?, output: {about: string}}
"""


def test_what_rests_on_a_computed_stage_is_asked_after_all_when_a_person_has_agreed(corpus, engine):
    (corpus / "notes.yaml").write_text(GATHERED, encoding="utf-8")
    first = run_job(job(corpus, engine))
    assert first["verdict"] == "awaiting_approval"
    settle(corpus, first["run_id"], "kind", is_approved=True)
    last = run_job(reopen(first["run_id"], str(corpus / "lake"), "resume"))
    assert last["verdict"] == "complete"
    assert ends(corpus, "summary") == {("succeeded", None): 1}


ESCALATED = """
name: notes
chunk: {{max_tokens: 400}}
stages:
  - {{name: colour, prompt: Which colour?, output: {{colour: string}}{more}}}
"""


@pytest.mark.parametrize("is_approved", [True, False])
def test_doubtful_answers_are_asked_again_only_when_a_person_has_agreed(corpus, is_approved):
    with FakeEngine(script=lambda *_: Fault(content='{"colour": ""}')) as engine:
        (corpus / "notes.yaml").write_text(ESCALATED.format(more=""), encoding="utf-8")
        run_job(job(corpus, engine))
        more = ", approval: required, escalate: {when: [empty], max_share: 1.0}"
        (corpus / "notes.yaml").write_text(ESCALATED.format(more=more), encoding="utf-8")
        first = run_job(job(corpus, engine))
        assert first["verdict"] == "awaiting_approval"
        assert len(engine.calls) == NUM_FILES
        settle(corpus, first["run_id"], "colour", is_approved=is_approved)
        last = run_job(reopen(first["run_id"], str(corpus / "lake"), "resume"))
        # This engine thinks in a turn of its own.
        assert len(engine.calls) == (3 if is_approved else 1) * NUM_FILES
        assert last["verdict"] == "complete"
        assert ends(corpus, "colour") == {("succeeded", None): NUM_FILES}
        # A no is of one run.
        later = run_job(job(corpus, engine))
        assert later["verdict"] == ("complete" if is_approved else "awaiting_approval")


@pytest.mark.parametrize(
    ("left", "is_cached"), [("failed", False), ("invalid_output", False), ("invalid_output", True)]
)
def test_what_a_person_agrees_to_goes_out_whatever_earlier_runs_were_answered(
    corpus, left, is_cached
):
    more = (f"cache={corpus / 'cache'}",) if is_cached else ()
    bad = Fault(content="{}") if left == "invalid_output" else Fault(status=400, body=b"not today")

    def script(_number, body):
        return bad if engine.is_bad and "How heavy" in json.dumps(body["messages"]) else None

    with FakeEngine(script=script) as engine:
        engine.is_bad = True
        settings = "stages.weight.approval=null", "stages.all.approval=null", "failure_limit=1.0"
        run_job(job(corpus, engine, *settings, *more))
        assert {outcome for outcome, _ in ends(corpus, "weight")} == {left}
        engine.is_bad = False
        first = run_job(job(corpus, engine, "stages.all.approval=null", *more))
        if left == "invalid_output":
            # It stands until somebody says that it is to be tried again.
            assert first["verdict"] == "complete"
            first = run_job(reopen(first["run_id"], str(corpus / "lake"), "retry"))
        assert first["verdict"] == "awaiting_approval"
        settle(corpus, first["run_id"], "weight", is_approved=True)
        last = run_job(reopen(first["run_id"], str(corpus / "lake"), "resume"))
        assert last["verdict"] == "complete"
        assert ends(corpus, "weight") == {("succeeded", None): NUM_FILES}


def killed(corpus, engine, when):
    """Run `notes.yaml` without approvals, and kill it as soon as `when` says so."""
    process = subprocess.Popen(
        command(corpus, engine, "--set=stages.colour.approval=null"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not when() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert when()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("is_approved", [True, False])
def test_first_answers_are_not_paid_again_when_their_doubt_waits_for_a_person(corpus, is_approved):
    more = ", approval: required, escalate: {when: [empty], max_share: 1.0}"
    (corpus / "notes.yaml").write_text(ESCALATED.format(more=more), encoding="utf-8")

    def script(number, _body):
        hangs = number >= NUM_FILES and engine.is_slow
        return Fault(hang_s=60) if hangs else Fault(content='{"colour": ""}')

    with FakeEngine(script=script) as engine:
        engine.is_slow = True
        killed(corpus, engine, lambda: len(engine.calls) > NUM_FILES)
        engine.is_slow = False
        before = len(engine.calls)
        first = run_job(job(corpus, engine))
        assert first["verdict"] == "awaiting_approval"
        assert len(engine.calls) == before
        settle(corpus, first["run_id"], "colour", is_approved=is_approved)
        last = run_job(reopen(first["run_id"], str(corpus / "lake"), "resume"))
        # This engine thinks in a turn of its own.
        assert len(engine.calls) - before == (2 if is_approved else 0) * NUM_FILES
    assert last["verdict"] == "complete"
    assert ends(corpus, "colour") == {("succeeded", None): NUM_FILES}


@pytest.mark.timeout(120)
def test_samples_of_a_killed_run_are_not_paid_again_when_a_person_refused_the_others(corpus):
    more = ", approval: required, samples: 2, temperature: 1.0"
    (corpus / "notes.yaml").write_text(ESCALATED.format(more=more), encoding="utf-8")

    def script(number, _body):
        return Fault(hang_s=60) if number >= answered and engine.is_slow else None

    answered = 3
    with FakeEngine(script=script) as engine:
        engine.is_slow = True
        journal = corpus / "lake" / "_headrace" / "journal"

        def has_kept():
            return answered == sum(f.read_text().count('"result"') for f in journal.glob("*/*"))

        killed(corpus, engine, has_kept)
        engine.is_slow = False
        before = len(engine.calls)
        for is_approved, outcome in ((False, ("skipped", "refused")), (True, ("succeeded", None))):
            first = run_job(job(corpus, engine))
            assert first["verdict"] == "awaiting_approval"
            settle(corpus, first["run_id"], "colour", is_approved=is_approved)
            last = run_job(reopen(first["run_id"], str(corpus / "lake"), "resume"))
            assert last["verdict"] == "complete"
            assert outcome in ends(corpus, "colour")
        assert ends(corpus, "colour") == {("succeeded", None): NUM_FILES}
        assert len(engine.calls) - before == 2 * NUM_FILES - answered


@pytest.mark.parametrize("is_decided", [True, False])
def test_changed_stage_is_asked_about_anew(corpus, engine, is_decided):
    first = run_job(job(corpus, engine))
    before, _ = found(corpus, first["run_id"])["weight"]
    if is_decided:
        settle(corpus, first["run_id"], "weight", is_approved=True)
    text = PIPELINE.replace("How heavy is it?", "How heavy is it now?")
    (corpus / "notes.yaml").write_text(text, encoding="utf-8")
    same = reopen(first["run_id"], str(corpus / "lake"), "resume")
    again = run_job(with_pipeline(same, str(corpus / "notes.yaml"), accept_changes=True))
    assert again["verdict"] == "awaiting_approval"
    assert ends(corpus, "weight") == {("over_budget", "awaiting_approval"): NUM_FILES}
    lake = Lake(str(corpus / "lake"))
    asked_about = {
        (question.description, decision is None)
        for question, decision in questions(lake, first["run_id"])
        if question.stage == "weight"
    }
    # Which of them stands for what is on record; what nobody has answered is asked in one way only.
    old = {(before.description, False)} if is_decided else set()
    assert asked_about == old | {("How heavy is it now?", True)}


def test_question_is_withdrawn_when_its_stage_waits_for_nobody_any_more(corpus, engine):
    first = run_job(job(corpus, engine))
    old, _ = found(corpus, first["run_id"])["weight"]
    text = PIPELINE.replace("needs: [kind], approval: required,", "needs: [kind],")
    (corpus / "notes.yaml").write_text(text, encoding="utf-8")
    same = reopen(first["run_id"], str(corpus / "lake"), "resume")
    again = run_job(with_pipeline(same, str(corpus / "notes.yaml"), accept_changes=True))
    assert [one["stage"] for one in again["approvals"]] == ["all"]
    assert ends(corpus, "weight") == {("succeeded", None): NUM_FILES}
    with pytest.raises(ConfigError, match="stage 'weight' was changed after it was asked about"):
        decide(Lake(str(corpus / "lake")), first["run_id"], old, is_approved=True, reason="")


def test_budget_that_is_reached_is_told_before_what_waits_for_a_person(corpus, engine):
    manifest = run_job(job(corpus, engine, "budget.tokens=1500"))
    assert manifest["verdict"] == "budget_reached"
    # Whoever is asked sees all that waits so far.
    question, _ = found(corpus, manifest["run_id"])["weight"]
    assert question.waiting.requests == ends(corpus, "weight")["over_budget", "awaiting_approval"]


def test_approval_that_is_no_approval_is_refused(corpus, engine):
    text = PIPELINE.replace("approval: required, prompt: How", "approval: [kind], prompt: How")
    (corpus / "notes.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="approval"):
        job(corpus, engine)


def test_what_waits_is_told_in_words():
    waiting = Waiting(
        requests=2, documents=1, prompt_tokens=1200, max_output_tokens=512, max_usd=0.5
    )
    assert waiting_words(waiting) == (
        "2 requests about 1 document, 1,200 prompt tokens, answers up to 512, first calls at most 0.5000 USD"
    )
