"""The scripted model's server: it refuses like a strict host, and breaks at its rates."""

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter

import aiohttp
import jsonschema
import pytest

from engine.client import Client
from engine.errors import EngineUnavailable, RequestRejected, RequestTooLong
from engine.reply import Assembly
from tests.fakes.agent_checks import refusal
from tests.fakes.agent_client import asked, asks, one, result_of
from tests.fakes.agent_faults import CALL_FAULTS, REPLY_FAULTS, Faults, Latency, wire_call
from tests.fakes.agent_script import ScriptedCall
from tests.fakes.agent_scripts import LedgerWalk
from tests.fakes.agent_server import AgentServer
from tests.fakes.agent_worlds import LOOKUP, PROBE, Ledger, declared


def history(**changes):
    """A body with one call and its result; changes are of the assistant message."""
    body = asks("start=a", declared(LOOKUP))
    call = wire_call(ScriptedCall("lookup", {"key": "a"}), "functions.lookup:0", None, body)
    turn = {"role": "assistant", "content": "", "reasoning_content": "so", "tool_calls": [call]}
    result = result_of("functions.lookup:0", "key=a number=1 next=END")
    body["messages"] += [{**turn, **changes}, result]
    return body


BREAKS = {
    "arguments": lambda body, call: call["function"].update(arguments='{"key": '),
    "no arguments": lambda body, call: call["function"].update(arguments=""),
    "list": lambda body, call: call["function"].update(arguments="[]"),
    "no id": lambda body, call: call.pop("id"),
    "foreign result": lambda body, call: body["messages"][3].update(
        tool_call_id="functions.lookup:7"
    ),
    "no result": lambda body, call: body["messages"].pop(),
    "late result": lambda body, call: body["messages"].insert(
        3, {"role": "user", "content": "well?"}
    ),
    "result twice": lambda body, call: body["messages"].append(body["messages"][3]),
    "no reasoning": lambda body, call: body["messages"][2].pop("reasoning_content"),
    "empty turn": lambda body, call: body["messages"].extend([
        {"role": "assistant", "content": " "},
        {"role": "user", "content": "?"},
    ]),
    "required": lambda body, call: body.update(tool_choice="required"),
    "name": lambda body, call: body["tools"][0]["function"].update(name="look up"),
}


def broken_history(what):
    body = history()
    BREAKS[what](body, body["messages"][2]["tool_calls"][0])
    return body


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("arguments", "JSON object"),
        ("no arguments", "JSON object"),
        ("list", "JSON object"),
        ("no id", "need an id"),
        ("foreign result", "'functions.lookup:7' .* is not found"),
        ("no result", "did not have response messages: functions.lookup:0"),
        ("late result", "did not have response messages: functions.lookup:0"),
        ("result twice", "is not found"),
        ("no reasoning", "reasoning_content is missing .* at index 2"),
        ("empty turn", "position 4 with role 'assistant' must not be empty"),
        ("required", "incompatible with thinking"),
        ("name", "'look up' is invalid"),
    ],
)
def test_history_is_refused_when_a_strict_host_would(what, said):
    body = broken_history(what)
    with AgentServer(LedgerWalk()) as server:
        assert one(server, history()).content == "The sum is 1."
        with pytest.raises(RequestRejected, match=said):
            one(server, body)
    assert server.counts["refused"] == 1
    assert server.received[1].status == 400
    assert server.received[1].refusal


@pytest.mark.parametrize(
    "switch",
    [{"chat_template_kwargs": {"thinking": False}}, {"thinking": {"type": "disabled"}}],
)
def test_no_reasoning_is_asked_for_or_given_when_thinking_is_off(switch):
    body = {**broken_history("no reasoning"), **switch}
    with AgentServer(LedgerWalk()) as server:
        reply = one(server, body)
    assert (reply.content, reply.reasoning) == ("The sum is 1.", "")


def test_reasoning_of_vllms_name_is_taken_when_sent_back():
    assert refusal(history(reasoning_content=None, reasoning="so")) is None


def test_body_is_too_long_when_prompt_and_answer_exceed_the_context():
    with AgentServer(LedgerWalk(), max_model_len=1000) as server:
        assert one(server, history()).content
        with pytest.raises(RequestTooLong):
            one(server, {**history(), "max_tokens": 990})


def bodies(count):
    return [asks(f"number {i}, start=a", declared(LOOKUP)) for i in range(count)]


def test_rates_are_right_and_the_same_again_when_2000_bodies_are_drawn():
    faults = Faults.broken_calls(0.12, **dict.fromkeys(REPLY_FAULTS, 0.02))
    drawn = [(faults.of_reply(b, 0), faults.of_call(b, 0, 0)) for b in bodies(2000)]
    assert drawn == [(faults.of_reply(b, 0), faults.of_call(b, 0, 0)) for b in bodies(2000)]
    replies, calls = Counter(r for r, _ in drawn), Counter(c for _, c in drawn)
    # Four standard deviations around the mean.
    assert abs(2000 - calls[None] - 240) < 4 * (2000 * 0.12 * 0.88) ** 0.5
    assert abs(2000 - replies[None] - 200) < 4 * (2000 * 0.1 * 0.9) ** 0.5
    assert all(12 < calls[kind] < 60 for kind in CALL_FAULTS)
    assert all(12 < replies[kind] < 70 for kind in REPLY_FAULTS)
    assert [r for r, _ in drawn] != [faults.of_reply(b, 1) for b in bodies(2000)]
    for nth, number in ((1, 0), (0, 1)):
        assert [c for _, c in drawn] != [faults.of_call(b, nth, number) for b in bodies(2000)]
    other = Faults.broken_calls(0.12, seed=1)
    assert [c for _, c in drawn] != [other.of_call(b, 0, 0) for b in bodies(2000)]
    quiet = Faults()
    assert {(quiet.of_reply(b, 0), quiet.of_call(b, 0, 0)) for b in bodies(500)} == {(None, None)}


def test_answers_do_not_hang_on_the_order_when_bodies_come_in_another():
    faults = Faults.broken_calls(0.5)

    def all_of(some):
        async def go(client):
            calls = [client.complete(body, prompt_tokens=10) for body in some]
            return await asyncio.gather(*calls)

        with AgentServer(LedgerWalk(), faults=faults) as server:
            return [reply.tool_calls for reply in asked(server, go)]

    some = bodies(60)
    forth, back = all_of(some), all_of(some[::-1])
    assert forth == back[::-1]
    assert len(set(forth)) > 3


def test_second_try_of_a_body_succeeds_when_its_draw_is_another():
    with AgentServer(LedgerWalk(), faults=Faults(server_error=0.5)) as server:
        body = next(b for b in bodies(50) if server.faults.of_reply(b, 0))
        for nth in range(20):
            fault = server.faults.of_reply(body, nth)
            if fault is None:
                assert one(server, body).tool_calls
                break
            with pytest.raises(EngineUnavailable):
                one(server, body)
    assert [received.nth for received in server.received] == list(range(nth + 1))
    assert server.counts["server_error"] == nth


@pytest.mark.parametrize("kind", CALL_FAULTS)
@pytest.mark.parametrize("stream", [False, True])
def test_call_is_broken_as_its_kind_says_when_every_call_is(kind, stream):
    with AgentServer(LedgerWalk(), faults=Faults(**{kind: 1.0})) as server:
        (call,) = one(server, asks("start=abc", declared(LOOKUP), stream=stream)).tool_calls
    valid = {
        "not_json": ("functions.lookup:0", "lookup", None),
        "empty_arguments": ("functions.lookup:0", "lookup", None),
        "wrong_types": ("functions.lookup:0", "lookup", {"key": ["abc"]}),
        "missing_required": ("functions.lookup:0", "lookup", {}),
        "undeclared_tool": ("functions.lookup:0", "lookup_all", {"key": "abc"}),
        "foreign_id": (call.call_id, "lookup", {"key": "abc"}),
        "no_id": ("", "lookup", {"key": "abc"}),
    }[kind]
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        arguments = None
    assert (call.call_id, call.name, arguments) == valid
    assert (call.arguments == "") == (kind == "empty_arguments")
    assert call.call_id.startswith("call_") == (kind == "foreign_id")
    assert server.received[0].call_faults == (kind,)
    assert server.counts[kind] == server.counts["calls"] == 1
    if kind in {"wrong_types", "missing_required"}:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(arguments, LOOKUP.parameters)


def test_foreign_ids_are_counted_when_they_come_back():
    body = history()
    body["messages"][2]["tool_calls"][0]["id"] = body["messages"][3]["tool_call_id"] = "call_1"
    with AgentServer(LedgerWalk()) as server:
        one(server, body)
    assert server.received[0].num_foreign_ids == 1


@pytest.mark.parametrize("stream", [False, True])
def test_host_fails_as_its_kind_says_when_every_request_does(stream):
    body = asks("start=abc", declared(LOOKUP), stream=stream)
    with AgentServer(LedgerWalk(), faults=Faults(empty_body=1.0)) as server:
        with pytest.raises(EngineUnavailable):
            one(server, body)
        server.faults = Faults(too_many=1.0, retry_after_s=0.5)
        with pytest.raises(EngineUnavailable) as caught:
            one(server, body)
        assert (caught.value.status, caught.value.retry_after_s) == (429, 0.5)
        server.faults = Faults(server_error=1.0)
        with pytest.raises(EngineUnavailable, match="500"):
            one(server, body)
        server.faults = Faults(blank_answer=1.0)
        blank = one(server, body)
        assert (blank.content, blank.tool_calls, blank.finish_reason) == ("", (), "stop")
        assert blank.reasoning
        server.faults = Faults(stall=1.0, stall_s=0.3)
        started = time.monotonic()
        assert one(server, body).tool_calls
        assert time.monotonic() - started > 0.3
    assert all(server.counts[kind] == 1 for kind in REPLY_FAULTS)


def test_pieces_are_put_together_when_several_calls_are_streamed():
    ledger = Ledger(num_calls=6, lanes=3)
    body = asks(ledger.question, declared(LOOKUP), stream=True)

    async def events():
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{server.url}/chat/completions", json=body) as answer,
        ):
            return [
                json.loads(line[6:]) async for line in answer.content if line.startswith(b"data: {")
            ]

    with AgentServer(LedgerWalk(several=1.0)) as server:
        pieces = asyncio.run(events())
        assert "usage" not in pieces[-1]
        body["stream_options"] = {"include_usage": True}
        assert asyncio.run(events())[-1]["usage"]["completion_tokens"] > 0
    assembly = Assembly()
    for piece in pieces:
        assembly.add_event(piece)
    reply = assembly.reply(first_token_s=None)
    assert len(pieces) > 12
    assert [json.loads(c.arguments) for c in reply.tool_calls] == [
        {"key": k} for k in ledger.starts
    ]
    assert [c.call_id for c in reply.tool_calls] == [f"functions.lookup:{i}" for i in range(3)]
    assert reply.finish_reason == "tool_calls"


def test_requests_run_beside_each_other_when_each_takes_a_while():
    async def go(client):
        calls = [client.complete(body, prompt_tokens=10) for body in bodies(100)]
        return await asyncio.gather(*calls)

    with AgentServer(LedgerWalk(), latency=1.0) as server:
        started = time.monotonic()
        asked(server, go)
        seconds = time.monotonic() - started
    assert 1.0 < seconds < 10
    assert server.most_in_flight == 100
    assert server.in_flight == 0
    drawn = [Latency(median_s=2.0, sigma=0.5).of(body, 0) for body in bodies(1000)]
    assert 1.8 < sorted(drawn)[500] < 2.2
    assert min(drawn) < 1.0 < 4.0 < max(drawn)


def test_known_prefix_is_told_as_cached_when_a_conversation_goes_on():
    body = history()
    with AgentServer(LedgerWalk()) as server:
        first = one(server, {**body, "messages": body["messages"][:2]})
        second = one(server, body)
    assert first.usage.cached_tokens == 0
    assert 0 < second.usage.cached_tokens < second.usage.prompt_tokens


def test_calls_are_one_when_parallel_calls_are_switched_off():
    body = asks(Ledger(num_calls=6, lanes=3).question, declared(LOOKUP), parallel_tool_calls=False)
    with AgentServer(LedgerWalk(several=1.0)) as server:
        assert len(one(server, body).tool_calls) == 1


def test_server_answers_when_it_is_a_process_of_its_own(tmp_path):
    options = ["--script", "wide", "--options", '{"per_turn": 2}', "--log", str(tmp_path / "log")]
    command = [sys.executable, "-m", "tests.fakes.agent_server", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = json.loads(process.stdout.readline())["url"]

            async def go():
                async with Client(url, api_key=None, max_connections=1) as client:
                    body = asks("items: a, b, c", declared(PROBE))
                    return await client.complete(body, prompt_tokens=10)

            reply = asyncio.run(go())
        finally:
            process.kill()
    assert [json.loads(c.arguments)["item"] for c in reply.tool_calls] == ["a", "b"]
    assert len((tmp_path / "log").read_text().splitlines()) == 1
