"""`headrace engine check`: what it prints, when it refuses, and the embedded engine under it."""

import json
import threading

import pytest
from typer.testing import CliRunner

from engine.check import CheckWish
from engine.profile import Throughput
from engine.server import cache_tokens
from flows.cli import app
from flows.engine_check import EngineCheck, check
from tests.engine.check_host import good, page
from tests.fakes.engine_server import FakeEngine, Fault

PROFILE = """\
name: {name}
base_url: {url}
api_key_env: CHECKED_KEY
context_tokens: 8192
max_in_flight: 4
capabilities: {{tools: true, forced_calls: true, structured_output: true, cached_tokens: true}}
{more}
modes:
  instant:
    wire: {{chat_template_kwargs: {{thinking: false}}}}
  thinking:
    reasoning_tokens: 64
"""
PRICES = "prices: {input_usd: 1.0, cached_input_usd: 0.1, output_usd: 3.0}"
KEY = "canary-51c0ffee"
SMALL = ("--context", "2048", "--concurrency", "2", "--requests", "4")


@pytest.fixture
def host(monkeypatch):
    monkeypatch.setenv("CHECKED_KEY", KEY)
    with FakeEngine(script=good, api_key=KEY) as engine:
        engine.metrics = page()
        yield engine


@pytest.fixture
def profile(host, tmp_path):
    """Return a writer of profile files."""

    def write(more="", name="checked"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(PROFILE.format(name=name, url=host.url, more=more), encoding="utf-8")
        return str(file)

    return write


def run(*arguments):
    return CliRunner().invoke(app, ["engine", "check", *arguments], env={"COLUMNS": "200"})


def test_verdict_comes_first_and_progress_is_on_stderr(host, profile):
    done = run(profile(), *SMALL)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == f"READY: fake-model at {host.url}"
    assert any(line.startswith("throughput: {prompt_tokens_per_s: ") for line in lines)
    assert "sending 19 requests to checked: 4 of 2,048 tokens, 2 at once" in done.stderr
    assert "long requests: 3 sent" in done.stderr
    assert "long requests" not in done.stdout
    assert KEY not in done.output


def test_throughput_can_be_put_into_a_profile_as_it_is_printed(host, profile):
    done = run(profile(), *SMALL)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("throughput")]
    again = run(profile(line, name="again"), *SMALL, "--json")
    assert json.loads(again.stdout)["engine"] == "again"
    assert Throughput(**json.loads(again.stdout)["throughput"])


def test_json_is_one_object_when_the_engine_is_not_ready(host, profile):
    host.script = lambda number, body: (
        Fault(status=400, body=f'{{"error": {{"message": "no tools, {KEY}"}}}}'.encode())
        if "tools" in body
        else good(number, body)
    )
    done = run(profile(), *SMALL, "--json")
    shown = json.loads(done.stdout)
    assert done.exit_code == 1
    assert (shown["verdict"], shown["ready"]) == ("not ready", False)
    assert any("no tools, [key]" in text for text in shown["errors"])
    assert KEY not in done.output


def test_same_prompts_are_sent_when_the_seed_is_given_again(host, profile):
    file = profile()
    seed = json.loads(run(file, *SMALL, "--json").stdout)["sent"]["seed"]
    first = [body["messages"] for body in host.calls]
    host.calls.clear()
    run(file, *SMALL, "--seed", str(seed))
    second = [body["messages"] for body in host.calls]
    assert sorted(map(json.dumps, first)) == sorted(map(json.dumps, second))


def test_nothing_is_sent_when_a_priced_host_has_no_budget(host, profile):
    done = run(profile(PRICES), *SMALL)
    assert done.exit_code == 2
    assert host.calls == []
    assert "can cost up to 0.0" in done.stderr
    enough = done.stderr.split("Give --budget-usd ")[1].split(",")[0]
    too_little = run(profile(PRICES), *SMALL, "--budget-usd", "0.001")
    assert (too_little.exit_code, host.calls) == (2, [])
    paid = run(profile(PRICES), *SMALL, "--budget-usd", enough, "--json")
    assert paid.exit_code == 0, paid.output
    assert 0 < json.loads(paid.stdout)["spent"]["usd"] <= float(enough)


def test_budget_is_refused_when_there_are_no_prices(host, profile):
    done = run(profile(), "--budget-usd", "1")
    assert done.exit_code == 2
    assert "has no `prices`" in done.stderr
    assert host.calls == []


def test_context_is_refused_when_it_is_beyond_the_engines(host, profile):
    done = run(profile(), "--context", "100000")
    assert done.exit_code == 2
    assert "takes 8,192" in done.stderr
    assert host.calls == []


def test_server_that_dies_is_told_and_exits_with_1(host, profile):
    def dying(number, body):
        if number == 2:
            threading.Thread(target=host._server.die, daemon=True).start()
            return Fault(cut=True)
        return good(number, body)

    host.script, host.latency_s = dying, 0.05
    done = run(profile(), *SMALL)
    assert done.exit_code == 1
    assert done.stdout.startswith("NOT READY")
    assert "does not answer any more" in done.stdout


def test_nothing_is_checked_when_nothing_listens():
    done = run("http://127.0.0.1:9/v1")
    assert done.exit_code == 1
    assert "cannot be reached" in done.stderr


@pytest.mark.vllm
@pytest.mark.timeout(300)
def test_embedded_engine_is_ready_with_its_own_figures(embedded_engine):
    wish = CheckWish(context_tokens=1280, concurrency=4, num_requests=4)
    found = check(EngineCheck(engine="embedded", wish=wish), lambda _: None)
    shown = found.as_json()
    assert shown["sent"]["answered"] == shown["sent"]["requests"]
    assert shown["kv_cache"]["tokens"] == cache_tokens(embedded_engine.base_url)
    assert 0 < shown["kv_cache"]["peak_used"] < 0.5
    assert shown["kv_cache"]["preemptions"] == 0
    assert shown["modes"] == {"instant": {"right": 8, "of": 8, "share": 1.0, "wrong": []}}
    assert shown["structured_output"]["share"] == 1
    # It calls none of its own accord; what the grammar forces follows the schema.
    assert shown["tools"]["called_when_forced"]["share"] == 1
    assert shown["prefix_cache"]["hit_share"] > 0.5
    assert abs(shown["planner"]["planner_differs_percent"]) < 2
    assert (
        shown["throughput"]["prompt_tokens_per_s"] > shown["throughput"]["output_tokens_per_s"] > 0
    )
    assert found.report.is_ready
