"""Runs in Thinking, with samples, escalation and fallback, on a fake engine over a socket."""

import json

import polars as pl
import pytest

from config.errors import ConfigError
from flows.artifacts import mode_rows
from flows.report.words import mode_story
from flows.run.core import run_job
from flows.run.job import Options, make_job
from flows.terminal import summary_lines
from tests.fakes.engine_server import FakeEngine, Fault

PIPELINE = """\
name: modes
stages:
  - name: kind
    prompt: What is it about?
    output: {kind: "a|b|c", words: string?}
"""


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.txt").write_text(f"The note number {number} is about the harbour.\n")
    return folder


def run(tmp_path, source, engine, keys="", **options):
    file = tmp_path / "modes.yaml"
    file.write_text(PIPELINE + keys, encoding="utf-8")
    sink = tmp_path / "sink"
    asked = Options(source=str(source), sink=str(sink), engine=engine.url, **options)
    manifest = run_job(make_job(file, asked))
    return manifest, pl.read_parquet(f"{sink}/records/stage=kind/*.parquet"), sink


def answer(**fields):
    return Fault(content=json.dumps({"kind": "a", "words": "yes", **fields}))


def test_doubtful_answers_are_asked_again_in_thinking_within_the_cap(tmp_path, source):
    def script(_, body):
        # Thinking by prompt has a turn of its own, whose text stays in the conversation.
        thinks = "step by step" in json.dumps(body["messages"])
        return answer(kind="c") if thinks else Fault(content="no JSON")

    with FakeEngine(script=script) as engine:
        manifest, records, _ = run(
            tmp_path, source, engine, "    escalate: {max_share: 0.5}\n", failure_limit=1.0
        )
    stage = manifest["stages"]["kind"]
    assert stage["escalated"] == 4
    assert stage["outcomes"] == {"invalid_output": 4, "succeeded": 4}
    again = records.filter(pl.col("escalated").is_not_null())
    assert again["mode"].to_list() == ["thinking"] * 4
    assert again["mode_observed"].to_list() == ["thinking"] * 4
    assert again["kind"].to_list() == ["c"] * 4
    assert again["path"].to_list() == ["0.txt", "1.txt", "2.txt", "3.txt"]
    assert all("invalid" in reason for reason in again["escalated"])


def test_samples_are_asked_apart_and_their_agreement_is_a_column(tmp_path, source):
    kinds = iter("aab" * 8)
    with FakeEngine(script=lambda *_: answer(kind=next(kinds))) as engine:
        keys = "    samples: 3\n    agree: [kind]\n    temperature: 0.7\n"
        manifest, records, sink = run(tmp_path, source, engine, keys)
    assert len(engine.calls) == 24
    assert {call["temperature"] for call in engine.calls} == {0.7}
    assert manifest["stages"]["kind"]["outcomes"] == {"succeeded": 8}
    assert set(records["agreement"]) <= {1 / 3, 2 / 3, 1.0}
    usage = pl.read_parquet(f"{sink}/runs/*/usage/*.parquet")
    assert usage.height == usage["request_key"].n_unique() == 24


def test_sampling_is_refused_when_all_samples_would_be_the_same(tmp_path, source, engine):
    with pytest.raises(ConfigError, match="at temperature 0 are the same answer; set temperature"):
        run(tmp_path, source, engine, "    samples: 3\n")
    assert engine.calls == []


def test_images_are_required_in_vain_when_the_engine_reads_text(tmp_path, source, engine):
    with pytest.raises(ConfigError, match="require: images, and engine .* reads text only"):
        run(tmp_path, source, engine, "    require: images\n")
    assert engine.calls == []


def test_fallback_is_in_the_record_when_the_engine_refuses(tmp_path, source):
    with (
        FakeEngine(script=lambda *_: Fault(status=422)) as engine,
        FakeEngine() as other,
    ):
        keys = f"fallback: [{json.dumps(other.url)}]\n"
        manifest, records, _ = run(tmp_path, source, engine, keys)
    assert manifest["verdict"] == "complete"
    assert manifest["stages"]["kind"]["by_fallback"] == 8
    assert set(records["profile"]) == {other.url}
    assert all("answered 422" in reason for reason in records["fallback"])
    assert manifest["engine"]["fallback"] == [other.url]


def test_mode_is_settled_with_a_reason_when_it_is_auto(tmp_path, source, engine):
    manifest, records, _ = run(tmp_path, source, engine, "    mode: auto\n")
    assert manifest["stages"]["kind"]["mode"] == "instant"
    assert "short answer" in manifest["stages"]["kind"]["mode_reason"]
    assert manifest["stages"]["kind"]["modes_observed"] == {"instant": 8}
    assert set(records["mode"]) == {"instant"}


def test_key_is_nowhere_when_a_run_has_ended(tmp_path, source, monkeypatch, state_folder):
    canary = "sk-canary-4711-very-secret"
    monkeypatch.setenv("OPENAI_API_KEY", canary)
    echo = Fault(status=400, body=json.dumps({"error": {"message": f"bad {canary}"}}).encode())
    with FakeEngine(script=lambda n, _: echo if n % 2 else None, api_key=canary) as engine:
        run(tmp_path, source, engine, failure_limit=1.0)
        assert {call["Authorization"] for call in engine.headers} == {f"Bearer {canary}"}
    files = [p for root in (tmp_path, state_folder) for p in root.rglob("*") if p.is_file()]
    assert len(files) > 8
    assert [file for file in files if canary.encode() in file.read_bytes()] == []
    tables = [p for p in files if p.suffix == ".parquet"]
    assert all(canary not in str(pl.read_parquet(p).to_dicts()) for p in tables)


def test_report_and_run_page_tell_the_modes_when_answers_came_otherwise(tmp_path, source):
    def script(_, body):
        text = json.dumps(body["messages"])
        is_wrong = any(f"note number {number} " in text for number in (1, 3, 5))
        if "step by step" in text:
            return answer(kind="c")
        return Fault(content="no JSON") if is_wrong else None

    with FakeEngine(script=script) as engine:
        manifest, _, sink = run(
            tmp_path, source, engine, "    escalate: {max_share: 0.5}\n", failure_limit=1.0
        )
    stage = manifest["stages"]["kind"]
    told = mode_story(stage)
    assert told["escalated"] == f"{stage['escalated']} of 8 ({stage['escalated'] / 8:.0%})"
    assert "thinking" in told["observed"]
    folder = sink / "reports" / manifest["run_id"]
    for name in ("index.html", "report.md"):
        text = (folder / name).read_text(encoding="utf-8")
        assert told["escalated"].replace("%", "") in text.replace("%", "")
        assert told["observed"] in text
    assert told["escalated"] in summary_lines(manifest)["stage kind"]
    assert told["escalated"] in mode_rows(manifest)["stage kind"]
