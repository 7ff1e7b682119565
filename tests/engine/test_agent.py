"""Agents against a scripted model that answers from what it is sent, and breaks as models do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from engine.batch.breaker import Breaker, BreakerRule
from engine.errors import BudgetReached, EngineMisconfigured
from engine.modes.agent.calls import named_calls
from engine.modes.agent.conversation import Conversation
from engine.reply import ToolCall
from engine.request import Usage
from engine.steps import Compacted, Decided, MemoryLog, Nudged, Returned, Turned, from_json, to_json
from engine.tool import ToolAnswer
from tests.engine.agent_runs import (
    DONE,
    Killed,
    KillingLog,
    agent_request,
    carry_out,
    profile_of,
    values_in,
)
from tests.fakes.agent_faults import Faults
from tests.fakes.agent_script import ScriptedCall, ScriptedReply, Transcript
from tests.fakes.agent_scripts import Drifter, LedgerWalk, Swarm, WideSearch
from tests.fakes.agent_server import AgentServer
from tests.fakes.agent_worlds import TABLE, Items, Ledger


def test_agent_reaches_its_answer_through_300_calls_of_which_one_in_eight_is_broken():
    world = Ledger(num_calls=300, lanes=3)
    with AgentServer(LedgerWalk(several=0.5), faults=Faults.broken_calls()) as server:
        (result,) = carry_out([profile_of(server)], [agent_request(world.question)], world)
    assert result.outcome == "succeeded", result.error
    assert result.output == {"sum": world.total}
    assert set(world.called.values()) == {1}
    assert len(world.called) == 300
    assert result.work.num_failed_calls > 20
    assert result.work.num_calls == 300 + result.work.num_failed_calls
    assert server.counts["refused"] == 0


def test_agent_killed_after_any_step_pays_no_turn_and_runs_no_call_twice():
    world = Ledger(num_calls=150, lanes=2)
    log = KillingLog()
    with AgentServer(LedgerWalk(several=0.5), faults=Faults.broken_calls()) as server:
        for number in range(20):
            log.after = 3 + number % 5
            with pytest.raises(Killed):
                carry_out([profile_of(server)], [agent_request(world.question)], world, log)
        log.after = None
        (result,) = carry_out([profile_of(server)], [agent_request(world.question)], world, log)
        num_answered = server.counts["answered"]
    assert result.output == {"sum": world.total}
    assert set(world.called.values()) == {1}
    turns = [event for event in log.events("key-0") if isinstance(event, Turned)]
    assert num_answered == len(turns) == result.work.num_steps
    assert result.usage.prompt_tokens == sum(turn.usage.prompt_tokens for turn in turns)


def test_conversation_is_put_into_notes_before_it_outgrows_the_context():
    world = Ledger(num_calls=80, padding=3_000)
    with AgentServer(LedgerWalk(), max_model_len=24_000) as server:
        profile = profile_of(server, context_tokens=24_000)
        (result,) = carry_out([profile], [agent_request(world.question)], world)
    assert result.output == {"sum": world.total}, result.error
    assert result.work.num_compactions >= 3
    assert server.counts["refused"] == 0


@pytest.mark.parametrize("fault", ["empty_body", "blank_answer", "server_error", "too_many"])
def test_agent_goes_on_after_replies_that_say_nothing(fault):
    world = Ledger(num_calls=30)
    with AgentServer(LedgerWalk(), faults=Faults(**{fault: 0.3})) as server:
        (result,) = carry_out([profile_of(server)], [agent_request(world.question)], world)
    assert result.output == {"sum": world.total}, result.error


def drifter(world, *, stops=True):
    """Return a model that probes the first item for ever."""
    call = ScriptedCall("probe", {"item": next(iter(world.parts))})
    return Drifter(goal=world.question, calls=[call], stops=stops)


def test_agent_that_goes_round_in_circles_is_reminded_of_its_goal_and_then_answers():
    world = Items(num_items=2)
    with AgentServer(drifter(world)) as server:
        (result,) = carry_out([profile_of(server)], [agent_request(world.question, DONE)], world)
    assert result.output["complete"] is True
    assert result.work.num_drifts == 1
    assert result.work.stopped is None


def test_agent_that_never_stops_is_stopped_and_says_so():
    world = Items(num_items=2)
    with AgentServer(drifter(world, stops=False)) as server:
        (result,) = carry_out([profile_of(server)], [agent_request(world.question, DONE)], world)
    assert result.output["complete"] is False
    assert "always returned the same" in result.work.stopped
    assert result.work.num_calls < 10


def test_agent_that_drifts_is_handed_to_the_next_engine_with_all_it_has_done():
    world = Items(num_items=4)
    asked = agent_request(world.question, TABLE, on_drift=("smaller_profile", "stop"))
    with AgentServer(drifter(world, stops=False)) as first, AgentServer(WideSearch()) as second:
        profiles = [profile_of(first), profile_of(second, name="small")]
        (result,) = carry_out(profiles, [asked], world)
    assert result.engine == "small"
    assert "drifted" in result.fallback
    assert result.outcome == "succeeded", result.error
    history = second.bodies[0]["messages"]
    assert any(message["role"] == "tool" for message in history)
    assert result.work.num_steps > len(second.bodies)
    assert result.work.engines == ("scripted", "small")


@pytest.mark.parametrize("why", ["has no tools", "left alone"])
def test_agent_that_drifts_answers_with_what_it_has_where_no_other_engine_can_go_on(why):
    world = Items(num_items=2)
    asked = agent_request(world.question, DONE, on_drift=("smaller_profile",))
    with AgentServer(drifter(world)) as first, AgentServer(WideSearch()) as second:
        small = profile_of(second, name="small")
        if why == "has no tools":
            deaf = small.capabilities.model_copy(update={"tools": False})
            small = small.model_copy(update={"capabilities": deaf})
        breaker = Breaker()
        if why == "left alone":
            for _ in range(BreakerRule().max_failures):
                breaker.failed("no connection")
        (result,) = carry_out([profile_of(first), small], [asked], world, breakers={1: breaker})
    assert not second.bodies
    assert result.outcome == "succeeded", result.error
    assert result.fallback is None
    assert "always returned the same" in result.work.stopped


def test_swarm_of_100_with_one_in_eight_calls_broken_answers_and_none_runs_twice():
    world = Items(num_items=100, parts=3)
    asked = agent_request(world.question, TABLE, mode="swarm", max_subagents=100)
    with AgentServer(Swarm(width=100, parts=3), faults=Faults.broken_calls()) as server:
        (result,) = carry_out([profile_of(server)], [asked], world)
    assert result.outcome == "succeeded", result.error
    assert values_in(result) == world.values
    assert set(world.called.values()) == {1}
    assert result.work.num_subagents >= 100
    assert result.work.critical_steps < result.work.num_steps / 10


def test_swarm_taken_up_again_replays_the_sub_agents_that_have_ended():
    world = Items(num_items=30, parts=2)
    asked = agent_request(world.question, TABLE, mode="swarm", max_subagents=10)
    log = KillingLog()
    with AgentServer(Swarm(width=30, parts=2), faults=Faults.broken_calls()) as server:
        for _ in range(5):
            log.after = 17
            with pytest.raises(Killed):
                carry_out([profile_of(server)], [asked], world, log)
        log.after = None
        (result,) = carry_out([profile_of(server)], [asked], world, log)
    assert values_in(result) == world.values
    # Up to ten calls were under way at each kill.
    assert sum(world.called.values()) <= 60 + 5 * 10
    assert result.work.num_subagents >= 30


def test_every_event_survives_json():
    world = Ledger(num_calls=5)
    log = MemoryLog()
    with AgentServer(LedgerWalk()) as server:
        carry_out([profile_of(server)], [agent_request(world.question)], world, log)
    events = log.events("key-0")
    assert [from_json(json.loads(json.dumps(to_json(event)))) for event in events] == list(events)
    assert {type(event) for event in events} >= {Turned, Returned}


class _Writes(Ledger):
    """A tool whose calls matter."""

    spec = replace(Ledger.spec, has_effects=True)


def test_call_with_effects_whose_end_is_unknown_is_not_made_again():
    world = _Writes(num_calls=5)
    log = KillingLog()
    with AgentServer(LedgerWalk()) as server:
        log.after = 2  # The turn, and that the call has begun.
        with pytest.raises(Killed):
            carry_out([profile_of(server)], [agent_request(world.question)], world, log)
        log.after = None
        carry_out([profile_of(server)], [agent_request(world.question)], world, log)
    first = next(event for event in log.events("key-0") if isinstance(event, Returned))
    assert first.failure == "unknown_end"


def test_engine_with_less_context_goes_on_with_the_newest_part_of_a_long_conversation():
    world = Ledger(num_calls=60, padding=4_000)
    asked = agent_request(world.question, max_steps=60, on_drift=("smaller_profile", "stop"))
    log = KillingLog()
    with (
        AgentServer(LedgerWalk()) as first,
        AgentServer(LedgerWalk(), max_model_len=20_000) as small,
    ):
        log.after = 80
        with pytest.raises(Killed):
            carry_out([profile_of(first)], [asked], world, log)
        log.after = None
        profile = profile_of(small, context_tokens=20_000)
        (result,) = carry_out([profile], [asked], world, log)
    assert result.outcome == "succeeded", result.error
    assert result.work.num_compactions >= 1
    assert any("it did not fit" in json.dumps(body["messages"]) for body in small.bodies)


def test_notes_of_an_engine_with_more_context_are_cut_until_one_with_less_takes_them():
    world = Ledger(num_calls=3)
    asked = agent_request(world.question)
    log = MemoryLog()
    first = ToolCall(call_id="", name="lookup", arguments=json.dumps({"key": "nowhere"}))
    usage = Usage(prompt_tokens=90_000, completion_tokens=10)
    turned = Turned(
        content="",
        reasoning="Hm.",
        calls=named_calls([first], 0),
        finish_reason="tool_calls",
        usage=usage,
        seconds=0.1,
        engine="large",
    )
    notes = "The goal is the sum. " + "What was found is long. " * 8_000
    before = [
        turned,
        Returned(call_id=turned.calls[0].call_id, text="nothing"),
        Compacted(notes=notes, usage=usage),
    ]
    for event in before:
        asyncio.run(log.add("key-0", event))
    with AgentServer(LedgerWalk(), max_model_len=12_000) as server:
        profile = profile_of(server, context_tokens=12_000)
        (result,) = carry_out([profile], [asked], world, log)
        sent = [one.body for one in server.received if one.kind == "answered"]
    assert result.output == {"sum": world.total}, result.error
    assert "The goal is the sum." in json.dumps(sent[0]["messages"])
    assert "it did not fit" in json.dumps(sent[0]["messages"])


class _Mute(LedgerWalk):
    """Says nothing at all where notes are asked for."""

    def reply(self, body):
        return ScriptedReply() if Transcript(body).is_summary else super().reply(body)


def test_conversation_is_not_lost_where_the_model_writes_no_notes():
    world = Ledger(num_calls=30, padding=3_000)
    with AgentServer(_Mute(), max_model_len=24_000) as server:
        profile = profile_of(server, context_tokens=24_000)
        carry_out([profile], [agent_request(world.question, max_steps=40)], world)
        bodies = [body for body in server.bodies if not Transcript(body).is_summary]
    after = next(body for body in bodies if "Your notes" in json.dumps(body["messages"]))
    assert "lookup(" in json.dumps(after["messages"])


def test_what_an_agent_was_told_last_stays_when_its_conversation_is_put_into_notes():
    told = Nudged(why="stopped", text="Stop here: answer now.", cause="limit")
    conversation = Conversation("Work.", "The task.", result_chars=1_000)
    usage = Usage(prompt_tokens=10, completion_tokens=1)
    turned = Turned(
        content="So far.",
        reasoning="",
        finish_reason="stop",
        usage=usage,
        seconds=0.1,
        engine="one",
    )
    for event in (turned, told, Compacted(notes="What is known.", usage=usage)):
        conversation.take(event)
    for _ in range(2):
        assert json.dumps(conversation.messages()).count(told.text) == 1
        conversation.take(Compacted(notes=conversation.newest(14), usage=Usage()))


class _Bad(Items):
    """A tool that is no good: what it does is `how`."""

    how = "raise"

    async def call(self, name, arguments, aside):
        match self.how:
            case "raise":
                raise RuntimeError("a bug of its own")
            case "hang":
                await asyncio.sleep(60)
            case "huge":
                return ToolAnswer(text="x" * 50_000_000)
            case "binary":
                return ToolAnswer(text="\x00\ud800\x1b[31m" * 100)


@pytest.mark.parametrize("how", ["raise", "hang", "huge", "binary"])
def test_tool_that_is_no_good_ends_as_a_failed_call_and_the_agent_goes_on(how):
    world = _Bad(num_items=2)
    world.how = how
    log = MemoryLog()
    asked = agent_request(world.question, TABLE, call_timeout_s=0.3)
    with AgentServer(WideSearch(max_tries=2)) as server:
        (result,) = carry_out([profile_of(server)], [asked], world, log)
    assert result.outcome == "succeeded", result.error
    ends = [event for event in log.events("key-0") if isinstance(event, Returned)]
    assert all(len(end.text) < 1_100_000 for end in ends)
    expected = {"raise": "crashed", "hang": "timeout"}.get(how)
    assert {end.failure for end in ends} == {expected}


class _Two:
    """Probes two items in one turn; as an orchestrator, has two sub-agents do the same."""

    def __init__(self, calls):
        self.calls = calls

    def reply(self, body):
        sent = Transcript(body)
        if "response_format" in body:
            return ScriptedReply(content='{"complete": true}')
        if not sent.tools or sent.calls:
            if "assign_task" in sent.tools and len(sent.calls) == 1:
                task = {"agent": "one", "prompt": "Probe it."}
                return ScriptedReply(calls=[ScriptedCall("assign_task", task)] * 2)
            return ScriptedReply(content="A report.")
        if "assign_task" in sent.tools:
            role = {"name": "one", "system_prompt": "Work."}
            return ScriptedReply(calls=[ScriptedCall("create_subagent", role)])
        return ScriptedReply(calls=self.calls)


@pytest.mark.parametrize(
    "calls",
    [
        [ScriptedCall("probe", {"item": "\ud800"})],
        [ScriptedCall("probe", {"\udc00": 1})],
        [ScriptedCall("create_subagent", {"name": "one", "system_prompt": "\ud800"})],
    ],
)
@pytest.mark.parametrize("mode", ["agent", "swarm"])
def test_call_with_half_of_a_surrogate_pair_is_told_to_the_model_and_the_run_goes_on(calls, mode):
    log = MemoryLog()

    class Halves:
        def reply(self, body):
            sent = Transcript(body)
            if sent.tools and not sent.calls:
                return ScriptedReply(calls=calls)
            return ScriptedReply(content='{"complete": true}')

    with AgentServer(Halves()) as server:
        asked = agent_request("Do it.", DONE, mode=mode)
        (result,) = carry_out([profile_of(server)], [asked], Items(num_items=1), log)
    assert result.outcome == "succeeded", result.error
    assert {e.failure for e in log.events("key-0") if isinstance(e, Returned)} <= {
        "not_json",
        "undeclared",
    }


class _Fails(Items):
    """Fails in a way that ends the request for one item, and the run for the other."""

    ends: Mapping[str, Exception] = {}

    async def call(self, name, arguments, aside):
        raise self.ends[arguments["item"]]


def test_what_ends_the_run_is_not_hidden_behind_what_ends_one_request():
    world = _Fails(num_items=2)
    first, second = world.parts
    world.ends = {first: BudgetReached("no more"), second: EngineMisconfigured("no such model")}
    calls = [ScriptedCall("probe", {"item": item}) for item in (first, second)]
    with AgentServer(_Two(calls)) as server, pytest.raises(EngineMisconfigured):
        carry_out([profile_of(server)], [agent_request("Do it.", DONE)], world)


class _Agrees:
    """Agrees to every call, and takes down under which key it was asked."""

    def __init__(self):
        self.asked = []

    async def decide(self, request, call, spec, *, written_at):
        self.asked.append((request.request_key, call.call_id, written_at))
        return Decided(call_id=call.call_id, is_approved=True)


class _Approved(Items):
    spec = replace(Items.spec, needs_approval=True)


def test_sub_agents_that_make_the_same_call_are_each_decided_on():
    world = _Approved(num_items=1)
    person = _Agrees()
    calls = [ScriptedCall("probe", {"item": next(iter(world.parts))})]
    asked = agent_request("Do it.", DONE, mode="swarm")
    with AgentServer(_Two(calls)) as server:
        (result,) = carry_out([profile_of(server)], [asked], world, approval=person)
    assert result.work.num_subagents == 2, result.error
    assert len({key for key, _, _ in person.asked}) == len(person.asked) == 2
    assert all(key.startswith("key-0/") for key, _, _ in person.asked)
