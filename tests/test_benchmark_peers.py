"""The pure parts of the benchmark against peers: what sets requests apart, results, charts."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks import peer_arm, peer_cases, plots
from benchmarks.peer_environments import PEERS
from benchmarks.peer_recorder import differences, recording
from benchmarks.processes import run_measured
from benchmarks.results import write_result

ROOT = Path(__file__).resolve().parent.parent


def body(user="It is red.", *, system="Be brief.", name="colour", **more):
    schema = {"type": "object", "properties": {name: {"enum": ["red", "blue"]}}}
    return {
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
        "max_tokens": 8,
        "temperature": 0.0,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
        **more,
    }


def test_requests_are_the_same_when_only_their_form_differs():
    parts = [{"type": "text", "text": "It is red."}]
    other = body()
    other["messages"][1]["content"] = parts
    schema = other["response_format"]["json_schema"]["schema"]
    schema["title"] = "Colour"
    schema["properties"]["colour"] |= {"type": "string", "title": "Colour"}
    other["temperature"] = 0
    assert differences([body(), body("two")], [body("two"), other | {"cache_salt": "s"}]) == []


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([body(), body()], ["user of 1"]),
        ([body(), body("two", system="Be long.")], ["system of 1"]),
        ([body(), body("two", max_tokens=9)], ["max_tokens of 1"]),
        ([body(), body("two", temperature=None)], ["temperature of 1"]),
        ([body(), body("two", name="hue")], ["schema of 1"]),
        ([body()], ["1 requests, not 2", "system of fewer", "user of fewer"]),
    ],
)
def test_difference_is_named_when_an_arm_asks_something_else(found, said):
    assert differences([body(), body("two")], found)[: len(said)] == said


def test_difference_is_named_when_parts_are_swapped():
    wanted = [body("one", max_tokens=1), body("two", max_tokens=2)]
    found = [body("one", max_tokens=2), body("two", max_tokens=1)]
    assert differences(wanted, found) == ["parts belong together in another way"]


def job(folder, case, recorder):
    return peer_cases.job(folder, case) | {
        "url": recorder.url, "model": "m", "salt": "s", "in_flight": 2, "folder": str(folder),
    }  # fmt: skip


@pytest.mark.parametrize("arm", ["openai", "openai by document"])
def test_loop_asks_what_headrace_asks_when_stages_name_earlier_ones(tmp_path, arm):
    case = peer_cases.CASES["three-stages"]
    first = case.stages[0].prompt
    asked = [body(f"text {number}\n\nQuestion: {first}") for number in range(3)]
    with recording("m", 8192) as recorder:
        peer_cases.write_rows(tmp_path, case, asked + [body("other")] * 6)
        rows = peer_arm.ARMS[arm]()(job(tmp_path, case, recorder))
        bodies, most = recorder.take()
    assert most <= 2
    assert len(bodies) == 9
    assert all(row[stage.name] in stage.choices for row in rows for stage in case.stages)
    last = [text for text in map(_user, bodies) if "about" in text and "act?" in text]
    wanted = [f"{row['text']}\n\nQuestion: {case.stages[-1].prompt.format(**row)}" for row in rows]
    assert sorted(last) == sorted(wanted)


def _user(one):
    return one["messages"][1]["content"]


def test_rows_are_refused_when_a_request_is_no_chunk_and_question(tmp_path):
    with pytest.raises(SystemExit, match="cannot be given the same"):
        peer_cases.write_rows(tmp_path, peer_cases.CASES["one-stage"], [body("no question")])


def test_pipeline_of_a_case_loads_and_its_prompts_name_earlier_stages(tmp_path):
    from config.load import load_pipeline

    for case in peer_cases.CASES.values():
        file = tmp_path / "bench.yaml"
        file.write_text(case.pipeline(), encoding="utf-8")
        stages = load_pipeline(file).stages
        assert [stage.name for stage in stages] == [stage.name for stage in case.stages]
        assert "{{ upstream.kind.kind }}" in case.pipeline() or len(stages) == 1


def test_versions_are_pinned_when_a_peer_has_an_environment():
    for peer in PEERS.values():
        pins = (ROOT / "benchmarks" / "peer_envs" / f"{peer.environment}.txt").read_text("utf-8")
        assert re.search(rf"^{peer.package}==", pins, re.MULTILINE)
        assert all(re.fullmatch(r"[\w.-]+==[\w.+]+( ;.*)?", line) for line in pins.splitlines())


def test_memory_is_that_of_the_children_too_when_a_command_has_some(tmp_path):
    child = "import time; held = b'x' * 80_000_000; time.sleep(1.2)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    ran = run_measured([sys.executable, "-c", parent], environment={}, folder=tmp_path)
    assert ran.peak_mb > 80
    assert ran.seconds > 1


def test_command_is_told_with_what_it_said_when_it_fails(tmp_path):
    with pytest.raises(SystemExit, match="no such luck"):
        run_measured(
            [sys.executable, "-c", "raise SystemExit('no such luck')"],
            environment={}, folder=tmp_path,
        )  # fmt: skip


def test_result_says_machine_commit_and_command_when_written(tmp_path, monkeypatch):
    file = tmp_path / "kept" / "a.json"
    monkeypatch.setattr(
        sys, "argv", ["x", "--documents", "3", "--json", str(file), "--envs=/e", "--repeats=1"]
    )
    measured_on = {"cores": 2, "commit": "abc"}
    write_result(file, "a", measured_on, facts={"f": 1.23456}, rows=[{"arm": "b", "seconds": 2.0}])
    found = json.loads(file.read_text(encoding="utf-8"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found.pop("date"))
    assert found == {
        "benchmark": "a", "machine": {"cores": 2}, "commit": "abc",
        "command": "python -m benchmarks.a --documents 3 --repeats=1",
        "arms": [{"name": "b", "seconds": 2.0}], "facts": {"f": 1.235},
    }  # fmt: skip


RESULT = {
    "benchmark": "any", "commit": "abc", "date": "2026-01-01",
    "command": "python -m benchmarks.any",
    "machine": {"cores": 2, "widest": "avx2", "memory_gib": 24, "python": "3.11.7"},
    "arms": [
        {"name": "headrace run", "case": "a & b", "seconds": 10.0, "process_s": 12.0,
         "prefilled_tokens": 1000, "failed": 0},
        {"name": "other", "case": "a & b", "seconds": 30.0, "process_s": 31.0,
         "prefilled_tokens": 4000, "failed": 2},
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", plots.CHARTS)
def test_chart_shows_every_arm_and_its_origin_when_drawn(name):
    text = plots.draw(plots.CHARTS[name], RESULT)
    drawn = ET.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    said = [one.text for one in drawn.iter(f"{space}text")]
    assert "Headrace" in said
    assert any("30" in (one or "") and "(3x)" in (one or "") for one in said)
    assert any(
        "python -m benchmarks.any at abc, 2026-01-01: 2 cores (avx2)" in (one or "") for one in said
    )
    assert "a & b" in drawn.find(f"{space}desc").text
    bars = [float(one.get("width")) for one in drawn.iter(f"{space}rect") if one.get("y")]
    assert max(bars) == plots._BAR_PX
    assert "prefers-color-scheme:dark" in text


def test_charts_in_docs_are_those_of_the_results_when_some_are_kept():
    for name, text in plots.drawn():
        kept = (ROOT / "docs" / f"{name}.svg").read_text(encoding="utf-8")
        assert kept == text, f"docs/{name}.svg is old: python -m benchmarks.plots"


def test_chart_has_its_result_when_it_lies_in_docs():
    for name, chart in plots.CHARTS.items():
        if (ROOT / "docs" / f"{name}.svg").exists():
            assert (plots.RESULTS / f"{chart.result}.json").exists()


def test_benchmark_against_peers_runs_in_small_without_peers():
    result = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.peers", "--cases=fixed-latency", "--requests=8",
            "--repeats=1", "--arms=",
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    (arm,) = found["arms"]
    assert (arm["rows"], arm["failed"]) == (8, 0)
    assert arm["process_s"] > arm["seconds"] > 0
    assert arm["peak_mb"] > 50
