"""The commands as a person or a script meets them: results, JSON, and words when something is wrong."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from flows.cli import app
from tests.fakes.engine_server import FakeEngine, Fault

ROOT = Path(__file__).resolve().parent.parent.parent
HEADRACE = Path(sys.executable).with_name("headrace")

FILES = {
    "a.md": "# Tide log\n\nThe pilot boat left at dawn. The harbour was calm all day.\n",
    "sub/b.txt": "The crane stopped at noon. A fuse had blown in the second motor.\n",
    "c.csv": "name,amount\nrope,12\nanchor,99\n",
    "empty.pdf": "",
}

PIPELINE = """
name: notes
source: ./papers
sink: ./lake
stages:
  - {name: kind, prompt: "What is it?", output: {kind: log|table|other, amount: decimal?, says: line}}
  - {name: title, over: document, needs: [kind], prompt: "Which line?", output: {title: line}}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with `papers/` and `notes.yaml` in it, and no server configured."""
    for path, text in FILES.items():
        file = tmp_path / "papers" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    (tmp_path / "notes.yaml").write_text(PIPELINE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADRACE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")
    for name in [name for name in os.environ if name.startswith(("AWS_", "PREFECT_", "MOONSHOT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    return tmp_path


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def good(*arguments):
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


def as_json(*arguments):
    result = good(*arguments, "--json")
    lines = result.stdout.splitlines()
    assert len(lines) == 1
    return json.loads(lines[0])


def test_question_gives_a_table_and_parquet_when_asked_without_a_pipeline(here, engine):
    fields = "vendor: string, amount: decimal, date: date?, says: line"
    result = good(
        "ask", "Which {amounts} exceed 10?", "papers", "--fields", fields, "--engine", engine.url
    )
    assert "vendor" in result.stdout
    assert "sub/b.txt" in result.stdout
    assert "4 listed, 3 read, 1 rejected (1 empty)" in result.stdout
    (folder,) = (here / "headrace-answers").iterdir()
    frame = pl.read_parquet(f"{folder}/records/stage=answer/*.parquet")
    assert frame.schema["amount"] == pl.Decimal(38, 9)
    assert frame.schema["date"] == pl.Date
    assert set(frame["outcome"]) == {"succeeded"}
    prompt = engine.calls[0]["messages"][1]["content"]
    assert "Which {amounts} exceed 10?" in prompt
    assert "date (as YYYY-MM-DD; null if the excerpt does not say)" in prompt


def test_answers_are_json_when_asked_for(here, engine):
    shown = as_json("ask", "What is it?", "papers/a.md", "--engine", engine.url)
    assert shown["verdict"] == "complete"
    (answer,) = shown["answers"]
    assert answer["document"] == "a.md"
    assert answer["evidence"] in FILES["a.md"]
    assert answer["place"].startswith("characters ")


def test_one_chunk_gives_many_rows_when_asked_for(here, engine):
    arguments = ("ask", "Which goods?", "papers", "--fields", "name: string, amount: decimal")
    shown = as_json(*arguments, "--many", "--engine", engine.url)
    assert {name for row in shown["answers"] for name in row} == {
        "document", "place", "name", "amount",
    }  # fmt: skip
    schema = engine.calls[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["rows"]["items"]["required"] == ["name", "amount"]


def test_answers_lie_beside_the_source_when_the_current_folder_is_the_source(
    here, engine, monkeypatch
):
    monkeypatch.chdir(here / "papers")
    good("ask", "What is it?", ".", "--engine", engine.url)
    assert (here / "headrace-answers").is_dir()
    assert not (here / "papers" / "headrace-answers").exists()


def test_starter_runs_when_init_has_written_it(here, engine):
    good("init", "first.yaml", "--engine", engine.url)
    manifest = as_json("run", "first.yaml")
    assert manifest["verdict"] == "complete"
    assert manifest["sink"] == str(here / "lake")
    assert set(manifest["stages"]) == {"digest", "summary"}


def test_nothing_is_sent_when_a_document_is_tried_dry(here):
    # The embedded engine's tokenizer counts; the engine itself is not started.
    shown = as_json("try", "notes.yaml", "--document", "a.md", "--dry-run")
    assert shown["tokens_counted"] == "exactly"
    first, second = shown["requests"]
    assert "pilot boat" in first["messages"][1]["content"]
    assert first["tokens"]["material"] > 10
    assert first["shared"]["material"] == "by all questions about this chunk"
    assert second == {"stage": "title", "waits_for": ["kind"]}
    assert not (here / "lake").exists()


def test_prompt_answer_and_cost_are_shown_when_a_document_is_tried(here, engine):
    shown = as_json("try", "notes.yaml", "--document", "sub/b.txt", "--engine", engine.url)
    first, second = shown["requests"]
    assert first["messages"] == [
        {**message, **({} if message["role"] == "system" else {"images": 0})}
        for message in engine.calls[0]["messages"]
    ]
    assert first["answer"]["says"] in FILES["sub/b.txt"]
    assert second["answer"]["title"] == first["answer"]["says"]
    assert first["prompt_tokens"] > 0
    assert not (here / "lake").exists()
    text = good("try", "notes.yaml", "-d", "sub/b.txt", "--engine", engine.url, "--stage", "kind")
    assert "--- system" in text.stdout
    assert "whole document: " in text.stdout


def test_tokens_cost_and_time_are_estimated_when_planned(here, engine):
    planned = as_json("plan", "notes.yaml", "--engine", "moonshot", "--set", "name=priced")
    assert planned["cost_usd"]["without_cache"] >= planned["cost_usd"]["with_planned_cache"] > 0
    planned = as_json("plan", "notes.yaml", "--all")
    assert [(group["type"], group["count"]) for group in planned["documents"]] == [
        (".csv", 1), (".md", 1), (".pdf", 1), (".txt", 1),
    ]  # fmt: skip
    assert planned["rejected"].keys() == {"empty.pdf"}
    assert planned["stages"][0]["requests"] == planned["stages"][1]["requests"] == 3
    assert planned["seconds_at_most"] > 0
    run = as_json("run", "notes.yaml", "--engine", engine.url)
    assert {name: stage["inputs"] for name, stage in run["stages"].items()} == {
        stage["stage"]: stage["requests"] for stage in planned["stages"]
    }


ALL_KINDS = """
  - {name: entry, over: rows, prompt: "Which thing?", output: {thing: string, cost: decimal}}
  - {name: things, over: group, needs: [entry], by: thing, prompt: "What is it?", output: {about: string}}
  - {name: sums, over: corpus, needs: [entry], output: {thing: string, cost: decimal},
     compute: "SELECT thing, SUM(cost) AS cost FROM entry GROUP BY thing"}
  - {name: late, over: corpus, needs: [kind, sums], when: "upstream.kind.kind == 'log'", prompt: "What?",
     output: {text: string}}
"""


def test_every_kind_of_stage_is_estimated_when_planned(here):
    (here / "notes.yaml").write_text(PIPELINE.rstrip() + ALL_KINDS, encoding="utf-8")
    planned = as_json("plan", "notes.yaml", "--all")
    stages = {stage["stage"]: stage for stage in planned["stages"]}
    assert [stage["requests"] for stage in stages.values()] == [3, 3, 2, 1, 0, 1]
    assert stages["sums"]["mode"] == "sql"
    assert stages["sums"]["prompt_tokens"] == stages["sums"]["output_tokens_at_most"] == 0
    assert stages["things"]["assumed"] == ["one group per 10 answers"]
    assert stages["late"]["assumed"] == ["`when` holds for all"]
    assert stages["kind"]["assumed"] == []
    graph = planned["graph"]
    assert {"from": "stage:entry", "to": "stage:sums"} in graph["edges"]
    assert {node["id"]: node.get("mode") for node in graph["nodes"]}["stage:sums"] == "sql"


def test_what_waits_for_a_person_is_told_when_planned(here):
    waiting = """
  - {name: reply, needs: [kind], approval: required, prompt: "What do we answer?", output: {text: string}}
  - {name: look, mode: agent, tools: [search, table_query], approve_calls: [table_query],
     prompt: "What is owed?", output: {text: string}}
"""
    (here / "notes.yaml").write_text(PIPELINE.rstrip() + waiting, encoding="utf-8")
    stages = {stage["stage"]: stage for stage in as_json("plan", "notes.yaml")["stages"]}
    asks = {name: stage["approval"] for name, stage in stages.items()}
    assert (asks["kind"], asks["reply"], asks["look"]) == (None, "required", None)
    assert stages["look"]["approve_calls"] == ["table_query"]
    shown = good("plan", "notes.yaml").stdout
    assert "waits   reply: until a person agrees to its requests, in each run" in shown
    assert "waits   look: until a person agrees to a call, at each one of table_query" in shown
    assert shown.count("waits ") == 2


def test_graph_is_shown_and_written_when_planned(here):
    shown = good("plan", "notes.yaml", "--svg", "graph.svg").stdout
    assert shown.index("│ kind ") < shown.index("│ title ") < shown.index("prompt tokens")
    assert (here / "graph.svg").read_text(encoding="utf-8").startswith("<svg ")
    refused = call("plan", "notes.yaml", "--svg", "gone/graph.svg")
    assert refused.exit_code == 2
    assert "gone/graph.svg cannot be written" in refused.output


def test_output_is_looked_at_when_a_run_has_ended(here, engine):
    run_id = as_json("run", "notes.yaml", "--engine", engine.url)["run_id"]
    assert "3 rows" in good("records").stdout
    shown = as_json("records", run_id[-4:], "kind", "--where", "kind in ('log', 'table', 'other')")
    assert [record["path"] for record in shown["records"]] == ["a.md", "c.csv", "sub/b.txt"]
    assert shown["columns"] == ["path", "place", "unit", "outcome", "kind", "amount", "says"]
    assert shown["records"][0]["place"].startswith("characters ")
    csv_text = good("records", run_id, "kind", "--csv", "--columns", "path,citations").stdout
    rows = list(csv.DictReader(io.StringIO(csv_text)))
    assert json.loads(rows[0]["citations"])[0]["field"] == "says"
    only = as_json("records", run_id, "kind", "--document", "sub/*", "--outcome", "succeeded")
    assert len(only["records"]) == 1
    documents = as_json("records", run_id, "documents")["records"]
    assert {row["status"] for row in documents} == {"read", "rejected"}
    assert len(as_json("records", run_id, "usage")["records"]) == 6


def test_runs_are_listed_and_reported_anew_when_they_have_ended(here, engine):
    manifest = as_json("run", "notes.yaml", "--engine", engine.url)
    (run,) = as_json("status")["runs"]
    assert (run["state"], run["done"]) == ("complete", "4/4 documents, 6/6 answers")
    shown = as_json("status", manifest["run_id"])
    assert shown["manifest"] == manifest
    assert Path(shown["log"]).read_text(encoding="utf-8").count("outcome=succeeded") == 6
    assert (here / "lake" / "runs" / manifest["run_id"] / "run.log").exists()
    page = Path(manifest["report"]["html"].removeprefix("file://"))
    before = page.read_text(encoding="utf-8")
    page.unlink()
    assert as_json("report") == manifest["report"]
    assert page.read_text(encoding="utf-8") == before


def test_every_command_teaches_by_example_when_help_is_asked(here):
    listed = good("--help").stdout
    for name in ("run", "ask", "retry", "init", "try", "plan", "status", "records", "report"):
        assert f" {name} " in listed
        text = good(name, "--help").stdout
        assert f"headrace {name}" in text, name
        assert "--json" in text, name
        assert "Raises" not in text


WRONG = [
    (("run",), 2, r"which pipeline\? give a YAML file or one of: briefing"),
    (("run", "gone.yaml"), 2, "gone.yaml: cannot be read"),
    (("run", "dmo"), 2, "pipeline 'dmo' is no file.*did you mean 'demo'"),
    (("run", "demo"), 2, "source: missing; set it there or give --source"),
    (("run", "demo", "--source", "papers"), 2, "sink: missing"),
    (("run", "notes.yaml", "--source", "nowhere"), 2, "nowhere' does not exist; check the path"),
    (("run", "notes.yaml", "--source", "gs://x/y"), 2, "not installed: .*gcsfs.*; install it"),
    (("run", "notes.yaml", "--source", "s3:///y"), 2, "names no bucket"),
    (("run", "notes.yaml", "--sink", "papers/lake"), 2, "lies inside source"),
    (("run", "notes.yaml", "--sink", "/proc/nowhere"), 2, "/proc/nowhere"),
    (("run", "notes.yaml", "--engine", "embeded"), 2, "no profile.*did you mean 'embedded'"),
    (
        ("run", "notes.yaml", "--engine", "http://127.0.0.1:9"),
        1,
        "cannot be reached.*check that the",
    ),
    (("run", "notes.yaml", "--mode", "telepathy"), 2, "mode: Input should be 'instant'"),
    (("run", "notes.yaml", "--limit", "many"), 2, "'--limit': Input should be a valid integer"),
    (
        ("run", "notes.yaml", "--limit", "0"),
        2,
        "'--limit': Input should be greater than or equal to 1",
    ),
    (("run", "notes.yaml", "--sorce", "x"), 2, "No such option.*--source"),
    (("run", "notes.yaml", "--set", "chunk.max_tokns=5"), 2, "did you mean 'max_tokens'"),
    (("run", "notes.yaml", "--set", "stages"), 2, "expected key=value"),
    (("run", "notes.yaml", "--budget-usd", "1"), 2, "no prices; set budget.tokens"),
    (("run", "notes.yaml", "--engine", "moonshot"), 2, "MOONSHOT_API_KEY is not set; run: export"),
    (("run", "notes.yaml", "--prefect"), 2, "start one with: headrace up"),
    (("run", "broken.yaml"), 2, "broken.yaml: is not YAML"),
    (("run", "keys.yaml"), 2, "promt: unknown key.*did you mean 'prompt'"),
    (("run", "types.yaml"), 2, "unknown type 'sting'.*did you mean 'string'"),
    (("run", "--resume", "7f7f"), 2, "this machine knows no run yet"),
    (("run", "notes.yaml", "--resume", "7f7f"), 2, "this machine knows no run yet"),
    (("run", "notes.yaml", "--accept-changes"), 2, "goes with a pipeline and --resume"),
    (("retry", "7f7f", "--sink", "papers"), 2, "has no run '7f7f'"),
    (("records",), 2, "knows no run yet; start one"),
    (("report", "7f7f"), 2, "knows no run yet"),
    (("status", "7f7f"), 2, "knows no run yet"),
    (("ask", "", "papers"), 2, "the question is empty"),
    (("ask", "What?", "nowhere"), 2, "nowhere' does not exist"),
    (
        ("ask", "papers", "What is it?"),
        2,
        "the question comes first: headrace ask 'What is it\\?' papers",
    ),
    (
        ("ask", "What?", "papers", "--include", "*.txt"),
        2,
        r"fits no file of source 'papers', which holds 4 files.*--include '\*\*/\*\.txt'",
    ),
    (
        ("ask", "What?", "papers", "--include", "*.docx"),
        2,
        "'\\*.docx' fits no file.*or leave it out to read all",
    ),
    (
        ("ask", "What?", "papers", "--fields", "a: dat"),
        2,
        "unknown type 'dat'.*did you mean 'date'",
    ),
    (("ask", "What?"), 2, "Missing argument 'source'"),
    (("try", "notes.yaml", "--document", "b.txt"), 2, "is not in source.*sub/b.txt"),
    (
        ("try", "notes.yaml", "-d", "a.md", "--stage", "kin"),
        2,
        "no such stage; stages: kind, title",
    ),
    (("try", "notes.yaml", "-d", "a.md", "--dry-run", "--chunk", "9"), 2, "has 1 chunks"),
    (("plan", "notes.yaml", "--source", "void"), 2, "has no object that matches include"),
    (("plan", "notes.yaml", "--set", "chunk.max_tokens=9000"), 2, "9,000 does not fit.*8,192"),
    (("init", "notes.yaml"), 2, "notes.yaml exists already"),
    (("init", "no/such/p.yaml"), 2, "cannot be written: No such file"),
    (("rnu",), 2, "No such command 'rnu'"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG, ids=lambda v: str(v)[:60])
def test_one_helpful_message_is_given_when_an_invocation_is_wrong(
    here, engine, arguments, code, message
):
    (here / "void").mkdir()
    (here / "broken.yaml").write_text("name: [", encoding="utf-8")
    (here / "keys.yaml").write_text(PIPELINE.replace("prompt:", "promt:"), encoding="utf-8")
    (here / "types.yaml").write_text(PIPELINE.replace("decimal?", "sting"), encoding="utf-8")
    if arguments[0] == "run" and "--engine" not in arguments:
        (here / "notes.yaml").write_text(f"{PIPELINE}engine: {engine.url}\n", encoding="utf-8")
    check_refused(call(*arguments), code, message)
    # A misspelt command leaves no run and no sink behind.
    assert not (here / "lake").exists()
    assert not list((here / "state").glob("runs/*.json"))


def check_refused(result, code, message):
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.stdout == ""
    assert re.search(message, " ".join(result.stderr.replace("│", " ").split())), result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("change", "where", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "in", "access denied; the credentials in use may not"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "in", "check AWS_ENDPOINT_URL and that the"),
        ({}, "missing-bucket", "check that bucket 'missing-bucket' exists"),
    ],
)
def test_storage_is_named_when_it_refuses(
    here, engine, bucket, monkeypatch, change, where, message
):
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    source = f"{bucket}/in" if where == "in" else f"s3://{where}/in"
    result = call("run", "notes.yaml", "--source", source, "--engine", engine.url)
    code = 1 if "AWS_ENDPOINT_URL" in change else 2
    check_refused(result, code, message)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in result.output


def test_key_is_named_but_not_shown_when_the_engine_refuses_it(here, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "canary-key")
    with FakeEngine(api_key="another") as engine:
        result = call("run", "notes.yaml", "--engine", engine.url)
    named = r"the API key in OPENAI_API_KEY \(profile 'http://127\.0\.0\.1:\d+/v1'\)"
    check_refused(result, 1, f"401: invalid key; check {named}")
    assert "canary-key" not in result.output
    assert "--resume" not in result.output


def test_run_and_how_to_go_on_are_named_last_when_the_key_is_refused_midway(here, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "canary-key")
    refusal = Fault(status=401, body=b'{"error": {"message": "canary-key is revoked"}}')
    with FakeEngine(script=lambda *_: refusal) as engine:
        result = call("run", "notes.yaml", "--engine", engine.url)
    assert result.exit_code == 1
    assert "401: [key] is revoked; check the API key in OPENAI_API_KEY" in result.output
    assert "canary-key" not in result.output
    command = result.output.splitlines()[-1].split("go on with: headrace ")[1].split()
    with FakeEngine() as engine:
        manifest = as_json(*command, "--engine", engine.url)
    assert manifest["verdict"] == "complete"
    assert manifest["run_id"] == command[-1]


def test_server_is_named_when_a_configured_prefect_does_not_answer(here, engine):
    environment = os.environ | {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
    result = subprocess.run(
        [HEADRACE, "run", "notes.yaml", "--engine", engine.url],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    assert "http://127.0.0.1:9/api" in result.stderr
    assert "headrace up" in result.stderr
    assert "Traceback" not in result.stderr


def test_disk_is_named_when_it_is_full(here, engine):
    if shutil.which("unshare") is None:
        pytest.fail("unshare is not installed; it is in util-linux")
    (here / "small").mkdir()
    script = (
        f"mount -t tmpfs -o size=64k tmpfs {here}/small &&"
        f" exec {HEADRACE} run notes.yaml --sink small/lake --engine {engine.url}"
    )
    result = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    assert "No space left on device; free space or choose another" in " ".join(
        result.stderr.split()
    )
    assert "Traceback" not in result.stderr
