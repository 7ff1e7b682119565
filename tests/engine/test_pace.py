"""One gate per endpoint: places, minutes, holds and turns, by a clock that the tests move."""

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.batch.pace import Limits, Pace
from engine.batch.width import RESTART, Width
from engine.batch.window import MINUTE_S, TRANSIT_S
from engine.errors import EngineUnavailable
from engine.load import Load, read_load
from engine.profile import RateTier


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def tier(max_in_flight=4, **limits):
    return RateTier(name="t", max_in_flight=max_in_flight, **limits)


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


class Call:
    """A call in a task of its own: in its place until it is let go."""

    def __init__(self, pace, name=None, tokens=1, priority=0, log=None):
        self.pace, self.name, self.log = pace, name, [] if log is None else log
        self.end = asyncio.Event()
        self.place = None
        self.error = None
        self.task = asyncio.create_task(self._go(tokens, priority))

    async def _go(self, tokens, priority):
        async with self.pace.place(tokens, priority) as place:
            self.place = place
            self.log.append(self.name)
            await self.end.wait()
            if self.error is not None:
                raise self.error

    @property
    def is_out(self):
        return self.place is not None

    async def finish(self, error=None):
        self.error = error
        self.end.set()
        await asyncio.gather(self.task, return_exceptions=True)
        await settle()


def test_places_are_given_by_priority_and_then_arrival_when_all_are_taken():
    async def go():
        pace, log = Pace(tier(1)), []
        first = Call(pace, "first", log=log)
        await settle()
        calls = [
            Call(pace, name, priority=priority, log=log)
            for name, priority in (("late", 7), ("a", 2), ("b", 2), ("early", 1))
        ]
        await settle()
        assert log == ["first"]
        for call in (first, calls[3], calls[1], calls[2], calls[0]):
            await call.finish()
        assert log == ["first", "early", "a", "b", "late"]

    asyncio.run(go())


def test_place_goes_to_the_next_when_the_first_that_waits_gives_up():
    async def go():
        pace, log = Pace(tier(1)), []
        holder = Call(pace, "holder", log=log)
        await settle()
        gone, next_one = Call(pace, "gone", log=log), Call(pace, "next", log=log)
        await settle()
        gone.task.cancel()
        await holder.finish()
        assert log == ["holder", "next"]
        await next_one.finish()

    asyncio.run(go())


def test_place_is_not_lost_when_who_got_it_is_cancelled_before_it_wakes():
    async def go():
        pace, log = Pace(tier(1)), []
        holder = Call(pace, "holder", log=log)
        await settle()
        given, next_one = Call(pace, "given", log=log), Call(pace, "next", log=log)
        await settle()
        holder.end.set()
        while holder.task.done() is False:
            await asyncio.sleep(0)
        given.task.cancel()
        await settle()
        assert log == ["holder", "next"]
        await next_one.finish()

    asyncio.run(go())


def test_all_places_are_used_by_all_loops_when_threads_share_a_gate():
    pace = Pace(tier(5))
    lock, now, most, done = threading.Lock(), [0], [0], []

    async def call(number):
        async with pace.place(1, number):
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            await asyncio.sleep(random.random() / 200)
            with lock:
                now[0] -= 1
                done.append(number)

    async def loop():
        await asyncio.gather(*(call(number) for number in range(150)))

    with ThreadPoolExecutor(4) as threads:
        for future in [threads.submit(asyncio.run, loop()) for _ in range(4)]:
            future.result(timeout=30)
    assert (most[0], len(done)) == (5, 600)


def test_others_go_on_when_a_loop_ends_with_calls_that_wait_for_the_clock():
    pace = Pace(tier(9, requests_per_minute=1), minute_s=0.2)

    async def call():
        async with pace.place(1) as place:
            place.sending(1)
            place.heard(200)

    async def given_up():
        await call()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.gather(call(), call()), 0.01)

    async def all_of_them():
        waiting = asyncio.create_task(call())
        await asyncio.to_thread(asyncio.run, given_up())
        await waiting

    asyncio.run(all_of_them())


@pytest.mark.parametrize(
    ("waits_s", "free_after_s"), [(0.1, 0.1), (TRANSIT_S + 3, TRANSIT_S)], ids=["heard", "silent"]
)
def test_slot_is_free_a_minute_after_the_host_had_the_call_at_the_latest(waits_s, free_after_s):
    async def go():
        clock = Clock()
        pace = Pace(tier(9, requests_per_minute=1), clock=clock)
        first = Call(pace)
        await settle()
        clock.now += 7  # no connection yet
        first.place.sending(0)
        sent = clock.now
        clock.now += waits_s
        first.place.heard(200)
        await first.finish()
        second = Call(pace)
        for at, is_out in (
            (MINUTE_S + free_after_s - 0.001, False),
            (MINUTE_S + free_after_s + 1e-6, True),
        ):
            clock.now = sent + at
            pace._tick()
            await settle()
            assert second.is_out == is_out
        await second.finish()

    asyncio.run(go())


def test_slot_waits_for_a_large_body_when_it_is_sent_in_pieces():
    async def go():
        clock = Clock()
        pace = Pace(tier(9, requests_per_minute=1), clock=clock)
        first = Call(pace)
        await settle()
        for _ in range(4):
            first.place.sending(1_000_000)
            clock.now += 1
        sent = clock.now - 1
        second = Call(pace)
        for at, is_out in ((4 + TRANSIT_S - 0.01, False), (4 + TRANSIT_S, True)):
            clock.now = sent + MINUTE_S + at
            pace._tick()
            await settle()
            assert second.is_out == is_out
        await first.finish()
        await second.finish()

    asyncio.run(go())


def test_slot_comes_back_at_once_when_the_call_was_not_sent():
    async def go():
        pace = Pace(tier(9, requests_per_minute=1, tokens_per_minute=10), clock=Clock())
        async with pace.place(10) as place:
            place.withdraw()
        async with asyncio.timeout(1), pace.place(10):
            pass

    asyncio.run(go())


def test_larger_call_is_not_passed_over_when_smaller_ones_would_fit():
    async def go():
        clock = Clock()
        pace = Pace(tier(9, tokens_per_minute=100), clock=clock)
        first = Call(pace, tokens=60)
        await settle()
        first.place.sending(0)
        large, small = Call(pace, tokens=80), Call(pace, tokens=10, priority=1)
        await settle()
        assert not large.is_out
        assert not small.is_out
        clock.now += MINUTE_S + TRANSIT_S
        pace._tick()
        await settle()
        assert large.is_out
        assert small.is_out
        for call in (first, large, small):
            await call.finish()

    asyncio.run(go())


def test_call_beyond_the_limit_goes_out_alone_and_beyond_a_slice_not_at_all():
    async def go():
        clock = Clock()
        pace = Pace(tier(9, tokens_per_minute=100), clock=clock)
        pace.allow(Limits(max_in_flight=5, tokens_per_minute=50))
        call = Call(pace, tokens=120)
        await settle()
        assert not call.is_out
        assert pace.waiting_tokens == 120
        pace.allow(pace.tier)
        await settle()
        assert call.is_out
        await call.finish()

    asyncio.run(go())


def test_nothing_goes_out_when_a_slice_has_run_out():
    async def go():
        clock = Clock()
        pace = Pace(tier(9), clock=clock)
        pace.allow(Limits(max_in_flight=5), valid_until_s=clock.now + 10)
        clock.now += 10
        call = Call(pace)
        await settle()
        assert not call.is_out
        pace.allow(Limits(max_in_flight=5), valid_until_s=clock.now + 10)
        await settle()
        assert call.is_out
        await call.finish()

    asyncio.run(go())


def test_what_is_used_is_told_when_a_slice_is_to_be_given_up():
    async def go():
        clock = Clock()
        pace = Pace(tier(4, requests_per_minute=10, tokens_per_minute=100), clock=clock)
        calls = [Call(pace, tokens=20) for _ in range(3)]
        await settle()
        assert pace.used == Limits(max_in_flight=3, requests_per_minute=3, tokens_per_minute=60)
        for call in calls:
            call.place.sending(0)
            await call.finish()
        assert pace.used == Limits(max_in_flight=0, requests_per_minute=3, tokens_per_minute=60)
        clock.now += MINUTE_S + TRANSIT_S
        assert pace.used == Limits(max_in_flight=0, requests_per_minute=0, tokens_per_minute=0)

    asyncio.run(go())


def test_place_is_kept_for_a_moment_when_we_broke_the_call_off():
    async def go():
        clock = Clock()
        pace = Pace(tier(1), clock=clock)
        first = Call(pace)
        await settle()
        await first.finish(EngineUnavailable("cut"))
        second = Call(pace)
        await settle()
        assert not second.is_out
        clock.now += TRANSIT_S
        pace._tick()
        await settle()
        assert second.is_out
        await second.finish(EngineUnavailable("busy", status=429))
        async with asyncio.timeout(1), pace.place(1):
            pass

    asyncio.run(go())


def test_calls_ramp_up_when_a_retry_after_is_over():
    async def go():
        clock = Clock()
        pace = Pace(tier(32), clock=clock)
        calls = [Call(pace) for _ in range(32)]
        await settle()
        for call in calls:
            call.place.refused(10.0)
        for call in calls:
            await call.finish(EngineUnavailable("busy", status=429))
        calls = [Call(pace) for _ in range(32)]
        await settle()
        assert not any(call.is_out for call in calls)
        clock.now += 10
        pace._tick()
        await settle()
        out = [call for call in calls if call.is_out]
        assert 1 <= len(out) <= RESTART * 32
        for call in out:
            call.place.heard(200)
        await settle()
        assert sum(call.is_out for call in calls) == 2 * len(out)
        for call in calls:
            await call.finish()

    asyncio.run(go())


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


def test_gate_needs_no_task_nor_timer_when_nobody_waits():
    async def go():
        pace = Pace(tier(4, requests_per_minute=1_000_000))
        for _ in range(100):
            before = len(asyncio.all_tasks())
            async with pace.place(1) as place:
                place.sending(1)
                place.heard(200)
            assert len(asyncio.all_tasks()) == before
        assert not pace._waiters
        assert pace._timer is None

    asyncio.run(go())
