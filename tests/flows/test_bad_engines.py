"""Engines that are too small, tell nothing or nonsense of their usage, or die in the middle."""

import json
import logging
import re
import threading
from collections import Counter

import polars as pl
import pytest

from flows.artifacts import describe
from flows.cli.preview import _plan_lines
from flows.estimate import estimate
from flows.report.took import took
from flows.run.core import run_job
from flows.run.job import Options, make_job
from flows.run.progress import Progress
from flows.terminal import _counts, print_summary
from tests.fakes.engine_server import FakeEngine, Fault

NUM_FILES = 12

PIPELINE = """
name: notes
documents_per_shard: 100
stages:
  - {name: kind, prompt: What is it?, output: {kind: a|b|c, says: line}}
  - {name: weight, needs: [kind], prompt: How heavy is it?, output: {weight: light|heavy}}
  - {name: title, needs: [weight], prompt: Which line?, output: {title: line}}
"""

# With `priority` it is asked for the size of its cache, as vLLM is.
PROFILE = """
name: small
base_url: {url}
max_in_flight: 4
capabilities: {{structured_output: true, priority: true}}
modes: {{instant: {{}}}}
"""

NOTE = re.compile(r"[Nn]ote (\d+)")


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "notes.yaml").write_text(PIPELINE, encoding="utf-8")
    (tmp_path / "in").mkdir()
    for number in range(NUM_FILES):
        write(tmp_path, number, num_lines=8)
    return tmp_path


def write(corpus, number, *, num_lines):
    lines = [f"Note {number} says this in its line {line}." for line in range(num_lines)]
    (corpus / "in" / f"{number:02d}.txt").write_text("\n".join(lines), encoding="utf-8")


def job(corpus, engine, *settings):
    (corpus / "small.yaml").write_text(PROFILE.format(url=engine.url), encoding="utf-8")
    options = Options(
        source=str(corpus / "in"),
        sink=str(corpus / "lake"),
        engine=str(corpus / "small.yaml"),
        settings=settings,
    )
    return make_job(corpus / "notes.yaml", options)


def note_of(body):
    return int(NOTE.search(json.dumps(body["messages"])).group(1))


def check_complete(corpus, manifest):
    assert manifest["verdict"] == "complete"
    for stage in manifest["stages"]:
        rows = pl.read_parquet(f"{corpus}/lake/records/stage={stage}/*.parquet")
        assert set(rows["outcome"]) == {"succeeded"}


def test_chunk_is_asked_about_alone_when_it_is_larger_than_the_engines_cache(corpus, caplog):
    large = {3, 7}
    for number in large:
        write(corpus, number, num_lines=60)
    beside = []

    def watch(_number, body):
        with engine.lock:
            now = {note_of(call) for n, call in enumerate(engine.calls) if n not in engine.answered}
        beside.extend([now] if now & large else [])

    settings = ("chunk.max_tokens=1500",)
    with FakeEngine(script=watch, latency_s=0.02, kv_cache_tokens=800) as engine:
        planned = estimate(job(corpus, engine, *settings), sample=None, notify=print)
        with caplog.at_level(logging.WARNING, "flows.run"):
            manifest = run_job(job(corpus, engine, *settings))
    check_complete(corpus, manifest)
    assert manifest["chunks"] == NUM_FILES
    assert beside
    assert all(len(notes) == 1 for notes in beside)
    told = [record.getMessage() for record in caplog.records if "KV cache" in record.getMessage()]
    assert len(told) == 1
    assert "larger than the engine's KV cache of 800 tokens holds beside a question" in told[0]
    (found,) = (one for one in planned["layout"] if one["kind"] == "cache")
    assert found["where"] == "chunk.max_tokens"
    assert found["tokens_lost"] > 0
    assert any("engine's KV cache holds" in line for line in _plan_lines(planned))


def test_cached_tokens_are_not_reported_when_the_engine_tells_none(corpus, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    progress, shown = Progress(interval_s=0.0), []
    progress.listen(shown.append)
    with FakeEngine() as engine:
        engine.tells_cached = False
        manifest = run_job(job(corpus, engine), progress=progress)
    check_complete(corpus, manifest)
    usage = pl.read_parquet(f"{corpus}/lake/runs/{manifest['run_id']}/usage/*.parquet")
    assert usage["cached_tokens"].null_count() == len(usage) == 3 * NUM_FILES
    assert {stage["cached_tokens"] for stage in manifest["stages"].values()} == {None}
    last = shown[-1]
    assert last.prompt_tokens > 0
    assert last.cached_tokens is None
    assert "cached not reported" in _counts(last)
    assert "cached not reported" in describe("run", last)
    assert {row["from the cache"].partition(" (")[0] for row in took(manifest).as_rows()} == {
        "not reported"
    }
    print_summary(manifest)
    # Three stages, and all of them.
    assert capsys.readouterr().out.count("not reported") == 4
    report = corpus / "lake" / "reports" / manifest["run_id"]
    page = (report / "index.html").read_text(encoding="utf-8")
    assert "not reported" in page
    assert "0 tokens cached" not in page
    assert "not reported" in (report / "report.md").read_text(encoding="utf-8")


def test_no_cached_tokens_are_told_apart_when_the_engine_tells_them(corpus):
    progress = Progress()
    with FakeEngine() as engine:
        run_job(job(corpus, engine), progress=progress)
    assert progress.snapshot().cached_tokens > 0
    assert re.search(r"[1-9]\d?% cached", _counts(progress.snapshot()))


WRONG = [
    {"prompt_tokens": -5, "completion_tokens": 9},
    {"prompt_tokens": "120", "completion_tokens": "9"},
    {"prompt_tokens": 10**15, "completion_tokens": 9},
    {"prompt_tokens": 120, "completion_tokens": 10**15},
    {"prompt_tokens": 120.5, "completion_tokens": 9},
    {"prompt_tokens": True, "completion_tokens": True},
    {"prompt_tokens": 120, "completion_tokens": None},
    {},
    [],
    "many",
    None,
]


@pytest.mark.parametrize("usage", WRONG, ids=str)
def test_usage_is_estimated_and_flagged_when_the_engine_tells_a_wrong_one(corpus, usage):
    def tell(_number, body):
        return Fault(content=good(body), usage=usage)

    with FakeEngine(script=tell) as engine:
        manifest = run_job(job(corpus, engine, "budget.tokens=100000"))
    check_complete(corpus, manifest)
    assert {stage["usage_guessed"] for stage in manifest["stages"].values()} == {NUM_FILES}
    found = pl.read_parquet(f"{corpus}/lake/runs/{manifest['run_id']}/usage/*.parquet")
    assert found["usage_guessed"].all()
    assert 0 < found["prompt_tokens"].min() <= found["prompt_tokens"].max() < 1000
    assert manifest["spent"]["tokens"] <= 100_000
    assert {stage["cached_tokens"] for stage in manifest["stages"].values()} == {None}


@pytest.mark.parametrize("cached", [121, -1, "60", 1.5, None, True, [60]])
def test_cached_tokens_are_dropped_when_they_cannot_be(corpus, cached):
    def tell(_number, body):
        details = {"cached_tokens": cached}
        usage = {"prompt_tokens": 120, "completion_tokens": 20, "prompt_tokens_details": details}
        return Fault(content=good(body), usage=usage)

    with FakeEngine(script=tell) as engine:
        manifest = run_job(job(corpus, engine))
    check_complete(corpus, manifest)
    for stage in manifest["stages"].values():
        assert stage["cached_tokens"] is None
        assert stage["usage_guessed"] == 0
        assert stage["prompt_tokens"] == 120 * NUM_FILES


def good(body):
    names = body["response_format"]["json_schema"]["schema"]["properties"]
    values = {"kind": "a", "says": "L1", "weight": "light", "title": "L1"}
    return json.dumps({name: values[name] for name in names})


def test_open_families_go_on_first_when_the_engine_restarts_in_their_middle(corpus):
    restarting = threading.Event()

    def die(number, _body):
        if number >= 13 and not restarting.is_set():
            restarting.set()
            threading.Thread(target=engine.restart, args=(1.5,)).start()

    # The cache holds two of the chunks at once.
    with FakeEngine(script=die, latency_s=0.05, kv_cache_tokens=480) as engine:
        manifest = run_job(job(corpus, engine, "chunk.max_tokens=200"))
    check_complete(corpus, manifest)
    assert manifest["spent"]["tokens"] == sum(
        stage["prompt_tokens"] + stage["completion_tokens"] for stage in manifest["stages"].values()
    )
    # Every question was answered once; only those in flight were asked a second time.
    asked = [json.dumps(call["messages"]) for call in engine.calls]
    assert len({asked[number] for number in engine.answered}) == len(engine.answered)
    assert len(engine.answered) == 3 * NUM_FILES
    assert 0 < len({asked[number] for number in engine.lost}) <= 4
    # Families that had begun end before others begin, as many as the cache holds at a time.
    notes = [note_of(call) for call in engine.calls]
    assert most_open([notes[number] for number in sorted(engine.answered)]) == 2


def most_open(notes):
    """Return the most notes that were begun, and not asked all three questions, at the same time."""
    left, most, now = Counter(dict.fromkeys(notes, 3)), 0, set()
    for note in notes:
        now.add(note)
        most = max(most, len(now))
        left[note] -= 1
        now -= set() if left[note] else {note}
    return most
