"""A cache under runs that are killed, or that write to it at once: nothing is paid twice or lost."""

import json
import subprocess

import pytest

from tests.chaos.checks import check_manifest, check_paid, check_tables
from tests.chaos.driver import attempt, go_on
from tests.chaos.world import ROOT, World, environment


class AfterShelf:
    """When the cache has a document's answers that it had not before."""

    def __init__(self, cache):
        self._cache = cache
        self._before = self._files()

    def __call__(self, *_):
        return self._files() > self._before

    def _files(self):
        return set(self._cache.glob("documents/*/*.jsonl"))


@pytest.fixture
def cached(world, tmp_path):
    """The world with a cache; the function names the pipeline and edits it."""

    def make(name, edit=lambda text: text):
        text = edit(world.pipeline.read_text(encoding="utf-8"))
        file = tmp_path / f"{name}.yaml"
        file.write_text(f"{text}cache: {tmp_path / 'cache'}\n", encoding="utf-8")
        return World(source=world.source, pipeline=file, engine=world.engine)

    return make


@pytest.mark.timeout(120)
def test_nothing_is_paid_twice_when_killed_between_cache_and_commit(
    world, cached, reference, tmp_path
):
    mark, kills = world.engine.mark(), 0
    here, env, lake = cached("one"), environment(tmp_path / "state"), str(tmp_path / "lake")
    for _ in range(3):
        ended = attempt(go_on(here, lake), env, AfterShelf(tmp_path / "cache"), poll_s=0.002)
        kills += ended.code == -9
    assert kills
    last = attempt(go_on(here, lake), env)
    assert last.code == 0, last.told
    check_manifest(last.manifest, reference)
    check_tables(lake, reference)
    check_paid(world.engine.paid(mark), reference, kills)
    # Another sink is given all of it.
    mark = world.engine.mark()
    other = attempt(here.start(str(tmp_path / "other")), env)
    assert other.code == 0, other.told
    assert world.engine.paid(mark).total() == 0
    assert other.manifest["spent"]["tokens"] == 0
    check_tables(str(tmp_path / "other"), reference)


@pytest.mark.timeout(120)
def test_answers_of_two_runs_are_all_there_when_they_write_at_once(world, cached, tmp_path):
    asks = [
        cached("one"),
        cached("two", lambda text: text.replace("What is it?", "Which kind is it?")),
    ]
    runs = [
        subprocess.Popen(
            one.start(str(tmp_path / f"lake{number}")), cwd=ROOT,
            env=environment(tmp_path / f"state{number}"),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number, one in enumerate(asks)
    ]  # fmt: skip
    for run in runs:
        out, told = run.communicate(timeout=100)
        assert run.returncode == 0, told
        assert json.loads(out)["verdict"] == "complete"
    mark = world.engine.mark()
    for number, one in enumerate(asks):
        again = attempt(
            one.start(str(tmp_path / f"again{number}")), environment(tmp_path / "state")
        )
        assert again.code == 0, again.told
    assert world.engine.paid(mark).total() == 0
