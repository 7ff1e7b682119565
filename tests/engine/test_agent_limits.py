"""How far an agent goes: turns, calls, thinking, and turns that must call a tool."""

from __future__ import annotations

import pytest

from engine.tool import ToolSpec
from tests.engine.agent_runs import DONE, agent_request, carry_out, profile_of
from tests.fakes.agent_script import ScriptedCall, ScriptedReply, Transcript
from tests.fakes.agent_scripts import LedgerWalk
from tests.fakes.agent_server import AgentServer
from tests.fakes.agent_worlds import Items, Ledger


def test_limit_of_steps_ends_with_an_answer_that_says_so():
    world = Ledger(num_calls=50)
    asked = agent_request(world.question, max_steps=10)
    with AgentServer(LedgerWalk()) as server:
        (result,) = carry_out([profile_of(server)], [asked], world)
    assert result.outcome == "succeeded"
    assert "10 steps" in result.work.stopped
    assert result.work.num_steps <= 10


class Deaf:
    """Calls on, whatever it is told and though nothing may be called any more."""

    def reply(self, body):
        return ScriptedReply(calls=[ScriptedCall("lookup", {"key": "start"})])


def test_agent_that_goes_on_calling_after_it_was_stopped_ends_soon():
    world = Ledger(num_calls=3)
    with AgentServer(Deaf()) as server:
        (result,) = carry_out([profile_of(server)], [agent_request(world.question)], world)
        num_turns = server.counts["answered"]
    assert result.outcome == "invalid_output"
    assert "called_after_the_end" in result.mode_notes
    # Three turns until it is reminded, three until it is stopped, and what is asked after that.
    assert num_turns < 20


class _Thinks:
    """Thinks until it is cut, and says nothing."""

    def reply(self, body):
        return ScriptedReply(reasoning="Hm, let me see. " * 20, finish_reason="length")


def test_thinking_that_does_not_end_is_named_with_its_own_limit():
    with AgentServer(_Thinks()) as server:
        (result,) = carry_out([profile_of(server)], [agent_request("Do it.", DONE)], Items())
    assert (result.outcome, result.error_class) == ("invalid_output", "length")
    assert "max_reasoning_tokens = 1000" in result.error


class _TenThousand:
    """An orchestrator that gives out ten thousand tasks in one turn."""

    def reply(self, body):
        sent = Transcript(body)
        if "assign_task" not in sent.tools:
            is_lead = "response_format" in body
            return ScriptedReply(content='{"complete": false}' if is_lead else "A report.")
        if not sent.calls:
            role = {"name": "one", "system_prompt": "Work."}
            return ScriptedReply(calls=[ScriptedCall("create_subagent", role)])
        tasks = [{"agent": "one", "prompt": f"Task {number}."} for number in range(10_000)]
        return ScriptedReply(calls=[ScriptedCall("assign_task", task) for task in tasks])


def test_swarm_that_asks_for_ten_thousand_sub_agents_gets_as_many_as_its_limit():
    world = Items(num_items=1)
    asked = agent_request("Do it.", DONE, mode="swarm", max_calls=50, max_subagents=10)
    with AgentServer(_TenThousand()) as server:
        (result,) = carry_out([profile_of(server)], [asked], world)
    assert result.outcome == "succeeded", result.error
    assert result.work.num_subagents == 49
    assert "50 tool calls" in result.work.stopped


class _Cut:
    """Writes more than there is room for."""

    def reply(self, body):
        return ScriptedReply(content='{"complete": tr', finish_reason="length")


class _Silent:
    """Says nothing at all."""

    def reply(self, body):
        return ScriptedReply(content="")


@pytest.mark.parametrize("model", [_Thinks(), _Cut(), _Silent(), Deaf()])
@pytest.mark.parametrize("limit", [3, 4, 7])
def test_limit_of_steps_holds_to_the_turn_whatever_the_model_does(model, limit):
    asked = agent_request("Do it.", DONE, max_steps=limit)
    with AgentServer(model) as server:
        (result,) = carry_out([profile_of(server)], [asked], Ledger(num_calls=3))
        num_turns = server.counts["answered"]
    assert result.outcome == "invalid_output"
    assert result.work.num_steps == num_turns <= limit


class _Hasty:
    """Answers at once wherever it may."""

    def reply(self, body):
        if body["tool_choice"] == "required":
            return ScriptedReply(calls=[ScriptedCall("lookup", {"key": "start"})])
        return ScriptedReply(content='{"complete": true}')


@pytest.mark.parametrize(("can_force", "streams"), [(True, True), (True, False), (False, True)])
def test_first_turns_must_call_a_tool_where_the_host_can_force_it(can_force, streams):
    asked = agent_request("Do it.", DONE, opening_calls=2, think=False)
    with AgentServer(_Hasty()) as server:
        profile = profile_of(server, forced_calls=can_force, stream_forced_calls=streams)
        (result,) = carry_out([profile], [asked], Ledger(num_calls=3))
    choices = [body["tool_choice"] for body in server.bodies]
    assert choices == (["required", "required", "auto"] if can_force else ["auto"])
    streamed = [body.get("stream", False) for body in server.bodies]
    assert streamed == [streams or choice == "auto" for choice in choices]
    assert result.outcome == "succeeded", result.error


class _Odd(Ledger):
    """Has a tool whose arguments no grammar of xgrammar's can express."""

    @property
    def specs(self):
        wild = {"type": "object", "patternProperties": {"^x": {"type": "string"}}}
        return (*super().specs, ToolSpec(name="wild", description="Anything.", parameters=wild))


@pytest.mark.parametrize("is_strict", [True, False])
def test_calls_are_constrained_where_host_and_schema_allow_it(is_strict):
    with AgentServer(_Hasty()) as server:
        profile = profile_of(server, strict_tools=is_strict)
        carry_out([profile], [agent_request("Do it.", DONE)], _Odd(num_calls=3))
    (body,) = server.bodies
    strict = {tool["function"]["name"]: tool["function"].get("strict") for tool in body["tools"]}
    assert strict["wild"] is None
    assert set(strict.values()) == ({True, None} if is_strict else {None})
