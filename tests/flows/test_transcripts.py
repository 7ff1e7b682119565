"""What agents did: as rows, as a page, and on the command line. The events are written by hand."""

import json
import re
from datetime import UTC, datetime

import polars as pl
import pytest
from typer.testing import CliRunner

from connectors.sinks import parquet
from connectors.sinks.lake import Lake
from engine.request import Result, Usage
from engine.steps import (
    Answered,
    AskedCall,
    Begun,
    Compacted,
    Decided,
    MemoryLog,
    Nudged,
    Returned,
    Turned,
)
from flows.cli import app
from flows.report.page import POLICY
from flows.report.timeline import Bar, Lane, timeline
from flows.report.transcript import MAX_TEXT, Ended, render_page
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

RUN_ID = "20260101T000000Z-abcd"  # that of a Sample
T0 = datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp()
HOSTILE = "<script>alert(1)</script>\"'&\u202e</pre></details>"
LONG = "line of a long result\n" * 3_000


def call(number, name="search", arguments='{"query": "fuse"}'):
    return AskedCall(call_id=f"functions.{name}:{number}", name=name, arguments=arguments)


def turn(at, *calls, content="", reasoning="", seconds=2.0, **changes):
    told = {
        "content": content, "reasoning": reasoning, "calls": calls, "seconds": seconds, "at": T0 + at,
        "finish_reason": "tool_calls" if calls else "stop", "engine": "kimi",
        "usage": Usage(prompt_tokens=1_000, cached_tokens=600, completion_tokens=50),
        "cost_usd": 0.002,
    }  # fmt: skip
    return Turned(**told | changes)


def returned(at, asked, text="found", failure=None, seconds=1.0):
    return Returned(call_id=asked.call_id, text=text, failure=failure, seconds=seconds, at=T0 + at)


def lone_agent():
    """An agent with a broken call, a long result, a compaction, an approval and a nudge."""
    broken, long, effect = (
        call(0, arguments='{"query": '),
        call(1, "read", '{"label": "D1L1"}'),
        call(2, "send", json.dumps({"to": HOSTILE})),
    )
    return [
        turn(2, broken, long, reasoning=f"Look it up. {HOSTILE}"),
        returned(2.1, broken, "the arguments are no JSON", "not_json", seconds=0.0),
        returned(3, long, LONG),
        Compacted(
            notes=f"Goal: the fuse. {HOSTILE}", usage=Usage(prompt_tokens=4_000, completion_tokens=90),
            cost_usd=0.01, at=T0 + 5,
        ),
        turn(7, effect, content="I send it.", notes=("leaked_tool_call",)),
        Decided(call_id=effect.call_id, is_approved=False, by="ann", reason=HOSTILE, at=T0 + 9),
        returned(9, effect, f"a person has refused this call: {HOSTILE}", "refused", seconds=2.0),
        Nudged(why="stopped", text="Stop here.", cause="limit: 6 steps are all there are", at=T0 + 9),
        turn(11, content='{"cause": "a fuse"}'),
    ]  # fmt: skip


def swarm(key="5a" * 32):
    """An orchestrator with two sub-agents that ran at the same time, and one call that has no end."""
    create = call(0, "create_subagent", json.dumps({"name": "reader", "system_prompt": "Read."}))
    assigned = [
        call(number, "assign_task", json.dumps({"agent": name, "prompt": f"Read {name}."}))
        for number, name in ((10, "reader"), (9, HOSTILE))
    ]
    looked, sent = call(0), call(1, "send", "{}")
    return {
        key: [
            turn(2, create),
            returned(2, create, "created 'reader'", seconds=0.0),
            turn(4, *assigned),
            returned(9, assigned[1], "Report of b.", seconds=5.0),
            returned(12, assigned[0], "Report of a.", seconds=8.0),
            turn(14, content="Both say so."),
        ],
        f"{key}/10-0a1b": [
            turn(6, looked),
            returned(7, looked),
            turn(9, sent),
            Begun(call_id=sent.call_id, at=T0 + 9),
            turn(12, content="Nothing."),
        ],
        f"{key}/9-00ff": [turn(9, content="A fuse.")],
        "another": [turn(1, content="not of this request")],
    }


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


# The page


def page_of(events, key="k1", **ended):
    rows = transcript_rows("dig", key, f"a.txt {HOSTILE}", events)
    return render_page(RUN_ID, rows, Ended(**{"outcome": "succeeded"} | ended))


def test_page_is_whole_and_holds_no_markup_of_others_when_texts_names_and_arguments_are_hostile():
    for page in (
        page_of({"k1": lone_agent()}, outcome="failed", error=HOSTILE, question=HOSTILE),
        page_of(swarm(), "5a" * 32),
    ):
        parser = Balance()
        parser.feed(page)
        assert parser.open == []
        assert "<script" not in page
        assert "\u202e" not in page
        assert page.count("alert(1)") >= 4
        assert POLICY in page
        assert not re.findall(r'(?:src|href)="(?!#)', page)


def test_no_name_is_markup_when_tools_engines_and_reasons_are_hostile():
    odd = call(0, HOSTILE, HOSTILE)
    page = page_of({
        "k1": [
            turn(2, odd, notes=(HOSTILE,), engine=HOSTILE, finish_reason=HOSTILE),
            returned(3, odd, HOSTILE, HOSTILE),
            Decided(call_id=odd.call_id, is_approved=True, by=HOSTILE, at=T0),
            Nudged(why=HOSTILE, text=HOSTILE, cause=HOSTILE, at=T0),
        ]
    })  # fmt: skip
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 10


def test_page_tells_of_every_event_when_an_agent_went_astray():
    page = page_of({"k1": lone_agent()})
    assert page.count('class="panel step"') == 3
    for said in (
        "Thinking, ", "not json", "{&#34;query&#34;: ", "result, 66,000 characters",
        "Put into notes", "Goal: the fuse.", "leaked tool call", "<b>refused</b> by <bdi>ann</bdi>",
        "limit: 6 steps are all there are", "Stop here.", "2 failed: 1 not json, 1 refused", "0.0160",
        "1,000 prompt tokens (60% cached)", "after 5.0 s, 2.0 s", "&#34;cause&#34;: &#34;a fuse&#34;",
    ):  # fmt: skip
        assert said in page, said
    for kind in ("nudged", "compacted", "decided"):
        assert len(re.findall(f'<path class="{kind}"', page)) == 1
    assert page.count('<rect class="turn"') == 3
    assert page.count('<rect class="failed"') == 2


def test_page_shows_a_part_of_a_text_and_says_how_much_is_left_when_it_is_very_long():
    page = page_of({"k1": lone_agent()})
    assert f"{len(LONG) - MAX_TEXT:,} more characters" in page
    assert page.count("line of a long result") < MAX_TEXT / len("line of a long result\n") + 10


def test_page_stays_of_a_size_that_opens_when_there_are_very_many_long_results():
    asked = [call(number) for number in range(1_000)]
    events = [turn(2, *asked), *(returned(3, one, "x" * 30_000) for one in asked)]
    assert len(page_of({"k1": events})) < 15_000_000


def test_links_lead_to_a_place_of_the_page_when_it_is_a_swarm():
    page = page_of(swarm(), "5a" * 32)
    links = set(re.findall(r'href="#([^"]*)"', page))
    assert {"own", "a9", "a10", "own-c9", "own-c10", "a10-t1", "a10-c1"} <= links
    for link in links:
        assert page.count(f'id="{link}"') == 1, link
    for said in (
        "critical steps",
        "<bdi>1.17</bdi>",
        "begun, no end on record",
        "10 reader",
        "Read reader.",
    ):
        assert said in page, said


def test_deep_arguments_are_shown_as_they_are_when_they_cannot_be_set_out():
    deep = '{"a":' * 3_000 + "1" + "}" * 3_000
    page = page_of({"k1": [turn(2, call(0, arguments=deep), content='{"a": "\\ud800"}')]})
    assert "{&#34;a&#34;:{&#34;a&#34;:" in page
    page.encode()


def bars(drawing):
    found = re.findall(r'<rect class="turn" x="([\d.]+)" y="(\d+)" width="([\d.]+)"', drawing)
    return [tuple(map(float, bar)) for bar in found]


def lane(*spans, name="agent"):
    made = [Bar(kind="turn", start=T0 + a, end=T0 + b, words="", href="#t") for a, b in spans]
    return Lane(name=name, href="#own", bars=made)


def test_lanes_lie_side_by_side_in_time_when_agents_worked_at_once():
    (first, whole, half) = bars(timeline([lane((0, 10), (10, 20)), lane((10, 15), name="b")]))
    assert whole[0] == pytest.approx(first[0] + first[2], abs=0.2)
    assert half[0] == whole[0]
    assert half[1] > whole[1]
    assert half[2] == pytest.approx(whole[2] / 2, abs=0.2)


def test_a_pause_is_drawn_short_when_a_run_was_taken_up_again_a_day_later():
    drawing = timeline([lane((0, 10), (86_400, 86_410))])
    first, second = bars(drawing)
    assert first[2] == pytest.approx(second[2], abs=0.2)
    assert first[2] > 400
    assert "a pause of 23 h 59 min" in drawing


def test_something_is_drawn_when_nothing_took_time():
    assert len(bars(timeline([lane((5, 5))]))) == 1
    assert timeline([]) == ""


# The command


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run in which stages `pick` and `briefing` had agents."""
    monkeypatch.setenv("HEADRACE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")
    sample = Sample(tmp_path)
    sample.records("briefing", {"unit": "corpus", "request_key": "5a" * 32, "outcome": "failed",
                                "error": "it was lost"})  # fmt: skip
    pick = transcript_rows("pick", "b1" * 32, "letters/a.png [red]", {"b1" * 32: lone_agent()})
    write_transcripts(sample.lake, RUN_ID, "s00000", pick)
    whole = transcript_rows("briefing", "5a" * 32, "corpus", swarm())
    write_transcripts(sample.lake, RUN_ID, "stage-briefing", whole)
    return sample.finish()


def call_cli(sample, *arguments):
    words = ["transcript", RUN_ID, "--sink", str(sample.sink), *map(str, arguments)]
    return CliRunner().invoke(app, words)


def test_requests_are_listed_when_a_run_had_agents(run):
    shown = call_cli(run)
    assert shown.exit_code == 0, shown.output
    assert "letters/a.png [red]" in shown.stdout
    assert "5a5a5a5a5a5a" in shown.stdout
    assert "limit: 6 steps" in shown.stdout
    listed = json.loads(call_cli(run, "--json").stdout)
    assert [one["stage"] for one in listed["requests"]] == ["briefing", "pick"]
    assert listed["requests"][0]["critical_steps"] == 6
    (only,) = json.loads(call_cli(run, "--stage", "pick", "--json").stdout)["requests"]
    assert only["num_failed_calls"] == 2


def test_pages_are_written_beside_the_report_or_into_a_folder_when_asked_for(run, tmp_path):
    result = call_cli(run, "--request", "5a5a")
    assert result.exit_code == 0, result.output
    (file,) = (run.sink / "reports" / RUN_ID / "transcripts").iterdir()
    assert file.name == f"briefing-{'5a' * 32}.html"
    page = file.read_text(encoding="utf-8")
    assert "it was lost" in page
    assert "What does it all say?" in page
    told = json.loads(call_cli(run, "--out", tmp_path / "pages", "--json").stdout)
    assert {one["outcome"] for one in told["requests"]} == {"failed", "no record yet"}
    written = sorted(str(page) for page in (tmp_path / "pages").iterdir())
    assert sorted(one["page"] for one in told["requests"]) == written


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--request", "ff"], "has no request whose key begins with 'ff'"),
        (["--request", ""], "--request is empty"),
        (["--request", "5a", "--stage", "pick"], "leave out --stage"),
        (["--stage", "nix"], "'nix' is no stage"),
    ],
)
def test_one_message_says_what_to_do_when_the_request_is_not_there(run, arguments, said):
    result = call_cli(run, *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_a_line_says_so_when_a_run_had_no_agents(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADRACE_STATE", str(tmp_path / "state"))
    sample = Sample(tmp_path).finish()
    assert "no agent has done anything" in call_cli(sample).stdout
    assert json.loads(call_cli(sample, "--json").stdout)["requests"] == []
    assert call_cli(sample, "--out", tmp_path / "pages").exit_code == 2
