import asyncio
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from engine.batch import BreakerRule, Budget, RetryRule, route_to, run
from engine.batch.call import Account
from engine.endpoint import open_endpoint
from engine.errors import EngineMisconfigured, EngineUnavailable
from engine.profile import Capabilities, RateTier, profile_for_url
from engine.request import Request, Usage
from tests.fakes.engine_server import FakeEngine, Fault

SCHEMA = {
    "type": "object",
    "properties": {"topic": {"type": "string", "enum": ["a", "b", "c"]}},
    "required": ["topic"],
    "additionalProperties": False,
}
AT_ONCE = RetryRule(first_delay_s=0.0)


def request(number, **changes):
    base = Request(
        request_key=f"key-{number}",
        stage="topic",
        mode="instant",
        instructions="Read.",
        material=f"[L1] line {number}\n",
        question="Which topic?",
        schema=SCHEMA,
        max_output_tokens=16,
    )
    return replace(base, **changes)


def endpoint_of(engine, profile=None):
    return open_endpoint(
        profile or profile_for_url(engine.url),
        venv=None,
        cache=Path("no-cache"),
        environment={},
        api_key=None,
        notify=print,
    )


def carry_out(
    engine, requests, *, max_in_flight=4, retry=AT_ONCE, fallback=(), rule=None, profile=None
):
    endpoints = [endpoint_of(engine, profile), *map(endpoint_of, fallback)]

    async def collect():
        async def source():
            for item in requests:
                yield item

        route = route_to(*endpoints, rule=rule)
        batch = run(source(), route, max_in_flight=max_in_flight, retry=retry)
        return [result async for result in batch]

    return asyncio.run(collect())


def test_each_request_has_one_result_when_all_is_well(engine):
    results = carry_out(engine, [request(i) for i in range(50)])
    assert sorted(r.request_key for r in results) == sorted(f"key-{i}" for i in range(50))
    assert {r.outcome for r in results} == {"succeeded"}
    assert {r.output["topic"] for r in results} == {"a", "b", "c"}
    assert {r.mode_observed for r in results} == {"instant"}


def test_no_result_is_yielded_when_there_is_no_request(engine):
    assert carry_out(engine, []) == []


def test_limit_holds_and_is_used_when_many_requests_wait():
    with FakeEngine(script=lambda *_: Fault(hang_s=0.05)) as engine:
        carry_out(engine, [request(i) for i in range(20)], max_in_flight=3)
    assert engine.most_in_flight == 3


def test_prompt_begins_with_what_requests_share_when_sent(engine):
    carry_out(engine, [request(0), request(0, request_key="other", question="And why?")])
    first, second = (call["messages"] for call in engine.calls)
    assert first[0] == second[0] == {"role": "system", "content": "Read."}
    shared = "[L1] line 0\n\nQuestion: "
    assert first[1]["content"].startswith(shared)
    assert second[1]["content"].startswith(shared)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=429, headers={"Retry-After": "0"}),
        Fault(status=503),
        Fault(body=b""),
        Fault(cut=True),
    ],
    ids=["429", "503", "empty", "cut"],
)
def test_call_is_sent_again_when_the_endpoint_is_unavailable(fault):
    with FakeEngine(script=lambda number, _: fault if number < 2 else None) as engine:
        (result,) = carry_out(engine, [request(0)])
    assert (result.outcome, result.attempts) == ("succeeded", 3)


def test_request_fails_with_a_reason_when_the_endpoint_stays_unavailable():
    with FakeEngine(script=lambda *_: Fault(status=500)) as engine:
        (result,) = carry_out(engine, [request(0)])
    assert (result.outcome, result.error_class) == ("failed", "engine_unavailable")
    assert "answered 500" in result.error
    assert len(engine.calls) == result.attempts == AT_ONCE.max_attempts


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens.",
        "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
        "Invalid request: Your request exceeded model token limit: 262144",
        "the request exceeds the available context size. try increasing it",
        "Input tokens exceed the configured limit of 272000 tokens.",
        "`inputs` tokens + `max_new_tokens` must be <= 4096",
        {"message": "Please reduce it.", "code": "context_length_exceeded"},
    ],
)
def test_request_is_rejected_with_numbers_when_the_endpoint_finds_it_too_long(message):
    error = message if isinstance(message, dict) else {"message": message}
    body = json.dumps({"error": error}).encode()
    with FakeEngine(script=lambda *_: Fault(status=400, body=body)) as engine:
        (result,) = carry_out(engine, [request(0, prompt_tokens=7_500)])
    assert (result.outcome, result.error_class) == ("rejected", "too_long")
    assert error["message"][:20] in result.error
    assert "for the first call: 7,500 for the prompt, up to 16 for the answer" in result.error
    assert len(engine.calls) == 1


@pytest.mark.parametrize(
    "message",
    [
        "Invalid json_schema: unknown keyword in property 'context_window'",
        "chat_template_kwargs.context_length is not known",
        "max_tokens 40000 exceeds the output token limit of 32768",
    ],
)
def test_request_is_refused_for_another_reason_when_length_is_only_named(message):
    body = json.dumps({"error": {"message": message}}).encode()
    with FakeEngine(script=lambda *_: Fault(status=400, body=body)) as engine:
        (result,) = carry_out(engine, [request(0)])
    assert (result.outcome, result.error_class) == ("failed", "request_rejected")


def test_only_the_refused_request_fails_when_one_is_too_long(engine):
    engine.max_model_len = 300
    results = carry_out(engine, [request(0), request(1, material="[L1] " + "x" * 2000), request(2)])
    by_key = {r.request_key: r for r in results}
    assert by_key["key-1"].error_class == "too_long"
    assert "longer than the context" in by_key["key-1"].error
    assert [by_key[k].outcome for k in ("key-0", "key-2")] == ["succeeded", "succeeded"]


def test_answer_is_repaired_once_with_the_error_when_it_breaks_the_schema():
    wrong = Fault(content='{"topic": "z"}')
    with FakeEngine(script=lambda number, _: wrong if number == 0 else None) as engine:
        (result,) = carry_out(engine, [request(0)])
    assert (result.outcome, result.attempts) == ("succeeded", 2)
    repair = engine.calls[1]["messages"]
    assert [m["role"] for m in repair] == ["system", "user", "assistant", "user"]
    assert "'z' is not one of" in repair[-1]["content"]
    usage = result.usage
    assert usage.later_prompt_tokens > len(str(repair)) // 5
    assert usage.prompt_tokens - usage.later_prompt_tokens < usage.later_prompt_tokens
    assert 0 < usage.later_cached_tokens <= usage.cached_tokens


def test_first_answered_call_is_none_of_the_later_ones_whatever_went_before_it():
    account = Account()
    # A line that has expired, then vectors, then the calls.
    account.of_lines().attempts += 1
    account.add(Usage(prompt_tokens=7, embedded_tokens=7), None, None)
    account.add(Usage(prompt_tokens=100, cached_tokens=0), None, None)
    account.add(Usage(prompt_tokens=120, cached_tokens=96), None, None)
    account.take_lines()
    usage = account.usage
    assert (usage.prompt_tokens, usage.embedded_tokens) == (227, 7)
    assert (usage.later_prompt_tokens, usage.later_cached_tokens) == (120, 96)


def test_calls_are_later_than_the_line_that_was_answered():
    account = Account()
    account.of_lines().add(Usage(prompt_tokens=100, cached_tokens=0), None, None)
    account.add(Usage(prompt_tokens=120, cached_tokens=96), None, None)
    account.take_lines()
    assert (account.usage.prompt_tokens, account.usage.later_prompt_tokens) == (220, 120)


def test_no_token_is_of_a_later_call_when_the_first_was_only_put_off():
    busy = Fault(status=503)
    with FakeEngine(script=lambda number, _: busy if number == 0 else None) as engine:
        (result,) = carry_out(engine, [request(0)])
    assert result.attempts > 1
    assert result.usage.prompt_tokens > result.usage.later_prompt_tokens == 0
    assert result.usage.later_cached_tokens is None


@pytest.mark.parametrize(
    ("fault", "error_class"),
    [
        (Fault(content='{"topic": "z"}'), "schema"),
        (Fault(content="the topic is a"), "not_json"),
        (Fault(content='{"topic": ' + "1" * 5000 + "}"), "not_json"),
        (Fault(content='{"topic":' * 1500 + "1" + "}" * 1500), "not_json"),
        (Fault(content=""), "empty"),
        (Fault(content='{"topic": "a', finish_reason="length"), "length"),
    ],
)
def test_invalid_answer_is_an_outcome_with_its_class_when_repair_fails(fault, error_class):
    with FakeEngine(script=lambda *_: fault) as engine:
        (result,) = carry_out(engine, [request(0)])
    assert (result.outcome, result.error_class) == ("invalid_output", error_class)
    assert result.output is None
    assert result.error


def test_thinking_is_observed_when_it_leaks_into_the_answer():
    leaked = Fault(content='Let me see.</think>{"topic": "a"}')
    with FakeEngine(script=lambda *_: leaked) as engine:
        (result,) = carry_out(engine, [request(0)])
    assert (result.outcome, result.output) == ("succeeded", {"topic": "a"})
    assert result.mode_observed == "thinking"


def test_batch_stops_when_the_endpoint_refuses_everything():
    with (
        FakeEngine(script=lambda *_: Fault(status=401)) as engine,
        pytest.raises(EngineMisconfigured),
    ):
        carry_out(engine, [request(i) for i in range(100)])
    assert len(engine.calls) < 20


def test_batch_stops_when_the_source_of_requests_fails(engine):
    def source():
        yield request(0)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        carry_out(engine, source())


def test_model_and_context_are_the_endpoint_s_own_when_opened(engine):
    endpoint = endpoint_of(engine)
    assert (endpoint.model, endpoint.context_tokens) == ("fake-model", 8192)
    assert not endpoint.counter.exact


def test_address_is_named_when_nothing_answers():
    profile = profile_for_url("http://127.0.0.1:9")
    with pytest.raises(EngineUnavailable, match="http://127.0.0.1:9/v1 cannot be reached"):
        open_endpoint(
            profile, venv=None, cache=Path("no-cache"), environment={}, api_key=None, notify=print
        )


def test_delays_grow_with_jitter_when_calls_fail():
    rule = RetryRule(first_delay_s=1.0, max_delay_s=4.0)
    for attempt, base in ((1, 1.0), (2, 2.0), (3, 4.0), (9, 4.0)):
        assert 0.5 * base <= rule.delay_s(attempt, None) <= 1.5 * base
    assert 12.0 <= rule.delay_s(1, 12.0) <= 14.4


def test_fallback_answers_and_says_why_when_the_engine_is_down():
    with (
        FakeEngine(script=lambda *_: Fault(status=500)) as engine,
        FakeEngine() as other,
    ):
        results = carry_out(engine, [request(i) for i in range(12)], fallback=[other])
    assert {r.outcome for r in results} == {"succeeded"}
    assert {r.engine for r in results} == {other.url}
    assert all(r.fallback for r in results)
    assert any("answered 500" in r.fallback for r in results)
    # The breaker saves the calls that would have failed: 12 requests would make 72.
    assert len(engine.calls) < 30


def test_calls_are_held_back_when_an_engine_fails_in_a_row():
    rule = BreakerRule(max_failures=3, first_open_s=0.3, max_open_s=0.3)
    with FakeEngine(script=lambda n, _: Fault(status=500) if n < 4 else None) as engine:
        results = carry_out(engine, [request(i) for i in range(8)], max_in_flight=2, rule=rule)
    assert {r.outcome for r in results} == {"succeeded"}
    assert len(engine.calls) == 12


def test_requests_fail_fast_when_an_engine_has_been_down_for_long():
    rule = BreakerRule(max_failures=2, first_open_s=0.05, max_open_s=0.05, give_up_s=0.0)
    with FakeEngine(script=lambda *_: Fault(status=500)) as engine:
        results = carry_out(engine, [request(i) for i in range(10)], rule=rule)
    assert {r.error_class for r in results} == {"engine_unavailable"}
    assert any("left alone" in r.error for r in results)


def test_calls_begin_slowly_when_the_engine_was_away():
    rule = BreakerRule(max_failures=3, first_open_s=0.2, max_open_s=0.2)
    in_flight = []

    def script(number, _):
        if number < 20:
            return Fault(status=500)
        in_flight.append(engine.in_flight)
        return Fault(hang_s=0.2)

    with FakeEngine(script=script) as engine:
        profile = profile_for_url(engine.url).model_copy(update={"max_in_flight": 16})
        requests = [request(i) for i in range(40)]
        patient = RetryRule(first_delay_s=0.0, max_attempts=20)
        results = carry_out(
            engine, requests, max_in_flight=16, rule=rule, profile=profile, retry=patient
        )
    assert {r.outcome for r in results} == {"succeeded"}
    assert len(results) == 40
    # One looks whether it is back, four go next, and each that is accepted lets one more go.
    assert in_flight[0] == 1
    assert max(in_flight[:5]) <= 5


def tiered(engine, **limits):
    tier = RateTier(name="t", **limits)
    return profile_for_url(engine.url).model_copy(update={"tiers": (tier,), "tier": "t"})


def test_batches_of_several_loops_share_all_places_when_they_have_one_route(engine):
    engine.latency_s = 0.02
    route = route_to(endpoint_of(engine, tiered(engine, max_in_flight=3)))

    async def one_batch(first):
        async def source():
            for number in range(20):
                yield request(first + number, priority=first + number)

        return [result async for result in run(source(), route)]

    with ThreadPoolExecutor(2) as threads:
        batches = [threads.submit(asyncio.run, one_batch(first)) for first in (0, 100)]
        results = [result for batch in batches for result in batch.result(timeout=30)]
    assert len({r.request_key for r in results}) == 40
    assert engine.most_in_flight == 3


def test_time_is_told_by_where_it_went_when_a_request_waits_for_its_place(engine):
    engine.latency_s = 0.1
    profile = tiered(engine, max_in_flight=1)
    profile = profile.model_copy(update={"capabilities": Capabilities(stream=True)})
    results = carry_out(engine, [request(i) for i in range(3)], profile=profile)
    queued = sorted(r.queued_s for r in results)
    assert queued[0] < queued[1] < queued[2]
    assert queued[1] >= 0.1
    assert queued[2] >= 0.2
    for result in results:
        assert 0 <= result.decoding_s < result.seconds
        assert result.queued_s + result.first_token_s + result.decoding_s <= result.seconds


FULL = """\
vllm:num_requests_waiting{engine="0"} 5.0
vllm:kv_cache_usage_perc{engine="0"} 1.0
vllm:num_preemptions_total{engine="0"} 0.0
"""


def test_fewer_calls_are_in_flight_when_the_engine_says_that_it_is_full(engine):
    engine.metrics, engine.latency_s = FULL, 0.05
    profile = profile_for_url(engine.url).model_copy(
        update={"max_in_flight": 10, "capabilities": Capabilities(priority=True)}
    )
    route = route_to(endpoint_of(engine, profile))

    async def batch():
        async def source():
            for number in range(60):
                yield request(number)

        return [result async for result in run(source(), route)]

    started = time.monotonic()
    asyncio.run(batch())
    # Once in two seconds, however many calls there are.
    assert 1 <= engine.num_read <= 1 + (time.monotonic() - started) // 2
    assert engine.in_flight == 0
    engine.most_in_flight = 0
    asyncio.run(batch())
    assert engine.most_in_flight <= 8


def thinking(**changes):
    return request(0, mode="thinking", max_reasoning_tokens=64, **changes)


def test_thinking_goes_by_prompt_when_the_model_has_no_switch(engine):
    (result,) = carry_out(engine, [thinking(reasoning="keep")])
    assert (result.outcome, result.mode_observed) == ("succeeded", "thinking")
    assert "thought_by_prompt" in result.mode_notes
    assert result.reasoning
    first, second = engine.calls
    assert "response_format" not in first
    assert "step by step" in first["messages"][1]["content"]
    assert second["messages"][:2] == first["messages"]
    assert second["response_format"]["json_schema"]["schema"] == SCHEMA


def test_usage_is_counted_here_when_the_endpoint_tells_none():
    with FakeEngine(script=lambda *_: Fault(content='{"topic": "a"}', usage=None)) as engine:
        (result,) = carry_out(engine, [request(0)])
    assert result.usage.num_guessed == 1
    assert result.usage.prompt_tokens > 10
    assert result.usage.completion_tokens > 1


def test_empty_answer_is_asked_for_again_when_no_tool_call_came():
    empty = Fault(content="")
    with FakeEngine(script=lambda n, _: empty if n == 0 else None) as engine:
        (result,) = carry_out(engine, [request(0)])
    assert (result.outcome, result.attempts) == ("succeeded", 2)
    assert result.mode_notes == ("empty",)


def test_calls_that_wait_for_their_place_are_not_begun_when_the_time_is_over():
    with FakeEngine(latency_s=0.3) as engine:
        profile = profile_for_url(engine.url).model_copy(update={"max_in_flight": 1})

        async def collect():
            async def source():
                for number in range(10):
                    yield request(number)

            route = route_to(endpoint_of(engine, profile))
            batch = run(source(), route, max_in_flight=10, budget=Budget(max_seconds=0.5))
            return [result async for result in batch]

        outcomes = Counter(result.outcome for result in asyncio.run(collect()))
        assert outcomes["succeeded"] == len(engine.calls) < 10
        assert outcomes["over_budget"] == 10 - len(engine.calls)
