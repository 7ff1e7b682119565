"""`headrace cache`: what is kept, and clearing it."""

import json
import os
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from connectors.storage import LocalStorage
from flows.cli import app
from flows.run.answers import as_line, checked
from flows.run.claims import Claims
from tests.fakes.engine_server import MODEL

NUM_FILES = 4
PIPELINE = """
name: notes
source: ./papers
sink: ./lake
cache: ./shared
documents_per_shard: 2
stages:
  - {name: kind, prompt: "What is it?", output: {kind: log|table|other, says: line}}
  - {name: title, over: document, needs: [kind], prompt: "Which line?", output: {title: line}}
"""


@pytest.fixture
def here(tmp_path, monkeypatch, engine):
    """A working folder where the pipeline has run once."""
    (tmp_path / "papers").mkdir()
    for number in range(NUM_FILES):
        (tmp_path / "papers" / f"{number}.txt").write_text(f"Note {number}.\nIts second line.")
    (tmp_path / "notes.yaml").write_text(f"{PIPELINE}engine: {engine.url}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADRACE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")
    for name in [name for name in os.environ if name.startswith(("AWS_", "PREFECT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    good("run", "notes.yaml")
    return tmp_path


def call(*arguments, typed=None):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=typed)


def good(*arguments, typed=None):
    result = call(*arguments, typed=typed)
    assert result.exit_code == 0, result.output
    return result


def as_json(*arguments):
    (line,) = good(*arguments, "--json").stdout.splitlines()
    return json.loads(line)


def age(folder, days):
    """Make all answers as old as this."""
    began = datetime.now(UTC) - timedelta(days=days)
    for file in folder.rglob("*.jsonl"):
        answers = map(checked, file.read_text().splitlines())
        aged = [replace(one, run=f"{began:%Y%m%dT%H%M%SZ}-0000") for one in answers]
        file.write_text("".join(map(as_line, aged)))


@pytest.mark.parametrize("place", [("notes.yaml",), ("--cache", "shared"), ("--sink", "lake")])
def test_answers_are_counted_with_what_they_cost(here, place):
    found = as_json("cache", "stats", *place)
    assert found["kind"] == ("sink" if "--sink" in place else "cache")
    assert found["answers"] == 2 * NUM_FILES
    assert found["objects"] == (2 if "--sink" in place else NUM_FILES)
    assert [(one["stage"], one["model"]) for one in found["stages"]] == [
        ("kind", MODEL),
        ("title", MODEL),
    ]
    spent = json.loads(next((here / "lake" / "runs").glob("*/manifest.json")).read_text())["spent"]
    assert found["prompt_tokens"] + found["completion_tokens"] == spent["tokens"]
    assert found["cost_usd"] is None
    assert abs(datetime.now(UTC) - datetime.fromisoformat(found["newest"])) < timedelta(hours=1)
    told = good("cache", "stats", *place).stdout
    assert "kind" in told
    assert f"{2 * NUM_FILES} in {found['objects']} objects" in told


def test_nothing_goes_when_the_answer_is_no(here):
    before = as_json("cache", "stats", "notes.yaml")
    for typed in ("n\n", ""):
        result = call("cache", "clear", "notes.yaml", typed=typed)
        assert result.exit_code == 1
        assert "removed" not in result.stdout
        assert "8 answers go from cache" in result.stderr
    assert as_json("cache", "stats", "notes.yaml") == before


def test_cleared_cache_is_paid_for_again_by_another_sink(here, engine):
    assert "8 answers removed" in good("cache", "clear", "notes.yaml", typed="y\n").stdout
    assert as_json("cache", "stats", "notes.yaml")["answers"] == 0
    before = len(engine.calls)
    good("run", "notes.yaml", "--sink", "lake-2")
    assert len(engine.calls) - before == 2 * NUM_FILES


def test_only_one_stage_goes_when_it_is_named(here, engine):
    assert as_json("cache", "clear", "notes.yaml", "--stage", "kind")["cleared"] == NUM_FILES
    before = len(engine.calls)
    told = as_json("run", "notes.yaml", "--sink", "lake-2")
    assert len(engine.calls) - before == NUM_FILES
    assert told["stages"]["title"]["from_cache"] == NUM_FILES


def test_only_old_answers_go_when_an_age_is_given(here):
    assert as_json("cache", "clear", "notes.yaml", "--older-than", "1")["cleared"] == 0
    age(here / "shared" / "documents", days=40)
    assert as_json("cache", "clear", "notes.yaml", "--older-than", "41")["cleared"] == 0
    assert as_json("cache", "clear", "notes.yaml", "--older-than", "39")["cleared"] == 2 * NUM_FILES


def test_tables_stay_and_changed_documents_are_paid_for_when_a_sink_is_cleared(here, engine):
    tables = {file: file.read_bytes() for file in (here / "lake").rglob("*.parquet")}
    told = good("cache", "clear", "--sink", "lake", typed="y\n")
    assert "tables stay; a later run pays again" in re.sub(r"\s+", " ", told.stderr)
    assert {file: file.read_bytes() for file in (here / "lake").rglob("*.parquet")} == tables
    before = len(engine.calls)
    assert as_json("run", "notes.yaml", "--cache", "")["documents"]["unchanged"] == NUM_FILES
    assert len(engine.calls) == before
    (here / "papers" / "0.txt").write_text("Another note.\nIts second line.")
    assert as_json("run", "notes.yaml", "--cache", "")["verdict"] == "complete"
    # Those of the shard: the changed one and its neighbour.
    assert len(engine.calls) - before == 4


def test_sink_is_not_cleared_while_a_run_is_at_work_on_it(here):
    storage = LocalStorage(here / "lake")
    with Claims(storage, "run-a") as claims, claims.take("s00000", wait=False):
        result = call("cache", "clear", "--sink", "lake", "--yes")
    assert result.exit_code == 1
    assert "run run-a" in result.stderr
    assert as_json("cache", "stats", "--sink", "lake")["answers"] == 2 * NUM_FILES
    assert as_json("cache", "clear", "--sink", "lake")["cleared"] == 2 * NUM_FILES


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "which answers\\? give one of"),
        (("notes.yaml", "--sink", "lake"), "which answers\\? give one of"),
        (("--cache", "lake"), "there is no cache at"),
        (("--cache", "nowhere"), "there is no cache at"),
        (("--sink", "shared"), "there is no sink at"),
        (("gone.yaml",), "gone.yaml: cannot be read"),
    ],
)
@pytest.mark.parametrize("command", ["stats", "clear"])
def test_error_names_what_is_missing(here, command, arguments, told):
    result = call("cache", command, *arguments)
    assert result.exit_code == 2
    assert re.search(told, re.sub(r"\s+", " ", result.stderr)), result.stderr


def test_unreadable_lines_are_counted_and_go_with_all(here):
    shelf = next((here / "shared" / "documents").rglob("*.jsonl"))
    shelf.write_text(shelf.read_text() + "broken\n")
    assert as_json("cache", "stats", "notes.yaml")["unreadable"] == 1
    assert "unreadable  1" in good("cache", "stats", "notes.yaml").stdout
    good("cache", "clear", "notes.yaml", "--yes")
    assert not shelf.exists()


def test_question_is_answered_from_the_cache_when_asked_into_another_sink(here, engine):
    asked = ("ask", "What is it about?", "papers", "--engine", engine.url, "--cache", "asked")
    first = as_json(*asked, "--sink", "lake-a")
    before = len(engine.calls)
    again = as_json(*asked, "--sink", "lake-b")
    assert len(engine.calls) == before
    assert again["answers"] == first["answers"]
    told = good(*asked, "--sink", "lake-c").stdout
    assert f"{NUM_FILES} answers at no cost, {NUM_FILES} from the cache" in told
