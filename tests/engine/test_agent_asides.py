"""Questions that tools put to the model: paid for once, and on record whatever comes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.steps import Answered, Paid
from engine.tool import ToolAnswer
from tests.engine.agent_runs import (
    Killed,
    KillingLog,
    agent_request,
    carry_out,
    profile_of,
    values_in,
)
from tests.fakes.agent_script import ScriptedReply
from tests.fakes.agent_scripts import WideSearch
from tests.fakes.agent_server import AgentServer
from tests.fakes.agent_worlds import TABLE, Items


class _Digests(Items):
    """A tool that has the model sum a document up before it answers."""

    async def call(self, name, arguments, aside):
        digest = await aside.ask("Sum it up.", "[L1] The same long document.")
        answer = await super().call(name, arguments, aside)
        return ToolAnswer(text=f"{answer.text}\n({digest})")


class _Sums(WideSearch):
    """Sums up where it is asked to without tools."""

    def reply(self, body):
        return super().reply(body) if "tools" in body else ScriptedReply(content="A digest.")


def test_digest_that_ten_agents_ask_for_is_computed_once_and_found_after_a_kill():
    world = _Digests(num_items=3)
    asked = [
        replace(agent_request(world.question, TABLE), request_key=f"key-{n}") for n in range(10)
    ]
    log = KillingLog()
    with AgentServer(_Sums()) as server:
        log.after = 25
        with pytest.raises(Killed):
            carry_out([profile_of(server)], asked, world, log)
        log.after = None
        results = carry_out([profile_of(server)], asked, world, log)
        asides = [body for body in server.bodies if "tools" not in body]
    # What was paid is in the results, once: the digest too, whose call had returned before the kill.
    tokens = sum(event.usage.prompt_tokens for event in log.all() if isinstance(event, Paid))
    assert sum(result.usage.prompt_tokens for result in results) == tokens
    assert {result.outcome for result in results} == {"succeeded"}
    assert all(values_in(result) == world.values for result in results)
    assert len(asides) == 1


class _Speechless(WideSearch):
    """Has nothing to say the first times that it is asked to sum up."""

    def __init__(self) -> None:
        super().__init__()
        self.num_asked = 0

    def reply(self, body):
        if "tools" in body:
            return super().reply(body)
        self.num_asked += 1
        return ScriptedReply(content="" if self.num_asked <= 2 else "A digest.")


def test_question_without_an_answer_is_on_record_and_asked_again():
    world = _Digests(num_items=4)
    log = KillingLog()
    with AgentServer(_Speechless()) as server:
        (result,) = carry_out(
            [profile_of(server)], [agent_request(world.question, TABLE)], world, log
        )
    answered = [event.text for event in log.all() if isinstance(event, Answered)]
    assert answered == ["", "", "A digest."]
    assert result.outcome == "succeeded", result.error
    tokens = sum(event.usage.prompt_tokens for event in log.all() if isinstance(event, Paid))
    assert result.usage.prompt_tokens == tokens
