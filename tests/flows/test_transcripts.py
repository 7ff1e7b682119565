"""What agents did: as rows, as a page, and on the command line. The events are written by hand."""

import json
from datetime import UTC, datetime

import polars as pl
import pytest

from connectors.sinks import parquet
from connectors.sinks.lake import Lake
from engine.request import Usage
from engine.steps import AskedCall, Begun, Compacted, Decided, Nudged, Returned, Turned
from flows.run.transcripts import (
    figures,
    list_figures,
    read_transcripts,
    transcript_rows,
    write_transcripts,
)

RUN_ID = "20260101T000000Z-abcd"
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
        f"{key}/10": [
            turn(6, looked),
            returned(7, looked),
            turn(9, sent),
            Begun(call_id=sent.call_id, at=T0 + 9),
            turn(12, content="Nothing."),
        ],
        f"{key}/9": [turn(9, content="A fuse.")],
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
