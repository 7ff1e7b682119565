"""Stages in Agent and Swarm mode through whole runs: real tools over real files, a scripted model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from config.errors import ConfigError
from connectors.sinks.lake import Lake
from flows.cli import app
from flows.estimate import estimate
from flows.report.took import took
from flows.run.approvals import decide, questions
from flows.run.ask import Asker
from flows.run.bench import plan_engine
from flows.run.core import run_job
from flows.run.job import Options, make_job
from flows.run.resume import reopen
from tests.fakes.agent_script import ScriptedCall, ScriptedReply, Transcript
from tests.fakes.agent_server import AgentServer

POLICY = (
    "Travel policy\n\nA hotel night may cost 150 EUR at most.\n\nTrains are second class.\n\n"
    "Flights need the approval of a director.\n"
)
EXPENSES = "name,kind,amount\nAda,hotel,140\nBob,hotel,210\nCleo,hotel,310\nDan,train,80\n"
PROFILE = """\
name: scripted
base_url: {url}
context_tokens: 100000
capabilities: {{tools: true, structured_output: true}}
tokenizer: {{tokenize: false}}
modes:
  instant: {{wire: {{chat_template_kwargs: {{thinking: false}}}}}}
  thinking: {{reasoning_tokens: 1000}}
prices: {{input_usd: 0.6, cached_input_usd: 0.1, output_usd: 3.0}}
"""
REVIEW = """\
  - name: review
    over: corpus
    mode: agent
    tools: [documents, search, read, tables, table_query, cite]
    prompt: Which hotel nights break the policy, and how much are they in all?
    output: {findings: [cited], total: integer}
"""


class Reviewer:
    """Looks the limit up, sums what is above it, and answers with the line it found."""

    def reply(self, body):
        sent = Transcript(body)
        told = dict(zip([call.name for call in sent.calls], sent.results, strict=False))
        limit = re.search(r"\[(D\d+L\d+)\] ?(A hotel night[^\n]*)", "\n".join(sent.results))
        if not sent.tools:
            return self._answer(sent, limit)
        if "search" not in told:
            return ScriptedReply(calls=[ScriptedCall("search", {"query": "hotel night cost"})])
        if "tables" not in told:
            return ScriptedReply(calls=[ScriptedCall("tables", {})])
        if "table_query" not in told:
            name = re.search(r"\bd\d+_t\d+\b", told["tables"]).group()
            query = f"SELECT sum(amount) AS total FROM {name} WHERE kind = 'hotel' AND amount > 150"
            return ScriptedReply(calls=[ScriptedCall("table_query", {"sql": query})])
        return self._answer(sent, limit)

    @staticmethod
    def _answer(sent, limit):
        total = re.search(r"\b520\b", sent.results[-1])
        finding = {
            "lines": [limit[1]],
            "quote": limit[2],
            "text": "Two nights cost more than 150 EUR.",
        }
        answer = {"findings": [finding], "total": int(total.group()) if total else 0}
        return ScriptedReply(content=json.dumps(answer), reasoning="Done.")


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "policy.txt").write_text(POLICY, encoding="utf-8")
    (tmp_path / "in" / "expenses.csv").write_text(EXPENSES, encoding="utf-8")
    return tmp_path


def job(corpus, server, stages=REVIEW, *, head="", profile=PROFILE, **options):
    (corpus / "scripted.yaml").write_text(profile.format(url=server.url), encoding="utf-8")
    (corpus / "work.yaml").write_text(f"name: work\n{head}stages:\n{stages}", encoding="utf-8")
    asked = Options(
        source=str(corpus / "in"),
        sink=str(corpus / "lake"),
        engine=str(corpus / "scripted.yaml"),
        **options,
    )
    return make_job(corpus / "work.yaml", asked)


def record(corpus, stage="review"):
    (row,) = pl.read_parquet(f"{corpus}/lake/records/stage={stage}/*.parquet").to_dicts()
    return row


def test_agent_answers_from_tables_and_text_with_the_line_it_found(corpus):
    with AgentServer(Reviewer()) as server:
        manifest = run_job(job(corpus, server))
    row = record(corpus)
    assert row["outcome"] == "succeeded", row["error"]
    assert row["total"] == 520
    assert row["findings"] == ["Two nights cost more than 150 EUR."]
    (claim,) = row["claims"]
    assert claim["verdict"] == "verified"
    assert {citation["path"] for citation in row["citations"]} == {"policy.txt"}
    assert row["mode"] == "agent"
    assert manifest["stages"]["review"]["outcomes"] == {"succeeded": 1}
    assert server.counts["refused"] == 0


class Lazy:
    """Quotes what it was told at the start, and looks at nothing."""

    def reply(self, body):
        line = re.search(r"\[(L\d+)\] (D\d+ policy.txt)", Transcript(body).asked)
        finding = {"lines": [line[1]], "quote": line[2], "text": "There is a policy."}
        answer = {"findings": [finding], "total": 0}
        return ScriptedReply(content=json.dumps(answer), reasoning="Done.")


def test_turns_and_calls_are_told_at_the_end_of_a_run_and_its_report_counts_documents(corpus):
    with AgentServer(Reviewer()) as server:
        manifest = run_job(job(corpus, server))
    told = took(manifest)
    cells = dict(zip(told.columns, told.rows[0][1], strict=True))
    assert (cells["turns"].value, cells["tool calls"].value) == ("4", "3")
    page = Path(manifest["report"]["html"].removeprefix("file://")).read_text(encoding="utf-8")
    assert "Rests on 2 of 2 documents" in page


def test_claim_on_the_list_of_documents_has_no_source(corpus):
    with AgentServer(Lazy()) as server:
        run_job(job(corpus, server))
    (claim,) = record(corpus)["claims"]
    assert claim["verdict"] == "unsourced"


NIGHTS = [f"hotel_night_{number}" for number in range(40)]
OVER_CHUNKS = f"""\
  - name: nights
    over: chunk
    mode: agent
    tools: [search]
    prompt: What did each night cost?
    output: {{{", ".join(f"{night}: integer?" for night in NIGHTS)}}}
"""


class Brief:
    """Answers at once that there is nothing."""

    def reply(self, body):
        return ScriptedReply(content=json.dumps(dict.fromkeys(NIGHTS)), reasoning="Done.")


def test_plan_counts_the_schema_that_an_agent_is_shown_although_its_host_has_a_grammar(corpus):
    (corpus / "in" / "expenses.csv").unlink()
    with AgentServer(Brief()) as server:
        asked = job(corpus, server, OVER_CHUNKS)
        (planned,) = estimate(asked, sample=None, notify=print)["stages"]
        run_job(asked)
        with plan_engine(asked.pipeline.engine, print) as endpoint:
            system = Asker(asked.pipeline, endpoint).instructions_tokens + endpoint.chat_tokens
            opening = endpoint.counter.count(server.bodies[0]["messages"][1]["content"])
    assert planned["requests"] == 1
    assert planned["prompt_tokens"] - system == pytest.approx(opening, abs=3)


def test_agent_is_asked_about_a_chunk_that_fills_the_room_beside_its_question(corpus):
    (corpus / "in" / "expenses.csv").unlink()
    small = PROFILE.replace("100000", "6000")
    text = "The harbour was calm.\n\n" * 800
    (corpus / "in" / "policy.txt").write_text(text, encoding="utf-8")
    with AgentServer(Brief()) as server:
        asked = job(corpus, server, OVER_CHUNKS, profile=small)
        with plan_engine(asked.pipeline.engine, print) as endpoint:
            room = Asker(asked.pipeline, endpoint).room(asked.pipeline.stages[0])
        sized = f"chunk.max_tokens={room}"
        manifest = run_job(job(corpus, server, OVER_CHUNKS, profile=small, settings=(sized,)))
    assert manifest["chunks"] > 1
    assert manifest["stages"]["nights"]["outcomes"] == {"succeeded": manifest["chunks"]}


def test_nothing_is_asked_again_while_neither_documents_nor_question_change(corpus):
    with AgentServer(Reviewer()) as server:
        run_job(job(corpus, server))
        before = len(server.bodies)
        run_job(job(corpus, server))
        assert len(server.bodies) == before
        (corpus / "in" / "other.txt").write_text("A new document.", encoding="utf-8")
        run_job(job(corpus, server))
        assert len(server.bodies) > before


def test_agent_stopped_by_its_budget_goes_on_where_it_was_with_a_larger_one(corpus):
    with AgentServer(Reviewer()) as server:
        first = run_job(job(corpus, server, budget_tokens=7_500))
        num_paid = server.counts["answered"]
        assert record(corpus)["outcome"] == "over_budget"
        assert num_paid > 0
        again = reopen(first["run_id"], None, "resume", Options(budget_tokens=1_000_000))
        second = run_job(again)
    assert record(corpus)["total"] == 520
    # Search, tables, query and answer: four turns, none of them twice, and each paid for once.
    assert server.counts["answered"] == 4
    turns = pl.read_parquet(f"{corpus}/lake/runs/{first['run_id']}/transcripts/*.parquet")
    tokens = turns.select(pl.sum("prompt_tokens") + pl.sum("completion_tokens")).item()
    assert second["spent"]["tokens"] == tokens
    assert first["spent"]["tokens"] < tokens


def test_engine_without_tools_is_refused_before_anything_is_paid(corpus):
    with AgentServer(Reviewer()) as server:
        asked = job(corpus, server)
        text = (corpus / "scripted.yaml").read_text(encoding="utf-8")
        (corpus / "scripted.yaml").write_text(text.replace("tools: true", "tools: false"))
        with pytest.raises(ConfigError, match="takes no tools"):
            run_job(asked)
    assert not server.bodies


def test_calls_are_not_forced_on_an_engine_that_cannot_force_them(corpus):
    with AgentServer(Reviewer()) as server:
        asked = job(corpus, server, stages=f"{REVIEW}    limits: {{opening_calls: 1}}\n")
        with pytest.raises(
            ConfigError, match="opening_calls: engine 'scripted' cannot force a call"
        ):
            run_job(asked)
        with pytest.raises(ConfigError, match="opening_calls: 2 of 3 steps leave no turns"):
            job(corpus, server, stages=f"{REVIEW}    limits: {{steps: 3, opening_calls: 2}}\n")
    assert not server.bodies


DOCUMENT = """\
  - name: kind
    mode: agent
    over: chunk
    tools: [read, documents]
    prompt: What is it?
    output: {says: [cited]}
"""


class Reads:
    """Reads the one document it may, tries another, and answers with the first line."""

    def reply(self, body):
        sent = Transcript(body)
        if sent.tools and len(sent.calls) < 2:
            label = "D1" if not sent.calls else "D2"
            return ScriptedReply(calls=[ScriptedCall("read", {"document": label})])
        line = re.search(r"\[(D1L1)\] ?([^\n]+)", sent.results[0])
        finding = {"lines": [line[1]], "quote": line[2], "text": sent.results[1][:60]}
        return ScriptedReply(content=json.dumps({"says": [finding]}), reasoning="Done.")


def test_agent_of_a_chunk_sees_its_own_document_and_no_other(corpus):
    with AgentServer(Reads()) as server:
        run_job(job(corpus, server, DOCUMENT))
    rows = pl.read_parquet(f"{corpus}/lake/records/stage=kind/*.parquet").to_dicts()
    assert {row["outcome"] for row in rows} == {"succeeded"}, [row["error"] for row in rows]
    for row in rows:
        assert {citation["path"] for citation in row["citations"]} == {row["path"]}
        assert "D2" in row["says"][0]


def test_pipeline_with_a_tool_that_does_not_exist_is_refused(corpus):
    with AgentServer(Reviewer()) as server, pytest.raises(ConfigError, match="tool 'teleport'"):
        job(corpus, server, REVIEW.replace("cite]", "teleport]"))


def approvals(corpus, run_id):
    return list(questions(lake(corpus), run_id))


def lake(corpus):
    return Lake(str(corpus / "lake"))


NEEDS_APPROVAL = REVIEW.replace("    prompt:", "    approve_calls: [table_query]\n    prompt:")


def test_call_that_needs_approval_waits_for_it_beyond_the_end_of_the_run(corpus):
    with AgentServer(Reviewer()) as server:
        first = run_job(job(corpus, server, NEEDS_APPROVAL))
        assert first["verdict"] == "awaiting_approval"
        ((question, decision),) = approvals(corpus, first["run_id"])
        assert (question.tool, decision) == ("table_query", None)
        assert "SELECT sum(amount)" in question.arguments
        num_paid = server.counts["answered"]

        waiting = run_job(reopen(first["run_id"], None, "resume"))
        assert waiting["verdict"] == "awaiting_approval"
        assert server.counts["answered"] == num_paid

        decide(lake(corpus), first["run_id"], question, is_approved=True, reason="")
        done = run_job(reopen(first["run_id"], None, "resume"))
    assert done["verdict"] == "complete"
    assert record(corpus)["total"] == 520


def test_refusal_of_a_person_is_told_to_the_agent(corpus):
    with AgentServer(Reviewer()) as server:
        run_job(job(corpus, server, NEEDS_APPROVAL), ask=lambda _: (False, "not today"))
    told = [
        message["content"] for message in server.bodies[-1]["messages"] if message["role"] == "tool"
    ]
    assert any("a person has refused this call: not today" in text for text in told)
    assert record(corpus)["total"] == 0


def test_approve_command_lists_what_waits_and_decides_it(corpus):
    with AgentServer(Reviewer()) as server:
        first = run_job(job(corpus, server, NEEDS_APPROVAL))
        sink = str(corpus / "lake")
        result = CliRunner().invoke(app, ["approve", first["run_id"], "--sink", sink, "--json"])
        (call,) = json.loads(result.stdout)["questions"]
        assert call["decision"] is None
        CliRunner().invoke(app, ["approve", first["run_id"], "--sink", sink, "--yes"])
        done = run_job(reopen(first["run_id"], None, "resume"))
    assert done["verdict"] == "complete"


def test_transcript_of_a_run_has_every_turn_and_call_of_its_agents(corpus):
    with AgentServer(Reviewer()) as server:
        manifest = run_job(job(corpus, server))
    rows = pl.read_parquet(f"{corpus}/lake/runs/{manifest['run_id']}/transcripts/*.parquet")
    assert rows.filter(kind="turn").height == 4
    tools = rows.filter(pl.col("tool").is_not_null())["tool"].to_list()
    assert tools == ["search", "tables", "table_query"]
    usage = pl.read_parquet(f"{corpus}/lake/runs/{manifest['run_id']}/usage/stage-*.parquet")
    assert usage.select("steps", "tool_calls", "failed_calls").row(0) == (4, 3, 0)


def test_plan_says_that_it_counts_one_turn_of_an_agent(corpus):
    with AgentServer(Reviewer()) as server:
        planned = estimate(job(corpus, server), sample=None, notify=lambda _: None)
    (stage,) = planned["stages"]
    assert any("an agent may take 100 turns and 300 calls" in text for text in stage["assumed"])


def test_plan_says_how_far_the_sub_agents_of_a_swarm_may_go(corpus):
    limits = "{steps: 15, calls: 90, subagents: 5, subagent_steps: 40, subagent_tokens: 90000}"
    swarm = REVIEW.replace("mode: agent", "mode: swarm") + f"    limits: {limits}\n"
    with AgentServer(Reviewer()) as server:
        planned = estimate(job(corpus, server, swarm), sample=None, notify=lambda _: None)
    (told,) = (text for text in planned["stages"][0]["assumed"] if "one turn" in text)
    assert "an agent may take 15 turns and 90 calls; any of the calls may be a sub-agent" in told
    assert "5 of them at once, each of up to 40 turns and 90 calls, 90,000 tokens in all" in told


def test_agent_over_nothing_has_an_outcome_and_a_reason(corpus):
    (corpus / "in" / "policy.txt").write_bytes(b"")
    (corpus / "in" / "expenses.csv").unlink()
    (corpus / "in" / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    with AgentServer(Finds()) as server:
        run_job(job(corpus, server))
    row = record(corpus)
    assert row["outcome"] == "succeeded", row["error"]
    assert row["findings"] == []


class Finds:
    """Searches once, and finds nothing."""

    def reply(self, body):
        sent = Transcript(body)
        if sent.tools and not sent.calls:
            return ScriptedReply(calls=[ScriptedCall("search", {"query": "hotel"})])
        return ScriptedReply(content=json.dumps({"findings": [], "total": 0}), reasoning="Done.")
