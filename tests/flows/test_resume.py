"""Going on with a run: what was answered is not sent again, rows stay one for each."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from config.errors import ConfigError
from config.load import load_surroundings
from flows.run.bench import Bench
from flows.run.core import run_job
from flows.run.job import Options, make_job
from flows.run.registry import find_run, known_runs
from flows.run.resume import reopen
from tests.fakes.engine_server import FakeEngine, Fault
from tests.flows.notes import write_notes

ROOT = Path(__file__).resolve().parent.parent.parent
HEADRACE = Path(sys.executable).with_name("headrace")
NUM_FILES = 24

PIPELINE = """
name: notes
documents_per_shard: 4
stages:
  - {name: kind, prompt: What is it?, output: {kind: a|b|c, says: line}}
  - {name: title, over: document, needs: [kind], prompt: Which line?, output: {title: line}}
"""


@pytest.fixture
def corpus(tmp_path):
    return write_notes(tmp_path, PIPELINE, NUM_FILES)


def job(corpus, engine, **options):
    asked = Options(
        source=str(corpus / "in"), sink=str(corpus / "lake"), engine=engine.url, **options
    )
    return make_job(corpus / "notes.yaml", asked)


def check_rows(corpus, answered):
    for stage in ("kind", "title"):
        rows = pl.read_parquet(f"{corpus}/lake/records/stage={stage}/*.parquet")
        assert rows["row_key"].n_unique() == len(rows) == NUM_FILES
        assert (rows["outcome"] == "succeeded").sum() == answered


def prompts(engine):
    return [json.dumps(call["messages"]) for call in engine.calls]


def test_run_stops_and_goes_on_when_its_budget_is_reached(corpus):
    with FakeEngine() as engine:
        first = run_job(job(corpus, engine, budget_tokens=4_000))
        assert first["verdict"] == "budget_reached"
        assert first["spent"]["tokens"] <= 4_000
        assert first["documents"]["left"] > 0
        asked = len(engine.calls)
        again = run_job(reopen(first["run_id"], None, "resume"))
        assert again["verdict"] == "budget_reached"
        assert len(engine.calls) - asked <= 1
        last = run_job(reopen(None, None, "resume", Options(budget_tokens=1_000_000)))
        assert last["verdict"] == "complete"
        assert last["documents"] == {"listed": NUM_FILES, "read": NUM_FILES}
        # Every question was sent once, over all three attempts.
        assert len(set(prompts(engine))) == len(engine.calls) == 2 * NUM_FILES
        assert last["spent"]["tokens"] == sum(
            stage["prompt_tokens"] + stage["completion_tokens"] for stage in last["stages"].values()
        )
    check_rows(corpus, NUM_FILES)
    attempts = sorted((corpus / "lake" / "runs" / first["run_id"] / "attempts").glob("*.json"))
    assert [json.loads(file.read_text())["verdict"] for file in attempts] == ["budget_reached"] * 2


def test_run_stops_and_goes_on_when_its_time_is_over(corpus, monkeypatch):
    monkeypatch.setattr(Bench, "max_in_flight", 2)
    verdicts = []
    with FakeEngine(latency_s=0.2) as engine:
        found = run_job(job(corpus, engine, settings=("budget.seconds=1",)))
        while found["verdict"] == "budget_reached":
            verdicts.append(found["verdict"])
            found = run_job(reopen(found["run_id"], None, "resume"))
        assert found["verdict"] == "complete"
        assert verdicts
        assert len(set(prompts(engine))) == len(engine.calls) == 2 * NUM_FILES
    check_rows(corpus, NUM_FILES)


def test_only_what_failed_is_asked_again_when_a_run_is_retried(corpus):
    def refuse(_number, body):
        refused = "Note 7 says" in json.dumps(body) and engine.broken
        return Fault(status=422, body=b'{"error": {"message": "no"}}') if refused else None

    with FakeEngine(script=refuse) as engine:
        engine.broken = True
        first = run_job(job(corpus, engine))
        assert first["stages"]["kind"]["outcomes"] == {"failed": 1, "succeeded": NUM_FILES - 1}
        assert [f["error_class"] for f in first["failures"]] == ["request_rejected"]
        assert "07.txt" in first["failures"][0]["example"]
        parts = {
            file: file.stat().st_mtime_ns
            for file in (corpus / "lake" / "records").rglob("*.parquet")
        }
        engine.broken, asked = False, len(engine.calls)
        second = run_job(reopen(first["run_id"], str(corpus / "lake"), "retry"))
        assert second["run_id"] == first["run_id"]
        assert second["verdict"] == "complete"
        assert second["failures"] == []
        again = prompts(engine)[asked:]
        assert len(again) == 2
        assert all("ote 7" in prompt for prompt in again)
    check_rows(corpus, NUM_FILES)
    touched = {file.stem for file, at in parts.items() if file.stat().st_mtime_ns != at}
    assert touched == {"s00001"}


def _num_answered(lake):
    """Return how many answers this machine's journals and the sink's committed shards hold."""
    journals = (load_surroundings().state / "journal").rglob("*.jsonl")
    files = [*journals, *(lake / "_headrace" / "answers").glob("*.jsonl")]
    texts = [file.read_text(encoding="utf-8") for file in files if file.exists()]
    return sum(text.count('"result": ') for text in texts)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_answers_are_kept_and_children_ended_when_a_run_is_stopped(corpus, number, code):
    def slow(index, _body):
        return Fault(hang_s=30, content="{}") if index >= 10 else None

    with FakeEngine(script=slow) as engine:
        process = subprocess.Popen(
            [
                HEADRACE, "run", corpus / "notes.yaml", "--source", corpus / "in",
                "--sink", corpus / "lake", "--engine", engine.url,
            ],
            cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")},
        )  # fmt: skip
        deadline = time.monotonic() + 40
        while len(engine.calls) < 12 or _num_answered(corpus / "lake") < 10:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(number)
        _, told = process.communicate(timeout=5)
        answered = set(prompts(engine)[:10])
    assert process.returncode == code
    run_id = find_run(None).run_id
    assert f"headrace run --resume {run_id}" in told.replace("\n", " ")
    assert "Traceback" not in told
    group = subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, check=False)
    assert group.stdout == b""
    assert known_runs()[0].state == "interrupted"
    with FakeEngine() as engine:
        manifest = run_job(reopen(run_id, None, "resume", Options(engine=engine.url)))
        assert manifest["verdict"] == "complete"
        assert not answered & set(prompts(engine))
    check_rows(corpus, NUM_FILES)


def test_run_is_found_from_elsewhere_when_only_the_sink_is_known(corpus, monkeypatch, tmp_path):
    with FakeEngine() as engine:
        manifest = run_job(job(corpus, engine))
        monkeypatch.setenv("HEADRACE_STATE", str(tmp_path / "elsewhere"))
        with pytest.raises(ConfigError, match="knows no run yet"):
            reopen(None, None, "resume")
        found = reopen(None, str(corpus / "lake"), "resume")
    assert found.run_id == manifest["run_id"]
    assert found.pipeline.stages == job(corpus, engine).pipeline.stages


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 3}, "--limit: cannot change when a run goes on"),
        ({"settings": ("chunk.max_tokens=500",)}, "--set: cannot change"),
    ],
)
def test_option_is_refused_when_a_run_that_goes_on_cannot_change_it(corpus, options, message):
    with FakeEngine() as engine:
        manifest = run_job(job(corpus, engine))
    with pytest.raises(ConfigError, match=message):
        reopen(manifest["run_id"], None, "resume", Options(**options))


def test_chunks_beyond_the_limit_are_rows_with_the_reason_when_one_is_set(corpus):
    text = "\n\n".join(f"Paragraph {number} of a long note about ropes." for number in range(60))
    (corpus / "in" / "long.txt").write_text(text, encoding="utf-8")
    settings = ("chunk.max_tokens=200", "chunk.max_per_document=1")
    with FakeEngine() as engine:
        manifest = run_job(job(corpus, engine, settings=settings))
    rows = pl.read_parquet(f"{corpus}/lake/records/stage=kind/*.parquet").filter(path="long.txt")
    assert len(rows) > 2
    assert dict(rows.group_by("outcome").len().iter_rows()) == {
        "succeeded": 1,
        "skipped": len(rows) - 1,
    }
    assert set(rows.filter(outcome="skipped")["error_class"]) == {"beyond_limit"}
    assert manifest["verdict"] == "complete"
