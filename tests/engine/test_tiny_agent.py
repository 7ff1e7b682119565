"""An agent on K2.5's architecture under vLLM's own parsers: what it sends is taken, what comes back is read."""

import asyncio
import json

import httpx
import pytest

from engine.batch import route_to, run
from engine.modes.agent.calls import named_calls
from engine.modes.mode import Workshop
from engine.request import AgentLimits, Request
from engine.steps import MemoryLog, Returned, Turned
from engine.tool import ToolAnswer, ToolSpec
from flows.run.bench import open_engine
from tests.engine.test_tiny import send, shown

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

# Random weights end no string and no number: each argument is one of two.
PICK = ToolSpec(
    name="pick",
    description="Picks one of two.",
    parameters={
        "type": "object",
        "properties": {"side": {"type": "string", "enum": ["left", "right"]}},
        "required": ["side"],
        "additionalProperties": False,
    },
)
FORM = {
    "type": "object",
    "properties": {"side": {"type": "string", "enum": ["left", "right"]}},
    "required": ["side"],
    "additionalProperties": False,
}


class Picks:
    """A tool box with one tool."""

    specs = (PICK,)

    async def call(self, name, arguments, aside):
        return ToolAnswer(text=f"{name} took {arguments['side']}")


@pytest.fixture(scope="module")
def endpoint():
    """The tiny K2.5, started or found running."""
    with open_engine("kimi-k2.5-tiny", notify=lambda _: None) as opened:
        yield opened


def carry_out(endpoint, log, *, think):
    """Return the result of one agent that must call in its first two turns."""
    asked = Request(
        request_key="tiny",
        stage="pick",
        mode="agent",
        instructions="Work.\n",
        material="",
        question="Pick a side.",
        schema=FORM,
        # Chance alone ends the number in a call's id.
        max_output_tokens=200,
        max_reasoning_tokens=24,
        limits=AgentLimits(max_steps=4, opening_calls=2, think=think),
    )

    async def collect():
        async def source():
            yield asked

        workshop = Workshop(tools=lambda _: Picks(), steps=log.of)
        return [one async for one in run(source(), route_to(endpoint), workshop=workshop)]

    (result,) = asyncio.run(collect())
    return result


@pytest.mark.parametrize("think", [True, False])
def test_agent_goes_from_forced_calls_to_its_answer(endpoint, think):
    log = MemoryLog()
    result = carry_out(endpoint, log, think=think)
    assert result.outcome == "succeeded", result.error
    assert result.output["side"] in {"left", "right"}
    events = log.events("tiny")
    turns = [event for event in events if isinstance(event, Turned)]
    returned = [event for event in events if isinstance(event, Returned)]
    assert [bool(turn.calls) for turn in turns] == [True, True, False]
    assert all(bool(turn.reasoning) is think for turn in turns)
    cut = {call.call_id for turn in turns if turn.finish_reason == "length" for call in turn.calls}
    whole = [event for event in returned if event.call_id not in cut]
    # Each was declared and its arguments followed the schema; a handle that there is not is the weights' affair.
    assert {event.failure for event in whole} <= {None, "tool_error"}
    picked = {event.text for event in whole if event.failure is None}
    assert picked <= {"pick took left", "pick took right"}
    ids = [call.call_id for turn in turns for call in turn.calls]
    names = [call.name for turn in turns for call in turn.calls]
    assert set(names) <= {"pick", "read_result"}
    assert ids == [f"functions.{name}:{number}" for number, name in enumerate(names)]


def test_several_calls_of_a_turn_are_read_apart_and_sent_back_as_the_model_writes_them(endpoint):
    tool = {
        "type": "function",
        "function": {
            "name": PICK.name,
            "description": PICK.description,
            "parameters": PICK.parameters,
            "strict": True,
        },
    }
    opening = [{"role": "user", "content": "Pick sides."}]
    # Whether a second call follows is chance as well.
    replies = (
        send(
            endpoint,
            messages=opening,
            tools=[tool],
            tool_choice="required",
            chat_template_kwargs={"thinking": False},
            max_tokens=600,
            seed=seed,
        )
        for seed in range(12)
    )
    reply = next(one for one in replies if len(one.tool_calls) > 1)
    assert {call.name for call in reply.tool_calls} == {"pick"}
    sides = [json.loads(call.arguments)["side"] for call in reply.tool_calls]
    calls = named_calls(reply.tool_calls, 5)
    history = [
        *opening,
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Both, then.",
            "tool_calls": [
                {
                    "id": call.call_id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in calls
            ],
        },
        *(
            {"role": "tool", "tool_call_id": call.call_id, "content": f"result {number}"}
            for number, call in enumerate(calls)
        ),
    ]
    # The chat takes reasoning under either name, the endpoint that counts only under vLLM's own.
    told = [
        {
            "reasoning" if key == "reasoning_content" else key: value
            for key, value in message.items()
        }
        for message in history
    ]
    tokens = _prompt(endpoint, told, tool)
    taken = send(endpoint, messages=history, tools=[tool], max_tokens=1, stream=False)
    assert taken.usage.prompt_tokens == len(tokens)
    text = shown(tokens)
    marked = "".join(
        f"<|tool_call_begin|>functions.pick:{number}<|tool_call_argument_begin|>"
        f'{{"side": "{side}"}}<|tool_call_end|>'
        for number, side in enumerate(sides, start=5)
    )
    section = f"<|tool_calls_section_begin|>{marked}<|tool_calls_section_end|>"
    assert f"<think>Both, then.</think>{section}<|im_end|>" in text
    for number in range(len(calls)):
        assert f"## Return of functions.pick:{number + 5}\nresult {number}<|im_end|>" in text


def _prompt(endpoint, messages, tool):
    """Return the tokens of a prompt, as the server renders it."""
    url = f"{endpoint.base_url.removesuffix('/v1')}/tokenize"
    body = {"model": endpoint.model, "messages": messages, "tools": [tool]}
    return httpx.post(url, json=body).json()["tokens"]
