"""Questions about one chunk meet its prefix: one may lead the others, and all go to the same server."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.load import set_environment
from engine.profile import profile_for_url
from flows.run.core import run_job
from flows.run.job import Options, make_job
from flows.run.leaders import NUM_SEEN, Leaders
from tests.fakes.engine_server import FakeEngine

NUM_FILES = 60
PIPELINE = """
name: leaders
chunk: {max_tokens: 4000}
documents_per_shard: 100
stages:
  - {name: one, prompt: What is it?, output: {kind: a|b}}
  - {name: two, prompt: Who wrote it?, output: {kind: a|b}}
  - {name: three, prompt: When was it written?, output: {kind: a|b}}
"""


def cached_by_file(tmp_path: Path, *, bursts_miss: bool) -> list[list[int]]:
    """Return the cached tokens of the answers about each file, in the order of the files."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(NUM_FILES):
        words = " ".join(f"word{number}x{place}" for place in range(700))
        (folder / f"{number:03d}.txt").write_text(words, encoding="utf-8")
    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text(PIPELINE, encoding="utf-8")
    set_environment({"HEADRACE_STATE": str(tmp_path / "state")})
    with FakeEngine(max_model_len=32_768, latency_s=0.03, bursts_miss=bursts_miss) as engine:
        options = Options(source=str(folder), sink=str(tmp_path / "lake"), engine=engine.url)
        manifest = run_job(make_job(pipeline, options))
        assert manifest["verdict"] == "complete"
        return [
            [cached for call, cached in engine.cached if f"word{number}x0 " in call]
            for number in range(NUM_FILES)
        ]


def test_first_questions_lead_when_bursts_miss_the_cache(tmp_path):
    found = cached_by_file(tmp_path, bursts_miss=True)
    computed = [sum(cached < 1024 for cached in one) for one in found]
    # At first each question of a chunk computes it; once that is known, the first one alone does.
    assert max(computed[:10]) == 3
    assert computed[-10:] == [1] * 10


def test_all_questions_go_together_when_bursts_share_what_is_computed(tmp_path):
    found = cached_by_file(tmp_path, bursts_miss=False)
    assert all(sum(cached < 1024 for cached in one) == 1 for one in found)


@pytest.mark.parametrize(
    ("burst", "then", "leads"),
    [
        ([5000] * NUM_SEEN, [], False),
        ([0] * NUM_SEEN, [], True),
        ([0] * NUM_SEEN, [5000] * NUM_SEEN, True),
        ([0] * NUM_SEEN, [0] * NUM_SEEN, False),
        ([None] * NUM_SEEN, [], False),
        ([0] * (NUM_SEEN - 1), [], False),
    ],
)
def test_leaders_are_judged_when_enough_answers_tell(burst, then, leads):
    leaders = Leaders()
    for cached in burst:
        leaders.note("beside", shared_tokens=5000, cached_tokens=cached)
        leaders.note("first", shared_tokens=5000, cached_tokens=5000)
    for cached in then:
        leaders.note("after", shared_tokens=5000, cached_tokens=cached)
    assert leaders.leads is leads


def test_short_prefixes_tell_nothing_when_leaders_are_judged():
    leaders = Leaders()
    for _ in range(2 * NUM_SEEN):
        leaders.note("beside", shared_tokens=100, cached_tokens=0)
    assert not leaders.leads


def test_all_questions_of_a_document_go_to_one_server(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:03d}.txt").write_text(f"number{number}x is here", encoding="utf-8")
    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text(PIPELINE.replace("name: three, ", "name: three, needs: [two], "))
    set_environment({"HEADRACE_STATE": str(tmp_path / "state")})
    with FakeEngine() as a, FakeEngine() as b:
        profile = profile_for_url(a.url).model_copy(update={"name": "two", "replicas": (b.url,)})
        file = tmp_path / "two.yaml"
        file.write_text(profile.model_dump_json(), encoding="utf-8")
        options = Options(source=str(folder), sink=str(tmp_path / "lake"), engine=str(file))
        assert run_job(make_job(pipeline, options))["verdict"] == "complete"
        found = [
            [
                sum(f"number{number}x" in str(call["messages"]) for call in engine.calls)
                for number in range(12)
            ]
            for engine in (a, b)
        ]
        assert len(a.calls) + len(b.calls) == 36
    assert [sum(calls) for calls in zip(*found, strict=True)] == [3] * 12
    assert all(0 in calls for calls in zip(*found, strict=True))
    assert all(any(calls) for calls in found)
