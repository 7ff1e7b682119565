from dataclasses import replace

import pytest

from engine.grammar import inexpressible
from engine.modes.spectrum import Shape, choose
from engine.profile import Capabilities, ModeSettings, Profile
from engine.wire import WHY
from tests.engine import test_batch
from tests.engine.test_batch import request
from tests.fakes.engine_server import FakeEngine, Fault


def carry_out(engine, item, **profile):
    """Return the result of one request on a host that switches its own thinking."""
    host = Profile(
        name="host",
        base_url=engine.url,
        capabilities=Capabilities(structured_output=True, thinking_budget=True, stream_interval=16),
        modes={
            "instant": ModeSettings(wire={"chat_template_kwargs": {"thinking": False}}),
            "thinking": ModeSettings(),
        },
        **profile,
    )
    (result,) = test_batch.carry_out(engine, [item], profile=host)
    return result


THINK = {"mode": "thinking", "max_reasoning_tokens": 100}


def test_thinking_is_asked_for_and_bounded_when_the_host_has_a_switch():
    good = Fault(message={"reasoning": "so", "content": '{"topic": "a"}'})
    with FakeEngine(script=lambda *_: good) as engine:
        result = carry_out(engine, request(0, reasoning="keep", **THINK))
    assert (result.outcome, result.mode_observed, result.mode_notes) == (
        "succeeded",
        "thinking",
        (),
    )
    assert result.reasoning == "so"
    (call,) = engine.calls
    assert call["max_tokens"] == 116
    assert call["thinking_token_budget"] == 100
    assert "chat_template_kwargs" not in call
    assert set(call) <= set(WHY)


def test_more_budget_then_instant_is_tried_when_thinking_does_not_end():
    cut = Fault(message={"reasoning": "so", "content": None}, finish_reason="length")
    with FakeEngine(script=lambda n, _: cut if n < 2 else None) as engine:
        result = carry_out(engine, request(0, **THINK))
    assert (result.outcome, result.mode_observed) == ("succeeded", "instant")
    assert result.mode_notes == ("more_budget", "fell_to_instant")
    assert [call["max_tokens"] for call in engine.calls] == [116, 216, 16]
    assert engine.calls[2]["chat_template_kwargs"] == {"thinking": False}


def test_repair_goes_in_instant_when_thinking_gave_a_wrong_answer():
    wrong = Fault(message={"reasoning": "so", "content": '{"topic": "z"}'})
    with FakeEngine(script=lambda n, _: wrong if n == 0 else None) as engine:
        result = carry_out(engine, request(0, **THINK))
    assert (result.outcome, result.mode_observed) == ("succeeded", "thinking")
    assert result.mode_notes == ("repaired",)
    assert engine.calls[1]["chat_template_kwargs"] == {"thinking": False}


def test_thinking_is_summed_up_when_the_stage_wants_it():
    good = Fault(message={"reasoning": "long thoughts", "content": '{"topic": "a"}'})
    short = Fault(content="It stands in the first line.")
    with FakeEngine(script=lambda n, _: good if n == 0 else short) as engine:
        result = carry_out(engine, request(0, reasoning="summary", **THINK))
    assert result.reasoning == "It stands in the first line."
    assert "long thoughts" in engine.calls[1]["messages"][0]["content"]


def test_field_is_never_sent_when_the_host_refuses_it(engine):
    carry_out(engine, request(0), refuses=["stream_options", "stream_interval"])
    assert not {"stream_options", "stream_interval"} & set(engine.calls[0])


def test_tier_limits_what_is_in_flight_when_the_account_has_one():
    host = Profile(
        name="host",
        max_in_flight=50,
        tiers=[{"name": "0", "max_in_flight": 1, "requests_per_minute": 3}],
        modes={"instant": ModeSettings()},
    )
    assert host.limits.max_in_flight == 50
    bound = host.model_copy(update={"tier": "0"}).limits
    assert (bound.max_in_flight, bound.requests_per_minute) == (1, 3)


SHAPE = Shape(
    is_reduce=False,
    num_needs=0,
    num_free_fields=1,
    max_output_tokens=100,
    max_reasoning_tokens=None,
)


@pytest.mark.parametrize(
    ("changes", "mode", "reason"),
    [
        ({"num_free_fields": 0, "max_output_tokens": 9000}, "instant", "look-up"),
        ({}, "instant", "short answer"),
        ({"max_output_tokens": 900}, "thinking", "analysis"),
        ({"is_reduce": True, "num_needs": 1}, "thinking", "weighed"),
        ({"max_reasoning_tokens": 500}, "thinking", "500 tokens for thinking"),
    ],
)
def test_cheapest_mode_is_chosen_when_mode_is_auto(changes, mode, reason):
    choice = choose(replace(SHAPE, **changes), ["instant", "thinking"])
    assert choice.mode == mode
    assert reason in choice.reason


def test_offered_mode_is_chosen_when_the_engine_lacks_the_right_one():
    choice = choose(replace(SHAPE, max_output_tokens=900), ["instant"])
    assert choice.mode == "instant"
    assert "no mode thinking" in choice.reason


@pytest.mark.parametrize(
    ("schema", "grammar", "found"),
    [
        ({"type": "string", "format": "date"}, "xgrammar", None),
        ({"type": "string", "format": "iban"}, "xgrammar", "format: iban"),
        ({"type": "string", "format": "iban"}, "any", None),
        ({"type": "number", "multipleOf": 5}, "xgrammar", "multipleOf"),
        ({"type": "array", "uniqueItems": True}, "xgrammar", "uniqueItems"),
        ({"type": "object", "patternProperties": {}}, "any", "patternProperties"),
        ({"type": "object", "properties": {"not": {"type": "string"}}}, "any", None),
        ({"properties": {"a": {"items": {"not": {}}}}}, "any", "output.a.items: 'not'"),
    ],
)
def test_keyword_is_named_when_a_grammar_cannot_express_it(schema, grammar, found):
    problem = inexpressible(schema, grammar)
    assert problem is None if found is None else found in problem
