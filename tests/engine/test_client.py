import asyncio
import inspect

import httpx
import pytest

from engine.client import Client, map_errors, raise_for_status
from engine.errors import EngineError, EngineMisconfigured, EngineUnavailable, RequestRejected
from tests.fakes.engine_server import FakeEngine, Fault

BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}


def complete(url, api_key=None):
    async def call():
        async with Client(url, api_key=api_key, max_connections=1) as client:
            return await client.complete(BODY, prompt_tokens=10)

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
        raise_for_status(httpx.Response(status, text="error 200 429 500"), "http://host/v1")


def test_delay_is_told_when_the_endpoint_says_retry_after():
    answer = httpx.Response(429, headers={"retry-after": "7"}, json={"error": {"message": "slow"}})
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


def test_url_is_named_when_nothing_listens():
    with pytest.raises(EngineUnavailable, match="http://127.0.0.1:9/v1 cannot be reached"):
        complete("http://127.0.0.1:9/v1")


def test_errors_survive_when_pickled():
    import pickle

    for error in (
        EngineUnavailable("later", retry_after_s=3.0),
        RequestRejected("no", status=400),
        EngineMisconfigured("key"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
