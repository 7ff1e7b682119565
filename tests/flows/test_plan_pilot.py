"""A plan rests on answers where there are some, and a run is held against the plan made for it."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from flows.calibrate import calibrate
from flows.cli import app
from flows.run.ask import Asker
from flows.run.bench import plan_engine
from flows.run.core import run_job
from flows.run.job import Options, make_job
from flows.usage_records import load_usage

PIPELINE = """
name: notes
source: ./papers
sink: ./lake
shared: {rules: "Be brief, name the line, and quote nothing that is not in the excerpt you read."}
documents_per_shard: 2
stages:
  - {name: kind, prompt: "What is it?", output: {kind: log|table}, max_output_tokens: 200}
  - {name: why, needs: [kind], when: "upstream.kind.kind == 'log'", prompt: "Why {{ upstream.kind.kind }}?",
     output: {says: line}, max_output_tokens: 200}
  - {name: title, over: document, needs: [why], prompt: "Which line?", output: {title: line}}
  - {name: sum, over: corpus, needs: [title], prompt: "What is it all?", output: {text: string}}
"""

PROFILE = """
name: priced
base_url: {url}
model: fake-model
capabilities: {{structured_output: true, cached_tokens: true}}
adapters: {{legal: contracts}}
prices: {{input_usd: 100.0, cached_input_usd: 10.0, output_usd: 300.0}}
modes:
  instant: {{}}
  thinking: {{}}
"""

NUM = 12


@pytest.fixture
def here(tmp_path, monkeypatch, engine):
    """A working folder with `papers/`, a pipeline and a profile with prices of the fake engine."""
    papers = tmp_path / "papers"
    papers.mkdir()
    for number in range(NUM):
        text = f"Log {number}\n\nThe pilot boat left at dawn on day {number}. It was calm until {number}."
        (papers / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "notes.yaml").write_text(PIPELINE, encoding="utf-8")
    (tmp_path / "priced.yaml").write_text(PROFILE.format(url=engine.url), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADRACE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")
    for name in [name for name in os.environ if name.startswith(("AWS_", "PREFECT_"))]:
        monkeypatch.delenv(name)
    return tmp_path


def call(command, *arguments):
    return CliRunner().invoke(app, [command, "notes.yaml", "--engine", "priced.yaml", *arguments])


def planned(*arguments):
    result = call("plan", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def run(**options):
    return run_job(make_job("notes.yaml", Options(engine="priced.yaml", **options)))


def by_stage(plan, name):
    return {stage["stage"]: stage[name] for stage in plan["stages"]}


def test_only_the_limit_is_told_when_there_are_no_answers(here, engine):
    plan = planned()
    assert set(by_stage(plan, "output_tokens_expected").values()) == {None}
    assert set(by_stage(plan, "calibrated_by").values()) == {0}
    assert plan["total"]["output_tokens_expected"] is plan["cost_usd"]["expected"] is None
    assert "only the limit is known" in call("plan").stdout
    assert engine.calls == []
    assert not (here / "lake").exists()


def test_later_run_pays_for_no_answer_twice_when_a_pilot_was_made(here, engine):
    plan = planned("--pilot", "4")
    asked = len(engine.calls)
    assert plan["pilot"]["documents"] == 4
    assert plan["pilot"]["requests"] == asked
    assert plan["pilot"]["cost_usd"] > 0
    assert by_stage(plan, "calibrated_by") == {"kind": 4, "why": 4, "title": 4, "sum": 1}
    manifest = run()
    assert manifest["documents"]["unchanged"] == 4
    bodies = [json.dumps(body["messages"]) for body in engine.calls]
    # What is about the whole corpus is another question then.
    assert len(bodies) == len(set(bodies))
    assert len(bodies) == asked + sum(stage["requests"] for stage in manifest["stages"].values())


def test_output_is_expected_as_measured_when_answers_are_there(here):
    actual = run()["stages"]
    plan = planned("--all")
    for stage in plan["stages"]:
        name = stage["stage"]
        assert stage["requests_expected"] == actual[name]["requests"], name
        told = actual[name]["completion_tokens"]
        assert stage["output_tokens_expected"] == pytest.approx(told, abs=1), name
    # `when` leaves some out.
    assert 0 < actual["why"]["requests"] < NUM
    assert plan["cost_usd"]["expected"] < plan["cost_usd"]["with_planned_cache"]
    assert "expected by" in call("plan").stdout


def test_answers_to_an_earlier_prompt_teach_nothing_when_it_was_edited(here):
    run()
    plan = planned("--set", "stages.kind.prompt=What sort is it?")
    assert by_stage(plan, "calibrated_by")["kind"] == 0
    assert by_stage(plan, "calibrated_by")["title"] > 0


def test_pilot_is_refused_when_the_sink_holds_more(here, engine):
    run()
    asked = len(engine.calls)
    refused = call("plan", "--pilot", "3")
    assert refused.exit_code == 2
    assert f"already holds {NUM} documents" in refused.output
    assert len(engine.calls) == asked


def test_pilot_stops_when_its_budget_is_reached(here, engine):
    plan = planned("--pilot", "6", "--set", "budget.tokens=1500")
    assert plan["pilot"]["verdict"] == "budget_reached"
    assert plan["pilot"]["tokens"] <= 1500


def test_adapter_is_named_with_its_price_when_it_breaks_the_prefix(here):
    plain = planned()
    assert plain["layout"] == []
    plan = planned("--set", "stages.why.adapter=legal")
    (finding,) = plan["layout"]
    assert finding["where"] == "stages.why.adapter"
    chunk_tokens = sum(group["tokens"] for group in plan["documents"])
    assert finding["tokens_lost"] == chunk_tokens
    assert finding["usd_lost"] == pytest.approx(chunk_tokens * 90 / 1e6)
    cached = [by_stage(one, "planned_cached_tokens")["why"] for one in (plain, plan)]
    assert cached[0] - cached[1] == chunk_tokens
    assert "layout  stages.why.adapter: stage why: asks 'legal'" in " ".join(
        call("plan", "--set", "stages.why.adapter=legal").stdout.split("\n")
    )


class Metrics(BaseHTTPRequestHandler):
    """A vLLM server that lists its model and tells of a KV cache of 128 tokens."""

    def do_GET(self):
        model = {"id": "fake-model", "max_model_len": 8192}
        facts = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="8"} 1.0\n'
        text = json.dumps({"data": [model]}) if self.path == "/v1/models" else facts
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments):
        pass


def test_chunk_size_is_named_when_the_cache_holds_no_chunk(here):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metrics)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    text = PROFILE.format(url=url).replace("capabilities: {", "capabilities: {priority: true, ")
    (here / "priced.yaml").write_text(text, encoding="utf-8")
    plan = planned("--set", "chunk.max_tokens=100")
    server.shutdown()
    server.server_close()
    (finding,) = plan["layout"]
    assert (finding["kind"], finding["where"]) == ("cache", "chunk.max_tokens")
    chunk_tokens = sum(group["tokens"] for group in plan["documents"])
    # The second stage finds nothing of the chunk; instructions are few enough to stay.
    assert finding["tokens_lost"] == chunk_tokens
    cached = by_stage(plan, "planned_cached_tokens")
    assert cached["kind"] == cached["why"]


def test_date_in_a_shared_text_is_named_with_what_an_edit_costs(here):
    plan = planned(
        "--set", "shared.rules=Today is 2031-05-03, and you are to be brief about it all."
    )
    (finding,) = plan["layout"]
    assert (finding["kind"], finding["where"]) == ("volatile", "shared.rules")
    assert finding["tokens_lost"] == plan["total"]["prompt_tokens"]


def test_run_is_held_against_the_plan_made_for_it(here):
    assert run(sink="other")["estimate"] is None
    plan = planned("--pilot", "4")
    manifest = run()
    told = manifest["estimate"]
    assert told["basis"] == "expected"
    assert told["pilot"] == plan["pilot"]["run_id"]
    assert told["stages"]["kind"]["requests"] == NUM
    assert told["already"]["kind"]["requests"] == 4
    assert "sum" not in told["already"]
    assert manifest["stages"]["kind"]["requests"] == NUM - 4
    shown = CliRunner().invoke(app, ["status", manifest["run_id"]]).stdout
    assert f"planned {NUM - 4}" in shown
    assert "Planned on" in shown
    assert "less what the pilot had asked" in shown
    page = (here / "lake" / "reports" / manifest["run_id"] / "index.html").read_text("utf-8")
    assert f"planned {NUM - 4}<" in page
    # The next run is another one, and nothing was planned for it.
    assert run()["estimate"] is None


def test_cache_saves_the_difference_of_prices_when_tokens_come_from_it(here):
    stages = run()["stages"].values()
    for stage in stages:
        assert stage["saved_usd"] == pytest.approx(stage["cached_tokens"] * 90 / 1e6)
    assert sum(stage["cached_tokens"] for stage in stages) > 0


MORE = """
  - {name: entry, over: rows, prompt: "Which thing?", output: {thing: rope|anchor}, samples: 2, temperature: 0.7}
  - {name: things, over: group, needs: [entry], by: thing, prompt: "What is it?", output: {about: string}}
  - {name: sums, over: corpus, needs: [entry], output: {thing: string, n: integer},
     compute: "SELECT thing, COUNT(*) AS n FROM entry GROUP BY thing"}
  - {name: late, over: corpus, needs: [kind, sums], prompt: "What?", output: {text: string}}
"""


def test_every_kind_of_stage_is_expected_as_measured_when_answers_are_there(here):
    (here / "notes.yaml").write_text(PIPELINE.rstrip() + MORE, encoding="utf-8")
    rows = "\n".join(f"thing {number},{number}" for number in range(20))
    (here / "papers" / "list.csv").write_text(f"name,amount\n{rows}\n", encoding="utf-8")
    actual = run()["stages"]
    plan = planned("--all")
    for stage in plan["stages"]:
        name = stage["stage"]
        assert stage["requests_expected"] == actual[name]["requests"], name
        told = actual[name]["completion_tokens"]
        assert stage["output_tokens_expected"] == pytest.approx(told, abs=1), name
    assert actual["entry"]["requests"] == 40
    assert plan["total"]["output_tokens_expected"] is not None


TWO_TURNS = """
name: notes
source: ./papers
sink: ./lake
stages:
  - {name: kind, prompt: "What is it?", output: {kind: log|table}, mode: thinking, reasoning: summary}
"""


def test_calls_after_the_first_are_expected_as_measured_when_thinking_takes_a_turn_of_its_own(here):
    profile = (here / "priced.yaml").read_text("utf-8")
    by_prompt = profile.replace("thinking: {}", "thinking: {by: prompt}")
    (here / "priced.yaml").write_text(by_prompt, encoding="utf-8")
    (here / "notes.yaml").write_text(TWO_TURNS, encoding="utf-8")
    before = planned()["stages"][0]
    run()
    usage = load_usage(make_job("notes.yaml", Options(engine="priced.yaml")).open_lake())
    later, whole = usage["later_prompt_tokens"].sum(), usage["prompt_tokens"].sum()
    # The answer is asked for with the thinking in front of it, which is summed up after it.
    assert whole > 2 * (whole - later)
    after = planned("--all")["stages"][0]
    # The first prompt was planned before.
    times = after["prompt_tokens_expected"] / before["prompt_tokens"]
    assert times == pytest.approx(whole / (whole - later), rel=0.01)
    assert after["planned_cached_tokens_expected"] > before["planned_cached_tokens"]


def test_groups_are_expected_by_their_size_when_only_a_part_of_the_records_is_looked_at(here):
    (here / "notes.yaml").write_text(PIPELINE.rstrip() + MORE, encoding="utf-8")
    for name in ("x", "y", "z"):
        rows = "\n".join(f"thing {number},{name}{number}" for number in range(10))
        (here / "papers" / f"{name}.csv").write_text(f"name,amount\n{rows}\n", encoding="utf-8")
    actual = run()["stages"]["things"]["requests"]
    job = make_job("notes.yaml", Options(engine="priced.yaml"))
    with plan_engine(job.pipeline.engine, lambda _: None) as endpoint:
        asker = Asker(job.pipeline, endpoint)
        lake = job.open_lake()
        known = calibrate(lake, asker, job.pipeline.stages, load_usage(lake), most=10)
    assert known["entry"].num_records == 10
    # All groups are among their records, and a third of the inputs.
    assert known["things"].num_records == actual
    assert known["things"].units_per_input * 30 == pytest.approx(actual)


def test_no_hit_is_planned_of_a_chunk_when_another_adapter_is_asked(here):
    plain, adapted = (
        run(sink=sink, settings=settings)["stages"]["why"]
        for sink, settings in (("a", ()), ("b", ("stages.why.adapter=legal",)))
    )
    assert plain["requests"] == adapted["requests"]
    # What is left are the instructions, once per request.
    assert adapted["planned_cached_tokens"] % adapted["requests"] == 0
    assert adapted["planned_cached_tokens"] < plain["planned_cached_tokens"]
