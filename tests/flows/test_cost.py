"""What a corpus costs by host and mode, by hand and by the command."""

import json
import os

import pytest
from typer.testing import CliRunner

from config.load import load_profile
from engine.profile import ModeSettings, Prices, Profile, Throughput
from flows.capacity import Asked, capacity
from flows.cli import app
from flows.cost import Load, Rent, Turns, as_agents, as_swarm, break_even, price
from flows.run.core import run_job
from flows.run.job import Options, make_job

LOAD = Load(
    requests=10, prompt_tokens=40_000, cached_tokens=10_000, output_tokens=2_000, is_expected=True
)
SOLD = Profile(
    name="sold",
    base_url="http://localhost:1/v1",
    prices=Prices(input_usd=1.0, cached_input_usd=0.1, output_usd=3.0, batch_factor=0.5),
    modes={"instant": ModeSettings()},
)
OWN = Profile(
    name="own",
    base_url="http://localhost:2/v1",
    gpus=4,
    throughput=Throughput(prompt_tokens_per_s=1_000, output_tokens_per_s=100),
    modes={"instant": ModeSettings()},
)
RENT = Rent(gpu_hour_usd=3.6)


def test_dollars_follow_from_misses_hits_and_answers():
    row = price(LOAD, SOLD, RENT, documents=5)
    assert row["usd"] == pytest.approx((30_000 * 1.0 + 10_000 * 0.1 + 2_000 * 3.0) / 1e6)
    assert row["usd_without_cache"] == pytest.approx((40_000 * 1.0 + 2_000 * 3.0) / 1e6)
    assert row["usd_batch_api"] == pytest.approx(row["usd_without_cache"] / 2)
    assert row["usd_per_document"] == pytest.approx(row["usd"] / 5)
    assert row["gpu_hours"] is None


def test_gpu_hours_follow_from_the_throughput():
    row = price(LOAD, OWN, RENT, documents=5)
    # 30 s for what is computed, 20 s for what is generated, on 4 GPUs.
    assert row["gpu_hours"] == pytest.approx(4 * 50 / 3600)
    assert row["usd"] == pytest.approx(4 * 50 / 3600 * 3.6)


def test_what_is_missing_is_named_and_tokens_are_told_all_the_same():
    bare = OWN.model_copy(update={"throughput": None, "gpus": None})
    row = price(LOAD, bare, Rent(), documents=5)
    assert row["usd"] is row["gpu_hours"] is row["hours"] is row["usd_per_document"] is None
    assert row["prompt_tokens"] == 40_000
    told = " ".join(row["assumed"])
    assert all(option in told for option in ("--gpus", "--gpu-hour", "--throughput"))


def test_published_pace_is_taken_for_as_many_gpus_only():
    eight = OWN.model_copy(update={"throughput": None, "gpus": 8})
    assert "Kimi-K2-Think.md" in " ".join(price(LOAD, eight, RENT, documents=5)["assumed"])
    assert price(LOAD, eight, RENT, documents=5)["hours"] is not None
    assert price(LOAD, eight, Rent(gpus=16), documents=5)["hours"] is None


@pytest.mark.parametrize(("maker", "told"), [("Acme", True), (None, False)])
def test_missing_prices_are_named_first_when_somebody_hosts_the_model(maker, told):
    bare = OWN.model_copy(update={"hosted_by": maker})
    first = price(LOAD, bare, RENT, documents=5)["assumed"][0]
    assert (first.startswith("prices of own are not known") and "ask Acme" in first) is told


def test_published_pace_counts_once_for_each_server_of_as_many_gpus():
    bare = OWN.model_copy(update={"throughput": None})
    one = price(LOAD, bare, Rent(gpus=8), documents=5)
    two = price(LOAD, bare, Rent(gpus=16, servers=2), documents=5)
    assert two["hours"] == pytest.approx(one["hours"] / 2)
    assert two["gpu_hours"] == pytest.approx(one["gpu_hours"])
    assert "(2 servers, each as in " in " ".join(two["assumed"])


def test_agents_read_again_what_came_before_and_hit_it():
    turns = Turns(count=3, call_tokens=100, result_tokens=900)
    load = as_agents(LOAD, turns)
    # Per question: 4,000, then 5,000, then 6,000 tokens; new in the later turns are 1,000 each.
    assert load.requests == 30
    assert load.prompt_tokens == 10 * (4_000 + 5_000 + 6_000)
    assert load.prompt_tokens - load.cached_tokens == 30_000 + 10 * 2 * 1_000
    assert load.output_tokens == 2_000 + 10 * 2 * 100
    assert price(load, SOLD, RENT, documents=5)["usd_batch_api"] is None


def test_swarm_is_its_agents_and_an_orchestrator_for_ten():
    turns = Turns(count=3)
    agents, swarm = as_agents(LOAD, turns), as_swarm(LOAD, turns)
    assert swarm.requests == agents.requests + 15
    assert swarm.prompt_tokens > agents.prompt_tokens
    assert swarm.output_tokens == agents.output_tokens + 14 * turns.call_tokens


def test_one_turn_is_no_agent():
    load = as_agents(LOAD, Turns(count=1))
    assert (load.prompt_tokens, load.cached_tokens, load.output_tokens) == (40_000, 10_000, 2_000)


@pytest.mark.parametrize(("gpu_hour", "pays"), [(0.001, True), (3.6, False)])
def test_own_gpus_pay_from_a_volume_that_they_can_do(gpu_hour, pays):
    rent = Rent(gpu_hour_usd=gpu_hour)
    api, own = ({"mode": "instant"} | price(LOAD, one, rent, documents=5) for one in (SOLD, OWN))
    even = break_even(api, own, rent, documents=5)
    assert even["usd_a_month"] == pytest.approx(730 * 4 * gpu_hour, abs=0.01)
    assert even["documents_a_month"] * api["usd"] / 5 == pytest.approx(
        even["usd_a_month"], rel=0.01
    )
    assert even["most_documents_a_month"] == round(730 * 3600 / 50 * 5)
    assert (even["documents_a_month"] <= even["most_documents_a_month"]) is pays
    assert ("at any volume" in even["verdict"]) is not pays


def test_no_break_even_is_made_up_without_a_price():
    api, own = ({"mode": "instant"} | price(LOAD, one, Rent(), documents=5) for one in (SOLD, OWN))
    even = break_even(api, own, Rent(), documents=5)
    assert even["documents_a_month"] is None
    # Throughput and number are in the profile.
    assert even["verdict"] == "cannot be told without the price of a GPU-hour (--gpu-hour)"


def test_everything_that_keeps_from_a_break_even_is_named():
    bare = Profile(name="bare", base_url="http://h/v1", modes={"instant": ModeSettings()})
    api, own = ({"mode": "instant"} | price(LOAD, one, Rent(), documents=5) for one in (SOLD, bare))
    told = break_even(api, own, Rent(), documents=5)["verdict"]
    assert [name in told for name in ("--throughput", "--gpus", "--gpu-hour")] == [True] * 3


PIPELINE = """
name: notes
source: ./papers
sink: ./lake
stages:
  - {name: kind, prompt: "What is it?", output: {kind: log|table}, max_output_tokens: 200}
"""
PROFILES = {
    "priced": "prices: {input_usd: 100.0, cached_input_usd: 10.0, output_usd: 300.0}",
    "own": "gpus: 2\nthroughput: {prompt_tokens_per_s: 1000, output_tokens_per_s: 100}",
}
HOST = """
name: {name}
base_url: {url}
model: fake-model
capabilities: {{structured_output: true, cached_tokens: true}}
{facts}
modes: {{instant: {{sampling: {{temperature: {heat}}}}}, thinking: {{}}}}
"""


@pytest.fixture
def here(tmp_path, monkeypatch, engine):
    """A working folder with documents, a pipeline, and two hosts that are one fake engine."""
    (tmp_path / "papers").mkdir()
    for number in range(6):
        text = f"Log {number}\n\nThe pilot boat left at dawn on day {number}."
        (tmp_path / "papers" / f"{number}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "notes.yaml").write_text(PIPELINE, encoding="utf-8")
    for name, facts in PROFILES.items():
        # As another model would be: answers of one say nothing of the other's settings.
        heat = len(name) / 10
        text = HOST.format(name=name, url=engine.url, facts=facts, heat=heat)
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADRACE_STATE", str(tmp_path / "state"))
    for name in [name for name in os.environ if name.startswith(("AWS_", "PREFECT_"))]:
        monkeypatch.delenv(name)
    return tmp_path


def cost(*arguments):
    hosts = ("--engine", "priced.yaml", "--host", "priced.yaml", "--host", "own.yaml")
    return CliRunner().invoke(app, ["cost", "notes.yaml", *hosts, *arguments])


def costs(*arguments):
    result = cost(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def test_every_mode_is_priced_on_every_host_that_has_it(here, engine):
    found = costs("--gpu-hour", "2", "--all")
    assert [(row["mode"], row["host"]) for row in found["rows"]] == [
        (mode, host)
        for mode in ("instant", "thinking")
        for host in ("priced", "own")
    ]  # fmt: skip
    assert len(found["break_even"]) == 2
    assert engine.calls == []
    text = cost("--gpu-hour", "2").stdout
    assert "assumed" in text
    assert "documents a month" in text


@pytest.mark.parametrize(("gpus", "fits"), [("8xH200", True), ("4xH200", False)])
def test_gpus_that_do_not_hold_the_model_have_no_price(here, gpus, fits):
    with (here / "own.yaml").open("a", encoding="utf-8") as file:
        file.write("facts: kimi-k2.5\n")
    found = costs("--gpu-hour", "2", "--gpus", gpus, "--mode", "instant")
    own = found["rows"][1]
    assert (own["usd"] is not None) is fits
    told = " ".join(own["assumed"])
    assert f"{gpus} {'hold' if fits else 'do not hold'} Kimi K2.5" in told
    assert ("do not hold" in found["break_even"][0]["verdict"]) is not fits


def test_gpus_hold_what_engine_plan_says_when_several_servers_share_them(here):
    own = (here / "own.yaml").read_text(encoding="utf-8")
    own = own.replace("gpus: 2", "gpus: 16\ngpu_kind: H200\nfacts: kimi-k2.5")
    (here / "own.yaml").write_text(own + "replicas: [http://localhost:9/v1]\n", encoding="utf-8")
    planned = capacity(load_profile("own.yaml"), Asked())
    assert planned.layout.replicas == 2
    assert planned.reasons[0] in costs("--gpu-hour", "2", "--mode", "instant")["rows"][1]["assumed"]


def test_cost_is_that_of_the_run_when_answers_are_there(here):
    manifest = run_job(make_job("notes.yaml", Options(engine="priced.yaml")))
    (api, own) = costs("--mode", "instant", "--all", "--gpu-hour", "2")["rows"]
    spent = manifest["stages"]["kind"]
    assert api["basis"] == own["basis"] == "expected"
    assert api["requests"] == spent["requests"] == 6
    assert api["output_tokens"] == own["output_tokens"] == spent["completion_tokens"]
    assert "measured on priced" in " ".join(own["assumed"])


def test_corpus_of_another_size_costs_in_proportion(here):
    small = costs("--mode", "instant", "--all")["rows"][0]
    large = costs("--mode", "instant", "--all", "--documents", "6000")["rows"][0]
    assert large["requests"] == 1_000 * small["requests"]
    assert large["usd"] == pytest.approx(1_000 * small["usd"], rel=0.001)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mode", "haste"], "none of as given, instant"),
        (["--throughput", "fast"], "not two numbers above 0"),
        (["--throughput", "5"], "not two numbers above 0"),
        (["--throughput", "0,5"], "not two numbers above 0"),
        (["--host", "nowhere"], "nowhere"),
        (["--gpus", "8xFoo"], "'Foo' is not in the catalogue"),
        (["--pilot", "2", "--sink", "./papers"], "source"),
    ],
)
def test_wrong_option_is_named(here, arguments, said):
    result = cost(*arguments)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.output.split())


def test_modes_are_not_forced_on_agents(here):
    text = PIPELINE.replace("max_output_tokens: 200", "mode: agent, tools: [search], over: corpus")
    (here / "notes.yaml").write_text(text, encoding="utf-8")
    hosts = (here / "priced.yaml").read_text(encoding="utf-8")
    (here / "priced.yaml").write_text(hosts.replace("{structured", "{tools: true, structured"))
    result = cost("--mode", "thinking")
    assert result.exit_code == 2
    assert "call tools" in " ".join(result.output.split())


POLICY = """
policy:
  sensitive: {sensitive}
  on_premises: [own.yaml]
  mask: {{words: [Ada]}}
"""


def with_policy(here, sensitive):
    hosted = (here / "priced.yaml").read_text(encoding="utf-8") + "hosted_by: Somebody\n"
    (here / "priced.yaml").write_text(hosted, encoding="utf-8")
    text = (
        PIPELINE
        + "  - {name: all, over: corpus, needs: [kind], prompt: 'And?', output: {first: string}}\n"
    )
    (here / "notes.yaml").write_text(text + POLICY.format(sensitive=sensitive), encoding="utf-8")


def test_sensitive_documents_are_told_when_no_row_is_about_them(here):
    with_policy(here, '["1.txt", "2.txt"]')
    found = costs("--mode", "instant", "--all", "--gpu-hour", "2")
    assert found["documents"] == 4
    (told,) = found["left_out"]
    assert told.startswith("not in these rows: 2 sensitive documents")
    assert "stages that rest on all of them (all); they stay on own, and" in told
    assert told in cost("--mode", "instant").stdout


def test_own_engines_are_compared_when_nothing_may_leave(here):
    with_policy(here, "true")
    arguments = ["cost", "notes.yaml", "--engine", "own.yaml", "--mode", "instant", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert [row["host"] for row in found["rows"]] == ["own"]
    assert found["left_out"] == []
    refused = CliRunner().invoke(app, [*arguments, "--host", "priced.yaml"])
    assert refused.exit_code == 2
    assert "--host priced.yaml: engine: 'priced.yaml' would be sent" in refused.output


def test_host_that_nobody_named_is_not_told_as_if_it_had_been(here):
    with_policy(here, '["1.txt"]')
    with (here / "notes.yaml").open("a", encoding="utf-8") as file:
        file.write("  certifications: [FIPS 140-3]\n")
    arguments = ["cost", "notes.yaml", "--engine", "own.yaml", "--mode", "instant"]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert "moonshot, which is compared where no --host is named: " in refused.output


def test_assumptions_are_the_same_when_a_masked_corpus_is_priced_again(here):
    with_policy(here, '["1.txt"]')
    first, second = (costs("--all", "--mode", "instant", "--mode", "thinking") for _ in range(2))
    assert first == second
    assert "tokens counted by estimate, with a margin" in first["rows"][0]["assumed"]


def test_gpus_of_this_machine_are_priced_when_asked_for(here, monkeypatch):
    (here / "bin").mkdir()
    listing = here / "bin" / "nvidia-smi"
    line = "NVIDIA H200, 143771, 9.0, 590.10"
    listing.write_text(f"#!/bin/sh\nfor i in 1 2 3 4; do echo '{line}'; done\n", encoding="utf-8")
    listing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{here / 'bin'}:{os.environ['PATH']}")
    own = costs("--mode", "instant", "--gpus", "found")["rows"][1]
    assert own["gpus"] == 4
    monkeypatch.setenv("PATH", str(here))
    result = cost("--gpus", "found")
    assert (result.exit_code, "nvidia-smi lists no GPU" in result.output) == (2, True)
