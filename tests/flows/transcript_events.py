"""Events of agents and swarms, from which the tests of transcripts are made."""

import json
from datetime import UTC, datetime

from engine.request import Usage
from engine.steps import (
    AskedCall,
    Begun,
    Compacted,
    Decided,
    Nudged,
    Returned,
    Turned,
)
from flows.report.transcript import Ended, render_page
from flows.run.transcripts import transcript_rows

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


def page_of(events, key="k1", **ended):
    rows = transcript_rows("dig", key, f"a.txt {HOSTILE}", events)
    return render_page(RUN_ID, rows, Ended(**{"outcome": "succeeded"} | ended))
