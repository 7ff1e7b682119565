"""Search by meaning through whole runs: a scripted agent, real files, a host of vectors over a socket."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time

import polars as pl
import pytest

from config.errors import ConfigError
from engine.batch import line_of_vectors, route_to
from engine.errors import EngineMisconfigured
from engine.profile import Profile, RateTier
from flows.estimate import estimate
from flows.run.bench import _with_limits
from flows.run.core import run_job
from flows.run.job import Options, make_job
from flows.run.resume import reopen
from tests.engine.test_batch import endpoint_of
from tests.fakes.agent_script import ScriptedCall, ScriptedReply, Transcript
from tests.fakes.agent_server import AgentServer
from tests.fakes.embedding_server import EmbeddingServer
from tests.flows.test_agents import PROFILE

POLICY = (
    "Travel policy\n\nA hotel night may cost 150 EUR at most.\n\nTrains are second class.\n\n"
    "Flights need the approval of a director.\n"
)
VECTORS = """\
name: vectors
base_url: {url}
context_tokens: {context}
tokenizer: {{tokenize: false}}
api_key_env: VECTORS_KEY
modes: {{}}
embeddings: {{texts_per_call: {per_call}, passage_prefix: "passage: ", query_prefix: "query: "}}
prices: {{input_usd: 1000.0, cached_input_usd: 0.0, output_usd: 0.0}}
"""
STAGE = """\
  - name: find
    over: corpus
    mode: agent
    tools: [search]
    prompt: How much may a night cost?
    output: {told: string}
"""


KILLED = """
import json, sys
from pathlib import Path
from flows.estimate import estimate
from flows.run.core import run_job
from flows.run.job import job_from_json
run_job(job_from_json(json.loads(Path(sys.argv[1]).read_text()), "new"))
"""


class Searcher:
    """Searches for words that stand nowhere, and answers with what came back."""

    def __init__(self, query="overnight accommodation ceiling"):
        self.query = query

    def reply(self, body):
        sent = Transcript(body)
        if sent.tools and not sent.calls:
            return ScriptedReply(calls=[ScriptedCall("search", {"query": self.query})])
        return ScriptedReply(content=json.dumps({"told": sent.results[-1]}), reasoning="Done.")


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "policy.txt").write_text(POLICY, encoding="utf-8")
    for number in range(20):
        text = f"Report {number}\n\nThe pump of berth {number} was oiled on day {number}.\n"
        (tmp_path / "in" / f"report{number:02}.txt").write_text(text, encoding="utf-8")
    return tmp_path


def job(corpus, agents, host, *, vectors="vectors.yaml", stages=STAGE, head="", **other):
    options = {name: other.pop(name) for name in list(other) if name.startswith("budget")}
    (corpus / "scripted.yaml").write_text(PROFILE.format(url=agents.url), encoding="utf-8")
    facts = {"url": host.url if host else "", "context": 4096, "per_call": 4, **other}
    (corpus / "vectors.yaml").write_text(VECTORS.format(**facts), encoding="utf-8")
    asked = f"search: {{vectors: {vectors}}}\n" if vectors else ""
    (corpus / "work.yaml").write_text(f"name: work\n{head}{asked}stages:\n{stages}")
    where = {"source": str(corpus / "in"), "sink": str(corpus / "lake")}
    options = Options(engine=str(corpus / "scripted.yaml"), **where, **options)
    return make_job(corpus / "work.yaml", options)


def record(corpus, stage="find"):
    (row,) = pl.read_parquet(f"{corpus}/lake/records/stage={stage}/*.parquet").to_dicts()
    return row


def calibrated(asked):
    """Return how many answers on the sink a plan takes for those of its stage."""
    return estimate(asked, sample=None, notify=lambda _: None)["stages"][0]["calibrated_by"]


def packs(corpus):
    return sorted((corpus / "lake" / "_headrace" / "vectors").glob("*/*.npy"))


def test_passage_is_found_by_meaning_where_no_word_of_the_query_stands_in_it(corpus):
    with AgentServer(Searcher()) as agents, EmbeddingServer() as host:
        run_job(job(corpus, agents, host, vectors=None))
        assert record(corpus)["told"].startswith("Nothing found")
        assert not host.calls

        run_job(job(corpus, agents, host))
    told = record(corpus)["told"]
    assert "A hotel night may cost 150 EUR at most." in told.split("\n\n")[1]
    assert "policy.txt" in told.split("\n\n")[1].splitlines()[0]
    assert told.split("\n\n")[1].splitlines()[0].endswith("found by meaning")
    assert all(re.match(r"(passage|query): |water$", text) for call in host.calls for text in call)


def test_passage_that_words_and_meaning_find_comes_first_and_says_so(corpus):
    query = "hotel night cost limit, pump"
    with AgentServer(Searcher(query)) as agents, EmbeddingServer() as host:
        run_job(job(corpus, agents, host))
    first = record(corpus)["told"].split("\n\n")[1]
    assert "A hotel night" in first
    assert first.splitlines()[0].endswith("found by words and meaning")


def test_query_in_quotes_is_looked_for_by_words_only(corpus):
    with AgentServer(Searcher('"hotel night"')) as agents, EmbeddingServer() as host:
        run_job(job(corpus, agents, host))
    assert record(corpus)["told"].startswith("1 passage:")
    assert host.texts == ["water"]


def test_vectors_are_paid_once_by_all_runs_and_only_new_texts_later(corpus):
    with AgentServer(Searcher()) as agents, EmbeddingServer() as host:
        run_job(job(corpus, agents, host))
        passages = [text for text in host.texts if text.startswith("passage: ")]
        assert len(passages) == len(set(passages)) > 20
        host.texts.clear()
        (corpus / "in" / "new.txt").write_text("A railway ticket is second class.\n")
        run_job(job(corpus, agents, host))
    assert [text for text in host.texts if text.startswith("passage: ")] == [
        "passage: A railway ticket is second class."
    ]


def test_what_vectors_took_is_in_budget_usage_and_transcript(corpus):
    with AgentServer(Searcher()) as agents, EmbeddingServer() as host:
        manifest = run_job(job(corpus, agents, host))
        (stage,) = estimate(job(corpus, agents, host), sample=None, notify=lambda _: None)["stages"]
    rows = pl.read_parquet(f"{corpus}/lake/runs/{manifest['run_id']}/transcripts/*.parquet")
    made = rows.filter(kind="embedded")
    # The word that shows that the host gives vectors is asked for before there is a budget.
    assert made["prompt_tokens"].sum() == host.num_tokens - 1
    assert made["cost_usd"].sum() == pytest.approx((host.num_tokens - 1) / 1000)
    assert set(made["engine"]) == {"vectors"}
    tokens = rows.select(pl.sum("prompt_tokens") + pl.sum("completion_tokens")).item()
    assert manifest["spent"]["tokens"] == tokens
    assert manifest["spent"]["usd"] == pytest.approx(rows["cost_usd"].sum())
    usage = pl.read_parquet(f"{corpus}/lake/runs/{manifest['run_id']}/usage/stage-*.parquet")
    assert usage["cost_usd"].sum() == pytest.approx(rows["cost_usd"].sum())
    assert usage["embedded_tokens"].sum() == made["prompt_tokens"].sum()
    # They are paid once, so a plan does not count them for every record.
    chat = usage["prompt_tokens"].sum() - usage["embedded_tokens"].sum()
    assert stage["prompt_tokens_expected"] == pytest.approx(chat, abs=1)


def test_model_at_another_address_has_the_same_vectors_and_answers(corpus):
    with AgentServer(Searcher()) as agents:
        for number in range(2):
            with EmbeddingServer() as host:
                run_job(job(corpus, agents, host, vectors=host.url))
                assert host.texts[0] == "water"
                assert bool(host.texts[1:]) == (number == 0)
                bodies = len(agents.bodies)
    assert bodies == 2


def test_another_model_at_the_same_address_is_another_question(corpus):
    with AgentServer(Searcher()) as agents, EmbeddingServer() as host:
        asked = job(corpus, agents, host, vectors=host.url)
        run_job(asked)
        passages = sorted(set(host.texts))
        host.texts.clear()
        assert calibrated(asked) == 1
        host.model = "other"
        assert calibrated(asked) == 0
        run_job(job(corpus, agents, host, vectors=host.url))
        assert sorted(set(host.texts)) == passages
        assert len(agents.bodies) == 4


def test_texts_cut_at_a_wrong_length_are_made_into_vectors_anew_at_the_right_one(corpus):
    (corpus / "in" / "long.txt").write_text("hotel " * 3000, encoding="utf-8")
    with AgentServer(Searcher()) as agents, EmbeddingServer() as host:
        longest = []
        for context in (256, 4096):
            host.texts.clear()
            run_job(job(corpus, agents, host, context=context))
            longest.append(max(text.count("hotel") for text in host.texts))
    assert longest[0] < longest[1] == 200
    assert len(agents.bodies) == 4


def test_budget_holds_for_vectors_and_a_larger_one_goes_on_with_those_that_are_paid(corpus):
    with AgentServer(Searcher()) as agents, EmbeddingServer() as host:
        first = run_job(job(corpus, agents, host, budget_usd=0.22))
        assert record(corpus)["outcome"] == "over_budget"
        assert first["spent"]["usd"] <= 0.22
        assert first["verdict"] == "budget_reached"
        kept = {text for text in host.texts if text.startswith("passage: ")}
        assert kept
        again = reopen(first["run_id"], None, "resume", Options(budget_usd=100.0))
        second = run_job(again)
    assert record(corpus)["outcome"] == "succeeded"
    passages = [text for text in host.texts if text.startswith("passage: ")]
    assert len(passages) == len(set(passages)) > len(kept)
    assert second["spent"]["usd"] > first["spent"]["usd"]


def test_no_text_is_paid_twice_where_the_process_is_killed_between_two_calls(corpus):
    def hangs(number, _texts):
        return "hang" if number >= 4 else None

    with AgentServer(Searcher()) as agents, EmbeddingServer(fault=hangs) as host:
        asked = job(corpus, agents, host)
        file = corpus / "run.json"
        file.write_text(json.dumps(asked.as_json()), encoding="utf-8")
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(file)])
        deadline = time.monotonic() + 60
        while len(packs(corpus)) < 3 or len(host.calls) < 5:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
        process.wait()
        answered = [text for text in host.texts if text.startswith("passage: ")]
        host.fault = lambda *_: None
        manifest = run_job(reopen(asked.run_id, str(corpus / "lake"), "resume"))
    assert record(corpus)["outcome"] == "succeeded"
    passages = [text for text in host.texts if text.startswith("passage: ")]
    assert len(passages) == len(set(passages)) > len(answered) == 12
    # What was paid before the kill is in the sum: all but the two words that the host was tried with.
    rows = pl.read_parquet(f"{corpus}/lake/runs/{asked.run_id}/transcripts/*.parquet")
    assert rows.filter(kind="embedded")["prompt_tokens"].sum() == host.num_tokens - 2
    assert manifest["spent"]["usd"] >= (host.num_tokens - 2) / 1000


def test_no_text_is_paid_twice_where_the_run_fails_between_two_calls(corpus):
    def fails(number, _texts):
        return "refused" if number >= 4 else None

    with AgentServer(Searcher()) as agents, EmbeddingServer(fault=fails) as host:
        run_job(job(corpus, agents, host))
        assert record(corpus)["outcome"] == "failed"
        assert packs(corpus)
        host.fault = lambda *_: None
        run_job(job(corpus, agents, host))
    assert record(corpus)["outcome"] == "succeeded"
    passages = [text for text in host.texts if text.startswith("passage: ")]
    assert len(passages) == len(set(passages))


@pytest.mark.parametrize("fault", ["busy", "error", "nan", "null", "fewer", "lengths"])
def test_answer_that_cannot_be_is_asked_for_again(corpus, fault):
    def once(number, _texts):
        return fault if number in {1, 3} else None

    with AgentServer(Searcher()) as agents, EmbeddingServer(fault=once) as host:
        run_job(job(corpus, agents, host))
    assert "found by meaning" in record(corpus)["told"]


def test_vectors_are_matched_by_index_where_the_host_answers_in_another_order(corpus):
    with AgentServer(Searcher()) as agents, EmbeddingServer(fault=lambda *_: "shuffled") as host:
        run_job(job(corpus, agents, host))
    assert "A hotel night" in record(corpus)["told"].split("\n\n")[1]


def test_host_without_vectors_is_refused_before_anything_is_paid(corpus):
    with AgentServer(Searcher()) as agents, pytest.raises(EngineMisconfigured) as caught:
        run_job(job(corpus, agents, None, vectors=agents.url))
    assert "search.vectors" in str(caught.value)
    assert "404" in str(caught.value)
    assert not agents.bodies


def test_model_that_gives_no_vectors_is_refused_with_what_the_host_says(corpus):
    with (
        AgentServer(Searcher()) as agents,
        EmbeddingServer(fault=lambda *_: "refused") as host,
        pytest.raises(EngineMisconfigured, match="does not support Embeddings API"),
    ):
        run_job(job(corpus, agents, host))
    assert not agents.bodies


def test_profile_without_embeddings_is_refused(corpus):
    with (
        AgentServer(Searcher()) as agents,
        pytest.raises(ConfigError, match="'scripted' has no `embeddings`"),
    ):
        run_job(job(corpus, agents, None, vectors="scripted.yaml"))
    assert not agents.bodies


def test_host_of_vectors_is_refused_as_an_engine(corpus):
    with AgentServer(Searcher()) as agents, EmbeddingServer() as host:
        job(corpus, agents, host)
        stages = "  - {name: kind, mode: auto, prompt: What is it?, output: {kind: string}}\n"
        (corpus / "work.yaml").write_text(f"name: work\nstages:\n{stages}", encoding="utf-8")
        where = {"source": str(corpus / "in"), "sink": str(corpus / "lake")}
        options = Options(engine=str(corpus / "vectors.yaml"), **where)
        with pytest.raises(ConfigError, match="'vectors' answers no questions"):
            run_job(make_job(corpus / "work.yaml", options))


def test_budget_in_dollars_wants_the_prices_of_vectors(corpus):
    with (
        AgentServer(Searcher()) as agents,
        EmbeddingServer() as host,
        pytest.raises(ConfigError, match="has no prices"),
    ):
        run_job(job(corpus, agents, host, vectors=host.url, budget_usd=1.0))
    assert not host.calls


def test_key_of_the_host_is_shown_nowhere(corpus, monkeypatch):
    monkeypatch.setenv("VECTORS_KEY", "sk-not-to-be-seen")
    with (
        AgentServer(Searcher()) as agents,
        EmbeddingServer(api_key="another") as host,
        pytest.raises(EngineMisconfigured) as caught,
    ):
        run_job(job(corpus, agents, host))
    assert "401" in str(caught.value)
    assert "sk-not-to-be-seen" not in str(caught.value)


def test_text_longer_than_the_model_takes_is_cut(corpus):
    (corpus / "in" / "long.txt").write_text("hotel " * 3000, encoding="utf-8")
    with AgentServer(Searcher()) as agents, EmbeddingServer(max_tokens=300) as host:
        run_job(job(corpus, agents, host, context=300))
    assert record(corpus)["outcome"] == "succeeded"
    longest = max(text.count("hotel") for text in host.texts)
    assert 100 < longest <= 300


class Lists(Searcher):
    """Lists the documents, and answers with what came back."""

    def reply(self, body):
        sent = Transcript(body)
        if sent.tools and not sent.calls:
            return ScriptedReply(calls=[ScriptedCall("documents", {})])
        return ScriptedReply(content=json.dumps({"told": sent.results[-1]}), reasoning="Done.")


def test_nothing_is_asked_where_no_stage_searches(corpus):
    stages = STAGE.replace("[search]", "[documents]")
    with AgentServer(Lists()) as agents, EmbeddingServer() as host:
        run_job(job(corpus, agents, host, stages=stages))
    assert record(corpus)["outcome"] == "succeeded"
    assert not host.calls


def test_runs_share_a_tier_also_where_vectors_come_from_the_same_address():
    tier = RateTier(name="one", max_in_flight=1)
    with EmbeddingServer() as host:
        profile = Profile(
            name="chat",
            base_url=host.url,
            context_tokens=4096,
            modes={},
            tiers=(tier,),
            tier="one",
        )
        own = route_to(endpoint_of(None, profile)).lines
        vectors = line_of_vectors(endpoint_of(host), beside=own)
    assert [line.endpoint.profile.name for line in _with_limits([*own, vectors])] == ["chat"]


def test_sensitive_documents_are_not_sent_to_vectors_elsewhere(corpus):
    head = "policy: {sensitive: ['**/policy.txt'], on_premises: [scripted.yaml]}\n"
    with (
        AgentServer(Searcher()) as agents,
        EmbeddingServer() as host,
        pytest.raises(ConfigError, match=r"search.vectors: .* policy.sensitive marks"),
    ):
        run_job(job(corpus, agents, host, head=head))
    assert not host.calls


def test_sensitive_documents_may_be_worked_on_where_no_stage_searches(corpus):
    head = "policy: {sensitive: ['**/policy.txt'], on_premises: [scripted.yaml]}\n"
    stages = STAGE.replace("[search]", "[documents]")
    with AgentServer(Lists()) as agents, EmbeddingServer() as host:
        run_job(job(corpus, agents, host, head=head, stages=stages))
    assert record(corpus)["outcome"] == "succeeded"
    assert not host.calls


def test_broken_pack_is_made_anew(corpus):
    with AgentServer(Searcher()) as agents, EmbeddingServer() as host:
        run_job(job(corpus, agents, host))
        broken = packs(corpus)[0]
        broken.write_bytes(broken.read_bytes()[:100])
        host.texts.clear()
        (corpus / "in" / "policy.txt").write_text(POLICY + "\nMore.\n", encoding="utf-8")
        run_job(job(corpus, agents, host))
        again = [text for text in host.texts if text.startswith("passage: ")]
    assert 1 < len(again) <= 5
    assert record(corpus)["outcome"] == "succeeded"


def test_plan_says_what_vectors_come_to(corpus):
    with AgentServer(Searcher()) as agents, EmbeddingServer() as host:
        planned = estimate(job(corpus, agents, host), sample=None, notify=lambda _: None)
        plain = estimate(
            job(corpus, agents, host, vectors=None), sample=None, notify=lambda _: None
        )
    (said,) = [text for text in planned["stages"][0]["assumed"] if "vectors" in text]
    assert 200 < int(re.search(r"about (\d+) tokens", said)[1]) < 1000
    assert not any("vectors" in text for text in plain["stages"][0]["assumed"])
    assert not host.calls
