"""The four rungs of the maturity ladder, each as it comes along, on fake engines."""

import json

import polars as pl
import pytest

from config.errors import ConfigError
from config.load import PROFILES
from flows.run.core import run_job
from flows.run.job import Options, make_job
from flows.terminal import summary_lines
from tests.fakes.agent_server import AgentServer
from tests.fakes.engine_server import FakeEngine, Fault
from tests.fakes.shipped_scripts import Comparer
from tests.flows.test_agents import PROFILE

NAMES = ("Emil Varga", "Lena Okafor", "Ruth Adler")
NUMBERS = ("DE89 3704 0044 0532 0130 00", "GB82 WEST 1234 5698 7654 32", "040 5550199", "5550 1420")
MAILS = ("emil.varga@harbour.example", "rechnung@nordlicht.example")


def profile(folder, name, engine, more=""):
    """Write a profile under a name that a rung uses, and return its path."""
    file = folder / f"{name}.yaml"
    file.write_text(
        f"name: {name}\nbase_url: {engine.url}\ncapabilities: {{structured_output: true}}\n"
        f"modes: {{instant: {{sampling: {{temperature: 0.6}}}}}}\n{more}",
        encoding="utf-8",
    )
    return str(file)


def away(folder, engine):
    prices = "prices: {input_usd: 0.6, cached_input_usd: 0.1, output_usd: 3.0}\n"
    return profile(folder, "host", engine, f"hosted_by: Somebody\n{prices}")


def run(rung, folder, **options):
    manifest = run_job(make_job(rung, Options(sink=str(folder / "lake"), **options)))
    assert manifest["verdict"] == "complete", manifest["failures"]
    return manifest


def records(folder, stage):
    return pl.read_parquet(f"{folder}/lake/records/stage={stage}/*.parquet").to_dicts()


def said(engine):
    return "\n".join(message["content"] for call in engine.calls for message in call["messages"])


def test_pilot_shows_a_host_letters_without_names_and_numbers(tmp_path):
    with FakeEngine() as host:
        manifest = run("ladder_pilot", tmp_path, engine=away(tmp_path, host))
        text = said(host)
    assert "mooring rope" in text
    assert [found for found in (*NAMES, *NUMBERS, *MAILS) if found in text] == []
    assert manifest["routes"][0]["route"] == "masked"
    assert manifest["spent"]["usd"] > 0
    assert len(records(tmp_path, "letter")) == 3


def test_hybrid_keeps_personnel_files_at_home_and_says_so_on_the_report(tmp_path):
    with FakeEngine() as host, FakeEngine() as home:
        own = profile(tmp_path, "own", home)
        manifest = run(
            "ladder_hybrid",
            tmp_path,
            engine=away(tmp_path, host),
            settings=(f"policy.on_premises=[{json.dumps(own)}]",),
        )
        away_text, home_text = said(host), said(home)
    assert "Personnel file" not in away_text
    assert [found for found in (*NAMES, *NUMBERS, *MAILS) if found in away_text] == []
    assert home_text.count("Personnel file") >= 2
    assert "Ruth Adler" in home_text
    assert {
        row["path"].split("/")[0]: row["policy_route"] for row in records(tmp_path, "letter")
    } == {
        "letters": "masked",
        "staff": "sensitive",
    }
    assert [row["policy_route"] for row in records(tmp_path, "overview")] == ["sensitive"]
    page = (tmp_path / "lake" / "reports" / manifest["run_id"] / "report.md").read_text()
    assert "route masked: 3 documents; host at 127.0.0.1" in page
    assert "route sensitive: 2 documents; own at 127.0.0.1" in page
    told = summary_lines(manifest)["route sensitive"]
    # Two letters and the overview.
    assert "answered 3 requests; allowed: policy.on_premises names" in told


def test_hybrid_is_refused_when_its_own_engine_is_a_host(tmp_path):
    with FakeEngine() as host:
        file = away(tmp_path, host)
        options = Options(
            sink=str(tmp_path / "lake"),
            engine=file,
            settings=(f"policy.on_premises=[{json.dumps(file)}]",),
        )
        with pytest.raises(ConfigError, match="hosted by Somebody"):
            run_job(make_job("ladder_hybrid", options))
        assert host.calls == []


def test_autonomous_asks_the_adapter_and_adds_up_what_is_disputed(tmp_path, monkeypatch):
    def script(number, body):
        kinds = ["order", "payment", "repair"]
        label = body["messages"][-1]["content"].split("[")[1].split("]")[0]
        answer = {"wants": kinds[number % 3], "due": None, "summary": "s", "says": label}
        return Fault(content=json.dumps(answer))

    with FakeEngine(script=script) as cluster:
        profile(tmp_path, "our-cluster", cluster, "adapters: {letters: ours}\n")
        monkeypatch.setenv("HEADRACE_PROFILES", str(tmp_path))
        run("ladder_autonomous", tmp_path)
        assert {call["model"] for call in cluster.calls} == {"letters"}
        assert len(cluster.calls) == 15
    (row,) = records(tmp_path, "audit")
    assert (row["answered_by"], row["ended"], row["questions"]) == ("letters", "succeeded", 5)
    assert row["disputed"] == sum(one["agreement"] < 1 for one in records(tmp_path, "letter")) > 0


def test_autonomous_is_refused_when_it_would_go_to_a_host(tmp_path):
    options = Options(sink=str(tmp_path / "lake"), engine="moonshot")
    with pytest.raises(ConfigError, match="engine: 'moonshot' would be sent documents"):
        run_job(make_job("ladder_autonomous", options))


def test_agentic_compares_laws_by_a_swarm_on_own_engines(tmp_path, monkeypatch):
    with AgentServer(Comparer(), latency=0.03) as first, AgentServer(Comparer()) as second:
        for name, server in (("our-cluster", first), ("kimi-k2.6", second)):
            text = PROFILE.format(url=server.url).replace("name: scripted", f"name: {name}")
            (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        monkeypatch.setenv("HEADRACE_PROFILES", str(tmp_path))
        run("ladder_agentic", tmp_path)
    (row,) = records(tmp_path, "compare")
    assert row["outcome"] == "succeeded", row["error"]
    assert row["policy_route"] == "sensitive"
    assert {claim["verdict"] for claim in row["claims"]} == {"verified"}


def test_engines_that_rungs_name_come_along():
    known = {file.stem for file in PROFILES.glob("*.yaml")}
    for rung in ("pilot", "hybrid", "autonomous", "agentic"):
        pipeline = make_job(f"ladder_{rung}", Options(sink="/nowhere")).pipeline
        named = {pipeline.engine, *pipeline.fallback, *pipeline.policy.on_premises}
        assert named <= known
