"""What agents did: as rows, as a page, and on the command line. The events are written by hand."""

from datetime import UTC, datetime

import polars as pl
import pytest

from connectors.sinks import parquet
from connectors.sinks.lake import Lake
from engine.request import Result, Usage
from engine.steps import (
    Answered,
    Embedded,
    MemoryLog,
)
from flows.report.transcript import Ended, render_page
from flows.run import rows
from flows.run.rows import Inquiry
from flows.run.transcripts import (
    figures,
    list_figures,
    read_transcripts,
    transcript_rows,
    transcripts_of,
    write_transcripts,
)
from tests.engine.agent_runs import agent_request, carry_out, profile_of
from tests.fakes.agent_faults import Faults
from tests.fakes.agent_scripts import Swarm
from tests.fakes.agent_server import AgentServer
from tests.fakes.agent_worlds import TABLE, Items
from tests.flows.report_sink import Sample
from tests.flows.test_report import Balance
from tests.flows.transcript_events import (
    HOSTILE,
    LONG,
    RUN_ID,
    T0,
    call,
    lone_agent,
    page_of,
    swarm,
    turn,
)


def test_calls_stand_behind_their_turn_with_their_ends_when_events_are_flattened():
    rows = transcript_rows("dig", "k1", "a.txt document", {"k1": lone_agent()})
    assert [(row["seq"], row["kind"], row["call_id"]) for row in rows] == [
        (0, "turn", None),
        (1, "call", "functions.search:0"),
        (2, "call", "functions.read:1"),
        (3, "compacted", None),
        (4, "turn", None),
        (5, "call", "functions.send:2"),
        (6, "decided", "functions.send:2"),
        (7, "nudged", None),
        (8, "turn", None),
    ]
    assert rows[0]["reasoning"].startswith("Look it up.")
    assert (rows[0]["prompt_tokens"], rows[0]["cached_tokens"]) == (1_000, 600)
    assert rows[1]["failure"] == "not_json"
    assert rows[1]["arguments"] == '{"query": '
    assert rows[2]["result"] == LONG
    assert rows[2]["at"] == datetime(2026, 1, 1, 12, 0, 3, tzinfo=UTC)
    assert rows[4]["notes"] == ["leaked_tool_call"]
    assert rows[6]["notes"] == ["refused", "ann"]
    assert rows[6]["tool"] == "send"
    assert rows[7]["notes"] == ["stopped", "limit: 6 steps are all there are"]


def test_subagents_follow_by_number_and_other_requests_are_left_alone_when_it_is_a_swarm():
    rows = transcript_rows("dig", "5a" * 32, "corpus", swarm())
    agents = list(dict.fromkeys(row["agent"] for row in rows))
    assert agents == ["", f"9 {HOSTILE}", "10 reader"]
    assert [row["seq"] for row in rows if row["agent"] == "10 reader"] == [0, 1, 2, 3, 4, 5]
    (open_call,) = [row for row in rows if row["call_id"] == "functions.send:1" and row["tool"]][:1]
    assert (open_call["kind"], open_call["result"], open_call["seconds"]) == ("call", None, None)
    assert not [row for row in rows if row["content"] == "not of this request"]


def test_the_last_one_has_the_number_when_an_orchestrator_began_anew():
    key = "5a" * 32
    events = {**swarm(), f"{key}/9-ffff": [turn(1, call(0), content="Of an orchestrator before.")]}
    rows = transcript_rows("dig", key, "corpus", events)
    agents = list(dict.fromkeys(row["agent"] for row in rows))
    assert agents == ["", "9-ffff", f"9 {HOSTILE}", "10 reader"]
    took = figures(rows)
    assert (took.num_steps, took.num_subagents, took.critical_steps) == (8, 2, 6)
    page = page_of(events, key)
    assert "Given up: the orchestrator" in page
    assert page.count('id="a9"') == page.count('id="a9-ffff"') == 1


def test_a_request_that_records_share_is_told_once_when_a_shard_has_ended(tmp_path):
    stage = Sample(tmp_path).config.stages[0]

    def end(unit, *keys):
        results = [
            Result(request_key=k, stage="pick", outcome="succeeded", mode="agent") for k in keys
        ]
        inquiry = Inquiry(
            stage=stage, mode="agent", fingerprint="", document=None, chunk=None, unit=unit
        )  # fmt: skip
        return rows.Answered(
            inquiry=inquiry, result=results[0], results=results, agreement=None, escalated=None,
            output=None, columns={}, citations=(), claims=(),
        )  # fmt: skip

    by_request = {"k1": {"k1": [turn(2)]}, "k2": {"k2": [turn(3)]}, "other": {"other": [turn(4)]}}
    told = transcripts_of([end("a", "k1"), end("b", "k1", "k2"), end("c", "replayed")], by_request)
    assert [(row["request_key"], row["stage"], row["unit"]) for row in told] == [
        ("k1", "pick", "a"),
        ("k2", "pick", "b"),
    ]


def test_answers_to_tools_end_the_own_rows_when_an_agent_has_put_questions():
    usage = Usage(prompt_tokens=500, completion_tokens=20)
    asides = {
        key: [Answered(text=f"digest {key}", usage=usage, cost_usd=0.5, at=T0 + at)]
        for key, at in (("zz", 8), ("ff", 9), ("aa", 9))
    }
    events = {**asides, "k1": lone_agent()}
    rows = transcript_rows("dig", "k1", "a.txt", events)
    assert [row["content"] for row in rows[9:]] == ["digest zz", "digest aa", "digest ff"]
    assert [row["seq"] for row in rows] == list(range(12))
    assert figures(rows).cost_usd == pytest.approx(0.016 + 1.5)
    page = page_of(events)
    assert page.count('class="panel step"') == 3 + 3
    assert page.index("Turn 3") < page.index("digest zz")


def test_calls_for_vectors_are_one_row_when_they_follow_each_other():
    def made(at, engine="bge", **took):
        usage = Usage(prompt_tokens=100, num_guessed=1)
        return Embedded(num_texts=32, usage=usage, engine=engine, at=T0 + at, **took)

    calls = [made(number, cost_usd=0.5, gpu_seconds=2.0) for number in range(1_000)]
    between = [Answered(text="digest", usage=Usage(prompt_tokens=5), at=T0 + 500.5)]
    events = {"v": calls, "a": between, "w": [made(2_000, engine="e5"), made(2_001, engine="e5")]}
    rows = transcript_rows("dig", "k1", "a.txt", events)
    told = [(row["kind"], row["engine"], row["content"], row["prompt_tokens"]) for row in rows]
    assert told == [
        ("embedded", "bge", "texts made into vectors: 16,032", 50_100),
        ("answered", None, "digest", 5),
        ("embedded", "bge", "texts made into vectors: 15,968", 49_900),
        ("embedded", "e5", "texts made into vectors: 64", 200),
    ]
    assert [row["cost_usd"] for row in rows] == [250.5, None, 249.5, None]
    assert [row["gpu_seconds"] for row in rows] == [1_002.0, None, 998.0, None]
    assert rows[0]["at"].timestamp() == T0 + 500
    assert [row["seq"] for row in rows] == [0, 1, 2, 3]


def test_rows_are_none_when_there_are_no_events():
    assert transcript_rows("dig", "k1", "a.txt", {"k2": lone_agent()}) == []


def test_figures_add_up_when_it_is_a_swarm():
    took = figures(transcript_rows("dig", "5a" * 32, "corpus", swarm()))
    assert (took.num_steps, took.num_calls, took.num_failed_calls) == (7, 5, 0)
    # One turn, one turn and the three of the longer sub-agent, and the last one.
    assert took.critical_steps == 6
    assert took.num_subagents == 2
    assert took.speed_up == pytest.approx(7 / 6)
    assert (took.prompt_tokens, took.completion_tokens) == (7_000, 350)
    assert took.cost_usd == pytest.approx(0.014)
    assert took.seconds == pytest.approx(14.0)


def test_figures_tell_what_is_not_known_when_an_agent_was_stopped():
    took = figures(transcript_rows("dig", "k1", "a.txt", {"k1": lone_agent()}))
    assert (took.num_failed_calls, took.num_compactions, took.speed_up) == (2, 1, None)
    assert took.stopped == "limit: 6 steps are all there are"
    assert took.prompt_tokens == 3 * 1_000 + 4_000
    assert took.gpu_seconds is None


def test_rows_come_back_as_they_were_when_they_were_written(tmp_path):
    lake = Lake(str(tmp_path))
    first = transcript_rows("dig", "k1", "a.txt", {"k1": lone_agent()})
    second = transcript_rows("dig", "5a" * 32, "corpus", swarm())
    write_transcripts(lake, RUN_ID, "s00000", [*first, *second])
    write_transcripts(
        lake, RUN_ID, "stage-dig", transcript_rows("sum", "k3", "", {"k3": [turn(2)]})
    )
    found = list(read_transcripts(lake, RUN_ID))
    assert found[:2] == [first, second]
    assert list(read_transcripts(lake, RUN_ID, request="5a5a")) == [second]
    assert [rows[0]["request_key"] for rows in read_transcripts(lake, RUN_ID, stage="sum")] == [
        "k3"
    ]
    assert [took.request_key for took in list_figures(lake, RUN_ID)] == ["k1", "5a" * 32, "k3"]
    assert list_figures(lake, RUN_ID, "dig")[1] == figures(second)
    file = tmp_path / "runs" / RUN_ID / "transcripts" / "s00000.parquet"
    before = file.read_bytes()
    write_transcripts(lake, RUN_ID, "s00000", [*first, *second])
    assert file.read_bytes() == before


def test_no_file_is_made_when_a_shard_has_no_agents_and_an_old_one_is_emptied(tmp_path):
    lake, folder = Lake(str(tmp_path)), tmp_path / "runs" / RUN_ID / "transcripts"
    write_transcripts(lake, RUN_ID, "s00000", [])
    assert not folder.exists()
    assert list(read_transcripts(lake, RUN_ID)) == []
    write_transcripts(lake, RUN_ID, "s00000", transcript_rows("dig", "k", "", {"k": [turn(2)]}))
    write_transcripts(lake, RUN_ID, "s00000", [])
    assert list_figures(lake, RUN_ID) == []


def test_columns_stay_as_they_are_when_other_tools_read_them(tmp_path):
    write_transcripts(
        Lake(str(tmp_path)), RUN_ID, "s00000", transcript_rows("dig", "k", "", {"k": [turn(2)]})
    )
    frame = pl.read_parquet(tmp_path / "runs" / RUN_ID / "transcripts" / "*.parquet")
    assert frame.columns == [
        "request_key", "stage", "unit", "agent", "seq", "kind", "at", "content", "reasoning", "tool",
        "call_id", "arguments", "result", "failure", "seconds", "prompt_tokens", "cached_tokens",
        "completion_tokens", "cost_usd", "gpu_seconds", "engine", "finish_reason", "notes",
    ]  # fmt: skip
    assert frame.schema["at"] == pl.Datetime("us", "UTC")
    assert frame.columns == parquet.TRANSCRIPTS.names


def test_rows_can_be_stored_when_a_model_writes_half_of_a_surrogate_pair(tmp_path):
    lake, odd = Lake(str(tmp_path)), call(0, arguments='{"q": "\ud83d"}')
    rows = transcript_rows(
        "dig", "k", "", {"k": [turn(2, odd, content="\udc00", notes=("\ud800",))]}
    )
    write_transcripts(lake, RUN_ID, "s00000", rows)
    (read,) = read_transcripts(lake, RUN_ID)
    assert [read[0]["content"], read[0]["notes"]] == ["\ufffd", ["\ufffd"]]
    assert read[1]["arguments"] == '{"q": "\ufffd"}'


class Log(MemoryLog):
    """Also gives all it has."""

    @property
    def by_key(self):
        return self._events


@pytest.mark.parametrize("broken", [False, True])
def test_figures_are_those_that_the_engine_gives_when_a_real_swarm_has_worked(broken):
    world, log = Items(num_items=6, parts=2), Log()
    asked = agent_request(world.question, TABLE, mode="swarm", max_subagents=4)
    faults = Faults.broken_calls() if broken else Faults()
    with AgentServer(Swarm(width=6, parts=2), faults=faults) as server:
        (result,) = carry_out([profile_of(server)], [asked], world, log)
    rows = transcript_rows("dig", asked.request_key, "corpus", log.by_key)
    took, work = figures(rows), result.work
    for name in ("num_steps", "num_calls", "num_failed_calls", "num_subagents", "critical_steps"):
        assert getattr(took, name) == getattr(work, name), name
    assert took.prompt_tokens == result.usage.prompt_tokens
    parser = Balance()
    parser.feed(render_page(RUN_ID, rows, Ended(outcome=result.outcome)))
    assert parser.open == []
