"""One gate per endpoint: places, minutes, holds and turns, by a clock that the tests move."""

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.batch.pace import Limits, Pace
from engine.batch.width import RESTART
from engine.batch.window import MINUTE_S, TRANSIT_S
from engine.errors import EngineUnavailable
from tests.engine.paced_calls import Call, Clock, settle, tier


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
