"""Requests that share a prefix go to the same one of several servers, and to others when it is down."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from engine.batch import BreakerRule, RetryRule, route_to, run
from engine.batch.breaker import Breaker
from engine.batch.replicas import Replicas
from engine.endpoint import open_endpoint, replicas_of
from engine.errors import EngineMisconfigured
from engine.profile import Profile, profile_for_url
from tests.engine.test_batch import request
from tests.fakes.engine_server import FakeEngine, Fault

ADDRESSES = ["http://a/v1", "http://b/v1", "http://c/v1"]


def profile_of(*engines: FakeEngine) -> Profile:
    first = profile_for_url(engines[0].url)
    return first.model_copy(update={"replicas": tuple(engine.url for engine in engines[1:])})


def send(engines, requests, *, notes=None):
    endpoint = open_endpoint(
        profile_of(*engines),
        venv=Path("none"),
        cache=Path("none"),
        environment={},
        api_key=None,
        notify=print,
    )
    replicas = replicas_of(endpoint, (notes if notes is not None else []).append)

    async def collect():
        async def source():
            for item in requests:
                yield item

        route = route_to(endpoint, replicas=replicas)
        batch = run(source(), route, retry=RetryRule(first_delay_s=0.0, max_attempts=2))
        return [result async for result in batch]

    return asyncio.run(collect())


def test_a_prefix_stays_with_its_server_in_every_process():
    first, second = Replicas(ADDRESSES), Replicas(ADDRESSES)
    for number in range(100):
        with first.place(f"prefix {number}") as one, second.place(f"prefix {number}") as other:
            assert one == other
            assert sorted(one) == [0, 1, 2]


def test_few_prefixes_move_when_a_server_is_added():
    before, after = Replicas(ADDRESSES[:2]), Replicas(ADDRESSES)
    moved = 0
    for number in range(300):
        with before.place(f"prefix {number}") as one, after.place(f"prefix {number}") as other:
            assert other[0] in {one[0], 2}
            moved += other[0] == 2
    assert 60 < moved < 140


def test_no_server_has_much_more_than_its_share_when_many_are_under_way():
    replicas = Replicas(ADDRESSES)
    with ExitStack() as stack:
        order = [stack.enter_context(replicas.place(f"prefix {number}")) for number in range(90)]
        assert max(Counter(one[0] for one in order).values()) <= 38
        # Also one that is full keeps the prefixes that it has.
        again = [stack.enter_context(replicas.place(f"prefix {number}")) for number in range(90)]
        assert [one[0] for one in again] == [one[0] for one in order]


def test_requests_about_one_chunk_meet_at_one_server():
    with FakeEngine() as a, FakeEngine() as b, FakeEngine() as c:
        requests = [
            request(3 * chunk + question, affinity=f"chunk {chunk}", material=f"chunk {chunk}\n")
            for chunk in range(40)
            for question in range(3)
        ]
        results = send([a, b, c], requests)
        assert {result.outcome for result in results} == {"succeeded"}
        met = defaultdict(set)
        for number, engine in enumerate((a, b, c)):
            assert engine.calls
            for call in engine.calls:
                met[call["messages"][1]["content"].partition("\n")[0]].add(number)
        assert len(met) == 40
        assert all(len(servers) == 1 for servers in met.values())


def test_others_stand_in_when_a_server_is_down():
    broken = Fault(status=500)
    with FakeEngine(script=lambda *_: broken) as a, FakeEngine() as b:
        requests = [request(number, affinity=f"{number}") for number in range(30)]
        results = send([a, b], requests)
        assert {result.outcome for result in results} == {"succeeded"}
        assert len(b.calls) == 30
        # It is the pipeline's own engine all the same.
        assert {result.fallback for result in results} == {None}


def test_a_refused_request_is_not_sent_to_the_next_server():
    refused = Fault(status=422, body=b"no")
    with (
        FakeEngine(script=lambda *_: refused) as a,
        FakeEngine(script=lambda *_: refused) as b,
    ):
        (result,) = send([a, b], [request(1, affinity="x")])
        assert result.error_class == "request_rejected"
        assert len(a.calls) + len(b.calls) == 1


def test_a_server_that_is_down_at_the_start_is_told_and_kept():
    notes: list[str] = []
    with FakeEngine() as b:
        gone = b.url
    with FakeEngine() as a:
        served = profile_of(a).model_copy(update={"replicas": (gone,)})
        endpoint = open_endpoint(
            served, venv=None, cache=Path("none"), environment={}, api_key=None, notify=print
        )
        assert [one.base_url for one in replicas_of(endpoint, notes.append)] == [gone]
    assert f"replica {gone} does not answer" in notes[0]


def test_a_server_of_another_model_is_refused():
    with FakeEngine() as a, FakeEngine(max_model_len=100) as b:
        endpoint = open_endpoint(
            profile_of(a, b), venv=None, cache=Path("none"), environment={}, api_key=None,
            notify=print,
        )  # fmt: skip
        with pytest.raises(EngineMisconfigured, match="replicas must be alike"):
            replicas_of(endpoint, print)
        other = replace(endpoint, model="other")
        with pytest.raises(EngineMisconfigured, match="replicas must be alike"):
            replicas_of(other, print)


@pytest.mark.parametrize(
    ("base_url", "replicas", "problem"),
    [
        (None, ["http://b/v1"], "name the first server"),
        ("http://a/v1", ["http://a/v1"], "each address once"),
        ("http://a/v1", ["http://b/v1", "http://b/v1"], "each address once"),
        ("http://a/v1", ["http://me:secret@b/v1"], "a key belongs into the environment"),
    ],
)
def test_replicas_are_checked_when_a_profile_is_read(base_url, replicas, problem):
    with pytest.raises(ValidationError, match=problem):
        Profile(name="x", base_url=base_url, replicas=replicas, modes={})


def test_a_request_goes_to_the_next_server_at_once_when_a_circuit_is_open():
    broken = Fault(status=500)
    with FakeEngine(script=lambda *_: broken) as a, FakeEngine() as b:
        endpoint = open_endpoint(
            profile_of(a, b), venv=None, cache=Path("none"), environment={}, api_key=None,
            notify=print,
        )  # fmt: skip
        route = route_to(endpoint, replicas=replicas_of(endpoint, print))
        for _ in range(8):
            route.lines[0].breaker.failed("down")

        async def collect():
            async def source():
                for number in range(20):
                    yield request(number, affinity=f"{number}")

            # With these delays a request that tried its server again would take a minute.
            batch = run(source(), route, retry=RetryRule(first_delay_s=30.0))
            async with asyncio.timeout(20):
                return [result async for result in batch]

        results = asyncio.run(collect())
        assert {result.outcome for result in results} == {"succeeded"}
        assert len(b.calls) >= 19


def test_requests_wait_for_a_server_that_comes_back_when_the_other_one_is_gone():
    with FakeEngine() as a, FakeEngine() as b:
        endpoint = open_endpoint(
            profile_of(a, b), venv=None, cache=Path("none"), environment={}, api_key=None,
            notify=print,
        )  # fmt: skip
        rule = BreakerRule(first_open_s=0.5, max_open_s=60.0, give_up_s=600.0)
        route = route_to(endpoint, replicas=replicas_of(endpoint, print), rule=rule)
        now = [0.0]
        # The second one has been down for longer than anybody waits.
        gone = Breaker(BreakerRule(first_open_s=1e6, give_up_s=300.0), clock=lambda: now[0])
        lines = [route.lines[0], replace(route.lines[1], breaker=gone)]
        route = replace(route, lines=lines)
        for _ in range(8):
            route.lines[0].breaker.failed("restarting")
            gone.failed("gone")
        now[0] = 400.0
        assert gone.look() == "give_up"

        async def collect():
            async def source():
                for number in range(10):
                    yield request(number, affinity=f"{number}")

            return [result async for result in run(source(), route)]

        assert {result.outcome for result in asyncio.run(collect())} == {"succeeded"}
        assert len(a.calls) == 10
        assert not b.calls
