import asyncio
import inspect
import json

import aiohttp
import httpx
import pytest

from engine.client import Client, Patience, _map_errors
from engine.errors import (
    EngineError,
    EngineMisconfigured,
    EngineUnavailable,
    RequestRejected,
    RequestTooLong,
)
from engine.profile import Profile
from engine.status import map_errors, raise_for_status, status_error
from tests.fakes.engine_server import FakeEngine, Fault

BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}


STREAMED = {**BODY, "stream": True, "stream_options": {"include_usage": True}}


def complete(url, api_key=None, body=BODY, patience=None):
    async def call():
        async with Client(url, api_key=api_key, max_connections=1) as client:
            return await client.complete(body, prompt_tokens=10, patience=patience)

    return asyncio.run(call())


def faulty(fault):
    return FakeEngine(script=lambda _number, _body: fault)


HTTPX_ERRORS = [
    kind
    for _, kind in inspect.getmembers(httpx, inspect.isclass)
    if issubclass(kind, Exception) and kind.__module__.startswith("httpx")
]


@pytest.mark.parametrize("kind", HTTPX_ERRORS, ids=lambda kind: kind.__name__)
def test_every_httpx_error_is_mapped_when_raised(kind):
    parameters = inspect.signature(kind).parameters
    values = {"message": "boom", "request": None, "response": None}
    error = kind(**{name: values[name] for name in parameters if name in values})
    with pytest.raises(EngineError), map_errors("http://host/v1"):
        raise error


AIOHTTP_ERRORS = [
    kind
    for _, kind in inspect.getmembers(aiohttp, inspect.isclass)
    if issubclass(kind, aiohttp.ClientError)
]


@pytest.mark.parametrize("kind", AIOHTTP_ERRORS, ids=lambda kind: kind.__name__)
def test_every_aiohttp_error_is_mapped_when_raised(kind):
    error = (
        aiohttp.InvalidURL("boom") if issubclass(kind, aiohttp.InvalidURL) else kind.__new__(kind)
    )
    with pytest.raises(EngineError), _map_errors("http://host/v1"):
        raise error


def answer_of(status, **values):
    return httpx.Response(status, request=httpx.Request("GET", "http://host/v1"), **values)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RequestRejected), (401, EngineMisconfigured), (403, EngineMisconfigured),
        (404, EngineMisconfigured), (408, EngineUnavailable), (409, EngineUnavailable),
        (413, RequestRejected), (422, RequestRejected), (429, EngineUnavailable),
        (500, EngineUnavailable), (502, EngineUnavailable), (503, EngineUnavailable),
    ],
)  # fmt: skip
def test_status_decides_the_class_when_the_endpoint_refuses(status, kind):
    # The text names another status: it must not matter.
    with pytest.raises(kind):
        raise_for_status(answer_of(status, text="error 200 429 500"), "http://host/v1")


def test_delay_is_told_when_the_endpoint_says_retry_after():
    answer = answer_of(429, headers={"retry-after": "7"}, json={"error": {"message": "slow"}})
    with pytest.raises(EngineUnavailable, match="429: slow") as caught:
        raise_for_status(answer, "http://host/v1")
    assert caught.value.retry_after_s == 7.0


@pytest.mark.parametrize(
    "fault",
    [
        Fault(body=b""),
        Fault(body=b"<html>"),
        Fault(body=b'{"choices": []}'),
        Fault(cut=True),
    ],
    ids=["empty", "html", "no choice", "cut"],
)
def test_broken_body_is_unavailable_when_the_status_is_200(fault):
    with faulty(fault) as engine, pytest.raises(EngineUnavailable):
        complete(engine.url)


def test_reply_has_content_and_usage_when_all_is_well(engine):
    reply = complete(engine.url)
    assert reply.content.startswith('"answer ')
    assert reply.usage.prompt_tokens > 0
    assert reply.usage.cached_tokens == 0
    assert reply.finish_reason == "stop"


def test_key_is_sent_and_never_told_when_it_is_wrong():
    with FakeEngine(api_key="right") as engine:
        assert complete(engine.url, "right").content
        with pytest.raises(EngineMisconfigured, match="check the API key") as caught:
            complete(engine.url, "very-secret")
    assert "very-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "what"), [(401, "the API key"), (403, "the rights of the API key")]
)
def test_key_is_named_by_variable_and_profile_when_it_is_refused(status, what):
    named = Profile(name="harbour", api_key_env="HARBOUR_KEY", modes={}).key_in_words
    error = status_error(
        status, b"secret is no key", base_url="http://h", secret="secret", key=named
    )
    assert str(error) == (
        f"http://h answered {status}: [key] is no key; check {what} in HARBOUR_KEY (profile 'harbour')"
    )


def test_url_is_named_when_nothing_listens():
    with pytest.raises(EngineUnavailable, match="http://127.0.0.1:9/v1 cannot be reached"):
        complete("http://127.0.0.1:9/v1")


def test_body_arrives_whole_when_it_is_large(engine):
    engine.max_model_len = 10_000_000
    text = "häfen " * 400_000
    complete(engine.url, body={**BODY, "messages": [{"role": "user", "content": text}]})
    assert engine.calls[0]["messages"][0]["content"] == text


def test_errors_survive_when_pickled():
    import pickle

    for error in (
        EngineUnavailable("later", retry_after_s=3.0),
        RequestRejected("no", status=400),
        RequestTooLong("long", status=400),
        EngineMisconfigured("key"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_stream_is_put_together_when_all_is_well(engine):
    whole, streamed = complete(engine.url), complete(engine.url, body=STREAMED)
    assert streamed.content == whole.content
    assert streamed.usage.prompt_tokens == whole.usage.prompt_tokens
    assert streamed.finish_reason == "stop"
    assert 0 < streamed.first_token_s < 5
    assert whole.first_token_s is None


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
@pytest.mark.parametrize("body", [BODY, STREAMED], ids=["whole", "streamed"])
def test_thinking_is_read_when_hosts_name_it_differently(field, body):
    message = {field: "let me think about it", "content": "yes"}
    with faulty(Fault(message=message)) as engine:
        reply = complete(engine.url, body=body)
    assert (reply.reasoning, reply.content) == ("let me think about it", "yes")


def event(**delta):
    choice = {"index": 0, "delta": delta, "finish_reason": delta.pop("finish_reason", None)}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


@pytest.mark.parametrize(
    "events",
    [
        [],
        [event(content="half")],
        [event(content="half"), b"data: [DONE]\n\n"],
        [event(content="half"), b"data: {oops\n\n"],
        [event(content="half"), b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'],
        [event(content="half"), event(finish_reason="abort")],
    ],
    ids=["nothing", "cut", "no finish", "broken event", "error event", "aborted"],
)
def test_stream_is_unavailable_when_it_does_not_end_well(events):
    with faulty(Fault(events=events)) as engine, pytest.raises(EngineUnavailable):
        complete(engine.url, body=STREAMED)


def test_stream_is_read_when_it_has_comments_and_no_usage():
    events = [b": ping\r\n\r\n", event(content="a"), event(content="b", finish_reason="stop")]
    with faulty(Fault(events=events)) as engine:
        reply = complete(engine.url, body=STREAMED)
    assert (reply.content, reply.usage) == ("ab", None)


def test_call_is_given_up_when_the_stream_stalls():
    wait = Patience(first_s=5.0, stall_s=0.2, total_s=10.0)
    with (
        faulty(Fault(stall_s=2.0)) as engine,
        pytest.raises(EngineUnavailable, match="did not answer in time"),
    ):
        complete(engine.url, body=STREAMED, patience=wait)


def test_call_is_given_up_when_no_event_comes():
    wait = Patience(first_s=0.2, stall_s=5.0, total_s=10.0)
    with faulty(Fault(hang_s=2.0)) as engine, pytest.raises(EngineUnavailable):
        complete(engine.url, body=STREAMED, patience=wait)


def test_patience_grows_when_the_prompt_does():
    assert Patience.of(1000, 100, streamed=True).first_s == 120.0
    assert Patience.of(200_000, 100, streamed=True).first_s == 2000.0


@pytest.mark.parametrize(
    "usage",
    [
        None,
        "many",
        {},
        {"prompt_tokens": -5, "completion_tokens": 3},
        {"prompt_tokens": 5, "completion_tokens": 0},
        {"prompt_tokens": True, "completion_tokens": 3},
    ],
)
def test_usage_is_unknown_when_it_cannot_be(usage):
    with faulty(Fault(content="text", usage=usage)) as engine:
        assert complete(engine.url).usage is None


def test_details_are_dropped_when_they_contradict_the_sum():
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 99},
        "completion_tokens_details": {"reasoning_tokens": 99},
    }
    with faulty(Fault(content="text", usage=usage)) as engine:
        found = complete(engine.url).usage
    assert (found.prompt_tokens, found.cached_tokens, found.reasoning_tokens) == (10, None, None)


def test_cached_tokens_are_read_when_moonshot_puts_them_beside():
    usage = {"prompt_tokens": 10, "completion_tokens": 4, "cached_tokens": 8}
    with faulty(Fault(content="text", usage=usage)) as engine:
        assert complete(engine.url).usage.cached_tokens == 8


def test_key_is_hidden_when_the_host_echoes_it():
    fault = Fault(status=401, body=b'{"error": {"message": "Incorrect key very-secret given"}}')
    with faulty(fault) as engine, pytest.raises(EngineMisconfigured) as caught:
        complete(engine.url, "very-secret")
    assert "very-secret" not in str(caught.value)
    assert "[key]" in str(caught.value)
