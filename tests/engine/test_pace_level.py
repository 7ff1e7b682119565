"""How many calls a gate lets out at once, by what the engine shows."""

import asyncio
import random

import pytest

from engine.batch.pace import Pace
from engine.batch.width import RESTART, Width
from engine.load import Load, read_load
from tests.engine.paced_calls import Call, Clock, settle, tier


class Host:
    """Calls that a `Width` lets out to a host with a limit of its own; each takes one step."""

    def __init__(self, limit, most=64):
        self.limit, self.most, self.now = limit, most, 0.0
        self.width = Width()
        self.num_refused = 0

    def step(self):
        """Send as many as may be, and answer them in the order in which they came."""
        calls = [self.width.sent(number + 1) for number in range(self.width.allowed(self.most))]
        self.now += 0.5
        for number, call in enumerate(calls):
            if number < self.limit:
                self.width.accepted(call, self.most, self.now)
            else:
                self.num_refused += 1
                self.width.refused(call, self.most, self.now)
        return min(len(calls), self.limit)


def test_level_is_what_was_in_flight_when_the_first_of_many_calls_arrives_last():
    async def go():
        pace = Pace(tier(64), clock=Clock())
        calls = [Call(pace) for _ in range(64)]
        await settle()
        calls[0].place.refused(None)
        assert pace._width.allowed(64) == int(0.7 * 64)
        for call in calls:
            await call.finish()

    asyncio.run(go())


def test_level_stays_near_a_limit_that_was_not_told():
    host = Host(limit=20)
    for _ in range(20):
        host.step()
    host.num_refused = 0
    served = [host.step() for _ in range(600)]
    assert sum(served) >= 0.98 * 600 * 20
    # Each look at the limit waits twice as long as the one before.
    assert 1 <= host.num_refused <= 10


def test_level_follows_when_a_limit_that_was_not_told_is_raised():
    host = Host(limit=20)
    for _ in range(100):
        host.step()
    host.limit = 64
    for _ in range(200):
        host.step()
    assert host.width.allowed(64) == 64


def test_level_is_lowered_once_when_a_round_is_refused():
    width = Width()
    calls = [width.sent(number + 1) for number in range(64)]
    for call in calls[:1]:
        width.accepted(call, 64, 0.0)
    for call in reversed(calls):
        width.refused(call, 64, 1.0)
    assert width.allowed(64) == int(0.7 * 64)


def test_level_is_never_below_one_and_never_above_the_limit():
    width, pick = Width(), random.Random(3)
    for number in range(5000):
        most = pick.choice([1, 7, 64])
        assert 1 <= width.allowed(most) <= most
        assert not width.has_room(most, most)
        call = width.sent(pick.randint(1, 64))
        kind = pick.randint(0, 9)
        if kind < 5:
            width.accepted(call, most, float(number))
        elif kind < 8:
            width.refused(call, most, float(number), pick.choice([None, 0.0, 3.0]))
        elif kind == 8:
            width.restart(most)
        else:
            load = Load(num_waiting=pick.randint(0, 1), cache_used=1.0, num_preemptions=number)
            width.loaded(load, most)
    assert width.allowed(0) == 0


def test_host_that_refuses_everything_is_asked_by_one_call_at_growing_distances():
    width, now, holds = Width(), 0.0, []
    for _ in range(3):
        for call in reversed([width.sent(number + 1) for number in range(64)]):
            width.refused(call, 64, now)
    width.refused(width.sent(21), 64, now)
    for number in range(31):
        # Calls that it took before are under way all the while.
        assert width.has_room(20, 64)
        call = width.sent(21)
        assert not width.has_room(21, 64), number
        holds.append(width.refused(call, 64, now))
        width.ended(call)
        now += holds[-1]
    assert holds[0] < 0.3
    assert holds == sorted(holds)
    assert holds[-1] == 5.0
    call = width.sent(21)
    width.accepted(call, 64, now)
    assert width.has_room(20, 64)
    assert width.has_room(20 + RESTART * 64 - 1, 64)
    assert not width.has_room(20 + RESTART * 64, 64)
    # All that there was before: it was not about how many there were.
    for _ in range(64):
        width.accepted(width.sent(width.allowed(64)), 64, now)
    assert width.allowed(64) == 64


def test_limit_that_was_not_told_is_still_known_when_the_host_refused_everything_for_a_while():
    host = Host(limit=20)
    for _ in range(100):
        host.step()
    width, level = host.width, host.width.allowed(64)
    assert level in {20, 21}
    for _ in range(5):
        host.now += width.refused(width.sent(level), 64, host.now)
    width.accepted(width.sent(1), 64, host.now)
    assert width.has_room(0, 64)
    for _ in range(5):
        host.step()
    assert host.width.allowed(64) in {20, 21}


@pytest.mark.parametrize("retry_after_s", [None, 1.0])
def test_level_is_soon_what_it_was_after_a_host_has_refused_a_few_times_in_a_row(retry_after_s):
    host = Host(limit=64, most=25)
    host.step()
    for _ in range(2):
        level = host.width.allowed(25)
        host.width.refused(host.width.sent(level), 25, host.now, retry_after_s)
    assert host.width.has_room(0, 25)
    assert host.width.allowed(25) < 13
    for _ in range(6):
        host.step()
    assert host.width.allowed(25) >= 22


def test_another_call_is_sent_to_see_when_the_one_that_was_has_broken_off():
    width = Width()
    for _ in range(4):
        width.refused(width.sent(1), 64, 0.0)
    call = width.sent(1)
    assert not width.has_room(1, 64)
    width.ended(call)
    assert width.has_room(0, 64)


def test_calls_begin_with_few_when_the_host_was_away():
    width = Width()
    width.restart(64)
    assert width.has_room(0, 64)
    assert width.allowed(64) == RESTART * 64
    for _ in range(48):
        width.accepted(width.sent(width.allowed(64)), 64, 0.0)
    assert width.allowed(64) == 64


def waits(width, seconds, most=64):
    """One round of calls that all wait so long for their first token."""
    for _ in range(width.allowed(most)):
        call = width.sent(width.allowed(most))
        width.ended(call, seconds)
        width.accepted(call, most, 0.0)


def test_level_is_lowered_when_the_first_token_comes_far_later_than_it_did():
    width = Width()
    for seconds in (0.5, 0.6, 2.0):
        waits(width, seconds)
        assert width.allowed(64) == 64
    levels = []
    for seconds in (30.0, 26.0, 22.0):
        waits(width, seconds)
        levels.append(width.allowed(64))
    assert levels == sorted(levels, reverse=True)
    assert levels[-1] < 0.8 * 64
    for _ in range(20):
        waits(width, 0.5)
    assert width.allowed(64) == 64


def test_level_is_raised_again_when_fewer_calls_do_not_shorten_the_wait():
    width = Width()
    waits(width, 0.5)
    for _ in range(40):
        waits(width, 30.0)
    assert width.allowed(64) == 64


BUSY = Load(num_waiting=3, cache_used=1.0, num_preemptions=0)
CALM = Load(num_waiting=0, cache_used=0.4, num_preemptions=0)


def test_level_follows_the_load_that_an_engine_tells():
    width = Width()
    width.loaded(CALM, 64)
    assert width.allowed(64) == 64
    width.loaded(BUSY, 64)
    low = width.allowed(64)
    assert low < 64
    # Answers alone raise nothing where the engine itself says how it is.
    waits(width, 0.5)
    assert width.allowed(64) == low
    for _ in range(10):
        width.loaded(CALM, 64)
    assert width.allowed(64) == 64
    width.loaded(Load(num_waiting=0, cache_used=0.5, num_preemptions=2), 64)
    assert width.allowed(64) < 64


METRICS = """\
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="1",model_name="m"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.975
vllm:num_preemptions_total{engine="0",model_name="m"} 4.0
vllm:num_preemptions_total{engine="1",model_name="m"} 0.0
"""


def test_load_is_read_of_all_engines_of_a_server():
    assert read_load(METRICS) == Load(num_waiting=3, cache_used=0.975, num_preemptions=4)
    assert read_load("") is None
    assert read_load("<html>{} 1</html>") is None
    assert read_load(METRICS.replace("0.25", "much")) is None
