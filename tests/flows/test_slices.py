"""A tier is kept by all workers together: counted at the server, while they join, leave and are killed."""

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from connectors.storage import LocalStorage
from engine.batch import Limits
from engine.profile import RateTier, profile_for_url
from flows.run.core import run_job
from flows.run.job import Options, make_job
from flows.run.slices import SLICES, Slices, fair_parts
from tests.fakes.engine_server import FakeEngine, Fault
from tests.flows.slice_worker import LEASE_S, MINUTE_S, line_to

ROOT = Path(__file__).resolve().parent.parent.parent
TIER = RateTier(name="t", max_in_flight=7, requests_per_minute=60, tokens_per_minute=1000)


class Counting(FakeEngine):
    """Takes down when each call arrived and how many tokens it may take."""

    def __init__(self):
        super().__init__(script=self._arrived)
        self.arrivals = []

    def _arrived(self, number, body):
        tokens = 2 * body["max_tokens"]
        self.arrivals.append((time.monotonic(), tokens))
        return Fault(hang_s=0.02 + number % 7 * 0.02)

    def busiest_minute(self):
        """Return the most calls and the most tokens of any minute."""
        calls, tokens, begin, now = 0, 0, 0, 0
        arrivals = sorted(self.arrivals)
        for end, (at, num) in enumerate(arrivals):
            now += num
            while arrivals[begin][0] <= at - MINUTE_S:
                now -= arrivals[begin][1]
                begin += 1
            calls, tokens = max(calls, end - begin + 1), max(tokens, now)
        return calls, tokens


def worker(sink, engine, seconds, tokens=8):
    argv = [str(sink), engine.url, TIER.model_dump_json(), str(seconds), str(tokens)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.flows.slice_worker", *argv],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def answered(process):
    out, _ = process.communicate(timeout=50)
    assert process.returncode == 0
    return json.loads(out)["answered"]


@pytest.mark.parametrize("tokens", [2, 8], ids=["calls", "tokens"])
def test_tier_is_never_exceeded_when_workers_join_leave_and_are_killed(tmp_path, tokens):
    with Counting() as engine:
        first = worker(tmp_path, engine, 11, tokens)
        time.sleep(2.5)
        second, third = (worker(tmp_path, engine, seconds, tokens) for seconds in (4, 30))
        time.sleep(5)
        third.kill()
        assert answered(second) > 0
        fourth = worker(tmp_path, engine, 6, tokens)
        assert answered(first) > 0
        assert answered(fourth) > 0
        third.communicate()
        calls, used = engine.busiest_minute()
        assert engine.most_in_flight <= TIER.max_in_flight
        assert calls <= TIER.requests_per_minute
        assert used <= TIER.tokens_per_minute
        # All of it was in use when there was one worker.
        assert calls == TIER.requests_per_minute or used > 0.97 * TIER.tokens_per_minute


def joined(storage, engine, **options):
    options = {"run_id": "run", "lease_s": LEASE_S, "minute_s": MINUTE_S, **options}
    return Slices(storage, line_to(engine.url, TIER), **options)


def limits_in(storage):
    (file,) = storage.list(SLICES)
    return [one["limits"]["max_in_flight"] for one in json.loads(storage.find(file.path).data)]


class Puts(LocalStorage):
    def __init__(self, root):
        super().__init__(root)
        self.num_puts = 0

    def put_if_absent(self, path, data):
        self.num_puts += 1
        return super().put_if_absent(path, data)

    def put_if_match(self, path, data, etag):
        self.num_puts += 1
        return super().put_if_match(path, data, etag)


def test_worker_alone_has_everything_within_one_put(tmp_path, engine):
    storage = Puts(tmp_path)
    slices = joined(storage, engine, lease_s=600)
    with slices:
        assert storage.num_puts == 1
        assert limits_in(storage) == [7]
        assert slices._pace._limits == Limits.of(TIER)
    assert limits_in(storage) == []
    assert slices._pace._limits.is_nothing


def until(condition, limit_s=20.0):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_newcomer_gets_a_half_when_the_first_has_lowered_its_gate(tmp_path, engine):
    storage, told = LocalStorage(tmp_path), []
    first = joined(storage, engine)
    with first:
        with joined(storage, engine, notify=told.append) as second:
            (line,) = told
            assert "waiting for a slice" in line
            assert engine.url in line
            until(lambda: limits_in(storage) == [4, 3])
            until(lambda: second._pace._limits.max_in_flight == 3)
            assert first._pace._limits.max_in_flight == 4
        until(lambda: limits_in(storage) == [7])


def test_what_was_called_last_is_kept_from_others_when_a_worker_leaves(tmp_path, engine):
    storage = LocalStorage(tmp_path)

    async def call(pace):
        async with pace.place(100) as place:
            place.sending(10)

    with joined(storage, engine, lease_s=60) as first:
        for _ in range(2):
            asyncio.run(call(first._pace))
    with joined(storage, engine, lease_s=60) as second:
        limits = second._pace._limits
        assert limits.max_in_flight == 7
        assert (limits.requests_per_minute, limits.tokens_per_minute) == (58, 800)
        until(lambda: second._pace._limits.requests_per_minute == 60)


def test_slice_of_another_machine_is_free_a_lease_and_a_minute_after_its_last_sign(
    tmp_path, engine, monkeypatch
):
    storage = LocalStorage(tmp_path)
    silent = joined(storage, engine)
    elsewhere = replace(silent._mine.holder, machine="another", pid=1, pid_started="")
    silent._mine = replace(silent._mine, holder=elsewhere)
    silent._step()
    # Clocks of the machines are hours apart: nothing looks at them.
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() - 7200)
    started = time.monotonic()
    with joined(storage, engine) as second:
        assert second._pace._limits.is_nothing
        until(lambda: not second._pace._limits.is_nothing)
        assert time.monotonic() - started >= LEASE_S + MINUTE_S
        until(lambda: limits_in(storage) == [7])


def test_gate_shuts_by_itself_when_the_slice_cannot_be_renewed(tmp_path, engine):
    slices = joined(LocalStorage(tmp_path), engine)
    slices._step()
    pace = slices._pace

    async def call():
        async with asyncio.timeout(0.3), pace.place(1):
            pass

    asyncio.run(call())
    time.sleep(LEASE_S)
    with pytest.raises(TimeoutError):
        asyncio.run(call())


def test_run_takes_a_slice_and_gives_it_back_when_its_engine_has_a_tier(tmp_path, engine):
    (tmp_path / "in").mkdir()
    for number in range(5):
        (tmp_path / "in" / f"{number}.txt").write_text(f"Note {number}.")
    tier = RateTier(name="t", max_in_flight=2)
    profile = profile_for_url(engine.url).model_copy(
        update={"name": "host", "tiers": (tier,), "tier": "t"}
    )
    (tmp_path / "host.yaml").write_text(profile.model_dump_json())
    (tmp_path / "p.yaml").write_text(
        "name: p\nstages: [{name: kind, prompt: Which kind?, output: {kind: a|b}}]\n"
    )
    options = Options(
        source=str(tmp_path / "in"), sink=str(tmp_path / "lake"), engine=str(tmp_path / "host.yaml")
    )
    engine.latency_s = 0.05
    assert run_job(make_job(tmp_path / "p.yaml", options))["verdict"] == "complete"
    assert engine.most_in_flight == 2
    assert limits_in(LocalStorage(tmp_path / "lake")) == []


HALVES = [(50, 100, 1000), (50, 100, 1000)]


@pytest.mark.parametrize(
    ("whole", "needs", "parts"),
    [
        ((100, 200, 2000), [1, 1], HALVES),
        ((100, 200, 2000), [1000, 1], HALVES),
        # The first one's call would not fit a half.
        ((100, 200, 2000), [1001, 1], [(100, 200, 2000), (0, 0, 0)]),
        # A call that the tier itself does not hold waits for an empty minute of it all.
        ((100, 200, 2000), [1, 1, 9000], [(50, 100, 1000), (50, 100, 1000), (0, 0, 0)]),
        ((1, 3, None), [0, 0], [(1, 3, None), (0, 0, None)]),
        ((7, None, None), [0, 0, 0], [(3, None, None), (2, None, None), (2, None, None)]),
    ],
    ids=["even", "need fits", "need does not fit", "oversized", "one place", "uneven"],
)
def test_parts_are_equal_for_as_many_as_can_use_one(whole, needs, parts):
    def limits(values):
        return Limits(
            max_in_flight=values[0], requests_per_minute=values[1], tokens_per_minute=values[2]
        )

    found = fair_parts(limits(whole), needs)
    assert found == [limits(part) for part in parts]
