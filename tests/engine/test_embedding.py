"""Vectors from a host: asked for within budget, pace and retries, and checked before they are believed."""

from __future__ import annotations

import asyncio
import re

import pytest
from aiohttp import web

from engine.batch import (
    BreakerRule,
    Budget,
    Caps,
    Embedder,
    RetryRule,
    line_of_vectors,
    num_dims,
    route_to,
    run,
)
from engine.batch.embedding import _PROBE_RULE
from engine.embeddings import read_vectors
from engine.errors import EngineMisconfigured, EngineUnavailable
from engine.modes.mode import Workshop
from engine.profile import EmbeddingRule, Prices, Profile, RateTier
from engine.status import status_error
from engine.steps import Embedded, MemoryLog
from engine.tool import ToolAnswer, ToolSpec
from tests.engine.agent_runs import agent_request, profile_of
from tests.engine.test_batch import AT_ONCE, endpoint_of
from tests.fakes.agent_script import ScriptedCall, ScriptedReply, Transcript
from tests.fakes.agent_server import AgentServer
from tests.fakes.embedding_server import NUM_DIMS, EmbeddingServer, vector_of

DONE = {"type": "object", "properties": {"ok": {"type": "string"}}, "required": ["ok"]}


class Calls:
    """An agent that calls the one tool once, and answers with what it gave."""

    def reply(self, body):
        sent = Transcript(body)
        if sent.tools and not sent.calls:
            return ScriptedReply(calls=[ScriptedCall("embed", {})])
        return ScriptedReply(content=f'{{"ok": "{sent.results[-1]}"}}', reasoning="Done.")


class Embeds:
    """The tool: has some texts made into vectors, and keeps those."""

    specs = (ToolSpec(name="embed", description="Embeds.", parameters={"type": "object"}),)

    def __init__(self, texts):
        self.texts = texts
        self.vectors = None

    async def call(self, _name, _arguments, aside):
        self.vectors = await aside.embed(self.texts)
        return ToolAnswer(text=f"{len(self.vectors)} vectors")


def host_profile(host, **facts):
    known = {"context_tokens": 8192, "modes": {}, "embeddings": EmbeddingRule(), **facts}
    return Profile(name="vectors", base_url=host.url, **known)


def embed(
    agents,
    host,
    texts,
    *,
    profile=None,
    retry=AT_ONCE,
    rule=None,
    budget=None,
    num_dims=NUM_DIMS,
    fallback=(),
    tool=Embeds,
):
    """Return what became of one agent's request, the tool, and the events on record."""
    endpoint = endpoint_of(None, profile or host_profile(host))
    line = line_of_vectors(endpoint, rule=rule)
    tool, log = tool(texts), MemoryLog()
    workshop = Workshop(tools=lambda _: tool, steps=log.of)

    async def requests():
        yield agent_request("Embed it.", DONE)

    async def collect():
        batch = run(
            requests(),
            route_to(*(endpoint_of(None, profile_of(one)) for one in (agents, *fallback))),
            retry=retry,
            budget=budget,
            workshop=workshop,
            embedder=Embedder(line=line, num_dims=num_dims),
        )
        return [one async for one in batch]

    with endpoint:
        (result,) = asyncio.run(collect())
    events = [event for found in log._events.values() for event in found]
    return result, tool, [event for event in events if isinstance(event, Embedded)]


TEXTS = ["a hotel night", "lodging overnight", "the pump"]


@pytest.fixture
def agents():
    with AgentServer(Calls()) as server:
        yield server


def test_vectors_come_in_the_order_of_the_texts_with_what_they_took(agents):
    prices = Prices(input_usd=1e6, cached_input_usd=0, output_usd=0)
    with EmbeddingServer(fault=lambda *_: "shuffled") as host:
        result, tool, events = embed(agents, host, TEXTS, profile=host_profile(host, prices=prices))
    assert [list(one) for one in tool.vectors] == [
        pytest.approx(vector_of(text), abs=1e-6) for text in TEXTS
    ]
    (event,) = events
    assert (event.num_texts, event.usage.prompt_tokens, event.cost_usd) == (3, 7, 7.0)
    assert event.engine == "vectors"
    assert result.cost_usd == 7.0
    assert result.attempts == 3


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("nan", "not with the vectors of the 3 texts"),
        ("null", "not with the vectors of the 3 texts"),
        ("fewer", "2 vectors for 3 texts"),
        ("lengths", r"vectors of \[255, 256\] numbers"),
        ("error", "answered 500"),
        ("busy", "answered 429"),
        ("refused", "does not support Embeddings API"),
    ],
)
def test_request_fails_with_the_reason_where_the_host_gives_no_vectors(agents, fault, why):
    with EmbeddingServer(fault=lambda *_: fault) as host:
        result, tool, events = embed(agents, host, TEXTS)
    assert (result.outcome, result.error_class) == ("failed", "vectors_unavailable")
    assert re.search(why, result.error)
    assert "search.vectors: engine 'vectors': " in result.error
    assert len(host.calls) == (1 if fault == "refused" else AT_ONCE.max_attempts)
    assert tool.vectors is None
    assert not events


@pytest.mark.parametrize("fault", ["error", "refused"])
def test_no_other_engine_stands_in_for_the_agents_own_where_the_host_of_vectors_fails(
    agents, fault
):
    with AgentServer(Calls()) as other, EmbeddingServer(fault=lambda *_: fault) as host:
        result, _, _ = embed(agents, host, TEXTS, fallback=[other])
        assert not other.bodies
    assert (result.outcome, result.error_class) == ("failed", "vectors_unavailable")
    assert (result.engine, result.fallback) == ("scripted", None)
    assert "fallback" not in result.error


class Both(AgentServer):
    """Answers questions, and has no vectors."""

    def routes(self, router):
        super().routes(router)
        router.add_post("/v1/embeddings", self._fail)

    async def _fail(self, _request):
        return web.json_response({"error": {"message": "no memory"}}, status=500)


class Answers(Calls):
    """An agent that calls the one tool where it has it, and answers."""

    def reply(self, body):
        sent = Transcript(body)
        if sent.tools and not sent.calls:
            return super().reply(body)
        return ScriptedReply(content='{"ok": "yes"}')


def test_host_that_fails_for_vectors_is_asked_questions_as_before():
    rule = BreakerRule(max_failures=AT_ONCE.max_attempts)
    with Both(Answers()) as host, AgentServer(Answers()) as other:
        route = route_to(*(endpoint_of(None, profile_of(one)) for one in (host, other)), rule=rule)
        vectors = host_profile(host)
        line = line_of_vectors(endpoint_of(None, vectors), rule=rule, beside=route.lines)
        embedder = Embedder(line=line, num_dims=NUM_DIMS)

        def asked(request):
            async def requests():
                yield request

            async def collect():
                workshop = Workshop(tools=lambda _: Embeds(TEXTS))
                batch = run(requests(), route, retry=AT_ONCE, workshop=workshop, embedder=embedder)
                return [one async for one in batch]

            (result,) = asyncio.run(collect())
            return result

        assert asked(agent_request("Embed it.", DONE)).error_class == "vectors_unavailable"
        assert line.breaker.is_open
        result = asked(agent_request("Say it.", DONE, mode="instant"))
        assert (result.outcome, result.fallback) == ("succeeded", None)
        assert not other.bodies
    # The host's limits are for all of its calls.
    assert line.pace is route.lines[0].pace


def test_text_that_the_host_never_takes_is_told_without_advice_on_chunks(agents):
    with EmbeddingServer(max_tokens=0) as host:
        result, _, _ = embed(agents, host, TEXTS)
    assert (result.outcome, result.error_class) == ("failed", "vectors_unavailable")
    assert "maximum context length is 0" in result.error
    assert "chunk.max_tokens" not in result.error


def test_request_ends_where_the_circuit_of_vectors_is_open_for_good(agents):
    rule = BreakerRule(max_failures=2, first_open_s=0.05, max_open_s=0.05, give_up_s=0.1)
    with EmbeddingServer(fault=lambda *_: "error") as host:
        result, _, _ = embed(
            agents, host, TEXTS, rule=rule, retry=RetryRule(max_attempts=500, first_delay_s=0.0)
        )
    assert (result.outcome, result.error_class) == ("failed", "vectors_unavailable")
    assert "failed again and again and is left alone" in result.error


def test_texts_are_cut_further_where_the_host_counts_more_tokens(agents):
    with EmbeddingServer(max_tokens=80) as host:
        _, tool, _ = embed(
            agents, host, ["crane " * 900, "short"], profile=host_profile(host, context_tokens=300)
        )
    assert [len(call[0].split()) for call in host.calls] == sorted(
        (len(call[0].split()) for call in host.calls), reverse=True
    )
    assert {call[1] for call in host.calls} == {"short"}
    assert len(tool.vectors) == 2


@pytest.mark.parametrize(("num_words", "held"), [(900, 512), (900, 256), (20_000, 256)])
def test_texts_are_cut_until_a_host_of_unknown_context_takes_them(agents, num_words, held):
    text = "crane " * num_words
    with EmbeddingServer(max_tokens=held, is_tei=True) as host:
        unknown = host_profile(host, model="bge", listed=False, context_tokens=None)
        result, tool, events = embed(agents, host, [text, "short"], profile=unknown)
    assert result.outcome == "succeeded"
    assert len(tool.vectors) == 2
    (event,) = events
    assert held / 4 < event.usage.prompt_tokens - 1 <= held
    sent = [len(call[0]) for call in host.calls]
    assert sent == sorted(set(sent), reverse=True)


@pytest.mark.parametrize("context", [None, 8192])
def test_texts_are_cut_where_llama_cpp_has_a_batch_smaller_than_its_context(agents, context):
    text = "crane " * 900
    with EmbeddingServer(max_tokens=512, is_llama_cpp=True) as host:
        result, tool, (event,) = embed(
            agents, host, [text, "short"], profile=host_profile(host, context_tokens=context)
        )
    assert result.outcome == "succeeded"
    assert len(tool.vectors) == 2
    assert 128 < event.usage.prompt_tokens - 1 <= 512


def test_other_failure_that_speaks_of_a_batch_is_no_text_too_long():
    body = b'{"error": {"message": "out of memory: input is too large to process"}}'
    assert type(status_error(500, body, base_url="http://host/v1")) is EngineUnavailable


@pytest.mark.parametrize(("context", "held"), [(512, 512), (None, 32_768)])
def test_host_without_a_list_of_models_is_taken_where_the_profile_names_one(agents, context, held):
    with EmbeddingServer(is_tei=True) as host:
        named = host_profile(host, model="bge", listed=False, context_tokens=context)
        endpoint = endpoint_of(None, named)
        assert (endpoint.model, endpoint.context_tokens) == ("bge", held)
        result, tool, _ = embed(agents, host, TEXTS, profile=named)
    assert result.outcome == "succeeded"
    assert len(tool.vectors) == 3


@pytest.mark.parametrize("facts", [{"listed": False}, {"model": "bge"}])
def test_address_without_a_list_of_models_is_refused_where_the_profile_does_not_say_so(facts):
    with (
        EmbeddingServer(is_tei=True) as host,
        pytest.raises(EngineMisconfigured, match="answered 404"),
    ):
        endpoint_of(None, host_profile(host, **facts))


def test_half_of_a_pair_of_surrogates_is_replaced(agents):
    with EmbeddingServer() as host:
        result, _, _ = embed(agents, host, ["a \ud800 b"])
    assert result.outcome == "succeeded"
    assert host.texts == ["a ? b"]


def test_usage_is_estimated_where_the_host_tells_none(agents):
    with EmbeddingServer(tells_usage=False) as host:
        result, _, (event,) = embed(agents, host, TEXTS)
    assert event.usage.num_guessed == 1
    assert 7 <= event.usage.prompt_tokens <= 120
    assert result.usage.num_guessed == 1


def test_run_stops_where_the_host_has_another_model_meanwhile(agents):
    gave = r"vectors of 16 numbers, and gave 256"
    with EmbeddingServer(num_dims=16) as host, pytest.raises(EngineMisconfigured, match=gave):
        embed(agents, host, TEXTS)


def test_run_stops_where_the_host_refuses_the_key_meanwhile(agents):
    with (
        EmbeddingServer(api_key="another") as host,
        pytest.raises(EngineMisconfigured, match=r"answered 401: .*\(profile 'vectors'\)"),
    ):
        embed(agents, host, TEXTS)


def test_call_beyond_the_budget_is_not_sent(agents):
    budget = Budget(Caps(tokens=20_000))
    with EmbeddingServer() as host:
        result, _, _ = embed(agents, host, ["word " * 20_000] * 3, budget=budget)
    assert result.outcome == "over_budget"
    assert not host.calls


class EmbedsEach(Embeds):
    """The tool: has each text made into a vector by a call of its own, all at once."""

    async def call(self, _name, _arguments, aside):
        self.vectors = await asyncio.gather(*(aside.embed([text]) for text in self.texts))
        return ToolAnswer(text=f"{len(self.vectors)} vectors")


class Slow(EmbeddingServer):
    """Takes a while for each call, so that others come in between."""

    async def _answer(self, body, number):
        await asyncio.sleep(0.02)
        return await super()._answer(body, number)


def test_limits_of_a_tier_hold_for_vectors(agents):
    tier = RateTier(name="one", max_in_flight=1)
    texts = [f"text {number}" for number in range(6)]
    with Slow() as host:
        facts = host_profile(host, tiers=(tier,), tier="one")
        result, _, _ = embed(agents, host, texts, profile=facts, tool=EmbedsEach)
    assert result.outcome == "succeeded"
    assert sorted(host.texts) == texts
    assert host.most_at_once == 1


def test_number_of_dimensions_is_asked_for_again_where_the_host_is_busy():
    with EmbeddingServer(fault=lambda number, _: "busy" if number < 2 else None) as host:
        endpoint = endpoint_of(None, host_profile(host))
        assert num_dims(endpoint, AT_ONCE) == NUM_DIMS
    assert len(host.calls) == 3


def test_engine_that_does_not_answer_is_named_and_each_wait_for_it_is_told(caplog):
    with (
        EmbeddingServer(fault=lambda *_: "error") as host,
        pytest.raises(
            EngineUnavailable, match=r"^search.vectors: engine 'vectors': .* answered 500"
        ),
    ):
        num_dims(endpoint_of(None, host_profile(host)), AT_ONCE)
    waits = [one.getMessage() for one in caplog.records if "asked again in" in one.getMessage()]
    assert len(waits) == AT_ONCE.max_attempts - 1
    assert all("engine 'vectors'" in one and "answered 500" in one for one in waits)


def test_start_of_a_run_waits_little_more_than_a_minute_for_a_host_that_asks_for_an_hour():
    assert 60 <= _PROBE_RULE.delay_s(1, 3600.0) <= 75


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"data": [{"index": 0, "embedding": []}]}, "vectors of"),
        ({"data": [{"index": 1, "embedding": [1.0]}]}, "index 1"),
        ({"data": [{"index": True, "embedding": "AAAA"}]}, "index True"),
        ({"data": [{"embedding": [1e300]}]}, "finite"),
        ({"data": {}}, "0 vectors for 1"),
    ],
)
def test_answer_that_is_none_is_refused(data, why):
    with pytest.raises((ValueError, TypeError, OverflowError), match=why):
        read_vectors(data, 1)


def test_vectors_without_index_are_taken_in_their_order():
    found = read_vectors({"data": [{"embedding": [1.0]}, {"embedding": [2]}]}, 2)
    assert [list(one) for one in found.vectors] == [[1.0], [2.0]]
