"""How near calls come to a host's limits, and that they break none: counted at the host.

`python -m benchmarks.pace_keeping [--seconds 240] [--burst-every 60]`. The host answers after random times and refuses all calls in
bursts, in turn with and without a Retry-After; a hidden limit is one that the client is not told and that the
host refuses beyond. All arms run at once, each with a host of its own and two shards in a process, or two
processes that share one tier by a sink. `used` is the mean of what was in flight, or was called in the host's
last minute, as a share of the limit that binds, outside bursts and from when the limit was reached first;
`violations` counts arrivals above any limit. The hidden limit has no violations but refusals.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.fast_engine import route_of
from benchmarks.limited_engine import Rules, arguments
from benchmarks.machine import ROOT, machine, show

if TYPE_CHECKING:
    from engine.batch import Route
    from engine.request import Request

NUM_SHARDS = 2
JOIN_S = 20.0
"""When the second of two processes begins."""
MOST_START_S = 120.0
"""How long the first process of an arm may load its modules; all arms do it at once."""
_ANSWER_TOKENS = 100
_SCHEMA = {"type": "object", "properties": {"topic": {"type": "string"}}, "required": ["topic"]}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One host with its clients."""

    name: str
    binds: str
    rules: Rules
    told: dict[str, int]
    """The limits that the clients know."""
    processes: int = 1


ARMS = (
    Arm(
        name="50 in flight",
        binds="in_flight",
        rules=Rules(max_in_flight=50, seed=1),
        told={"max_in_flight": 50},
    ),
    Arm(
        name="600 calls a minute",
        binds="calls",
        rules=Rules(max_in_flight=200, requests_per_minute=600, seed=2),
        told={"max_in_flight": 200, "requests_per_minute": 600},
    ),
    Arm(
        name="400,000 tokens a minute",
        binds="tokens",
        rules=Rules(max_in_flight=200, tokens_per_minute=400_000, seed=3),
        told={"max_in_flight": 200, "tokens_per_minute": 400_000},
    ),
    Arm(
        name="50 in flight, two processes",
        binds="in_flight",
        rules=Rules(max_in_flight=50, seed=4),
        told={"max_in_flight": 50},
        processes=2,
    ),
    Arm(
        name="600 calls a minute, two processes",
        binds="calls",
        rules=Rules(max_in_flight=200, requests_per_minute=600, seed=5),
        told={"max_in_flight": 200, "requests_per_minute": 600},
        processes=2,
    ),
    Arm(
        name="20 in flight, hidden",
        binds="in_flight",
        rules=Rules(max_in_flight=20, refuses=True, seed=6),
        told={"max_in_flight": 64},
    ),
)


def main() -> None:
    """Run all arms at once, and print what their hosts counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--burst-every", type=float, default=60.0, help="seconds, on average")
    parser.add_argument("--work", nargs=3, metavar=("URL", "LIMITS", "SINK"))
    asked = parser.parse_args()
    if asked.work:
        _work(*asked.work, seconds=asked.seconds)
        return
    measured_on = machine()
    with ThreadPoolExecutor(len(ARMS)) as threads:
        rows = list(threads.map(lambda arm: _measure(arm, asked.seconds, asked.burst_every), ARMS))
    facts = {"seconds": asked.seconds, "a burst every s": asked.burst_every}
    show("pace_keeping", measured_on, facts, rows)


def _measure(arm: Arm, seconds: float, burst_every_s: float) -> dict[str, Any]:
    with ExitStack() as stack:
        sink = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        rules = replace(arm.rules, burst_every_s=burst_every_s)
        host = subprocess.Popen(arguments(rules), cwd=ROOT, stdout=subprocess.PIPE, text=True)
        stack.callback(host.wait)
        stack.callback(host.kill)
        assert host.stdout is not None
        url = host.stdout.readline().strip()
        work = ["--work", url, json.dumps(arm.told), sink if arm.processes > 1 else ""]
        # They are killed before they end.
        argv = [
            sys.executable,
            "-m",
            "benchmarks.pace_keeping",
            f"--seconds={seconds + MOST_START_S}",
        ]
        for number in range(arm.processes):
            worker = subprocess.Popen([*argv, *work], cwd=ROOT)
            stack.callback(worker.wait)
            stack.callback(worker.kill)
            if number == 0:
                wait_for_calls(url, worker)
                end = time.monotonic() + seconds
            if number + 1 < arm.processes:
                time.sleep(min(JOIN_S, seconds / 4))
        time.sleep(max(0.0, end - time.monotonic()))
        found = _figures(url)
    return {
        "arm": arm.name,
        "used": found["used"][arm.binds],
        "violations": 0 if arm.rules.refuses else found["violations"],
        "calls": found["calls"],
        "refused": found["refused"],
        "bursts": found["bursts"],
    }


def _figures(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/figures") as answer:
        value = json.load(answer)
    assert isinstance(value, dict)
    return value


def wait_for_calls(url: str, worker: subprocess.Popen[bytes]) -> None:
    """Wait until a process has begun: to load its modules takes seconds on a busy machine.

    Raises:
        RuntimeError: It has ended, or has not begun for two minutes.
    """
    until = time.monotonic() + MOST_START_S
    while not _figures(url)["calls"]:
        if worker.poll() is not None:
            raise RuntimeError(
                f"the process that was to call {url} has ended with {worker.returncode}; it says why above"
            )
        if time.monotonic() > until:
            raise RuntimeError(f"no call has reached {url} in {MOST_START_S:g} s")
        time.sleep(0.1)


def _work(url: str, limits: str, sink: str, *, seconds: float) -> None:
    """Ask without end, in as many shards as a run has."""
    from connectors.storage import LocalStorage
    from flows.run.slices import Slices

    route = _route(url, json.loads(limits))
    with ExitStack() as stack:
        if sink:
            storage = LocalStorage(Path(sink))
            stack.enter_context(Slices(storage, route.lines[0], run_id=f"run-{time.time_ns()}"))
        numbers = itertools.count()
        shards = [
            threading.Thread(target=lambda: asyncio.run(_shard(route, numbers, seconds)))
            for _ in range(NUM_SHARDS)
        ]
        for shard in shards:
            shard.start()
        for shard in shards:
            shard.join()


async def _shard(route: Route, numbers: itertools.count[int], seconds: float) -> None:
    from engine.batch import run

    end = time.monotonic() + seconds

    async def source() -> AsyncIterator[Request]:
        while time.monotonic() < end:
            yield _request(next(numbers))

    async for result in run(source(), route):
        assert result.outcome == "succeeded", result


def _request(number: int) -> Request:
    from engine.request import Request

    tokens = random.Random(number).randint(500, 4000)
    return Request(
        request_key=str(number),
        stage="topic",
        mode="instant",
        instructions="Read.",
        material=f"{tokens} tokens",
        question="Which topic?",
        schema=_SCHEMA,
        max_output_tokens=_ANSWER_TOKENS,
        prompt_tokens=tokens,
        priority=number,
    )


def _route(url: str, limits: dict[str, int]) -> Route:
    from engine.profile import Capabilities, ModeSettings, Profile, RateTier

    profile = Profile(
        name="limited",
        base_url=url,
        max_in_flight=limits["max_in_flight"],
        tiers=(RateTier.model_validate({"name": "told", **limits}),),
        tier="told",
        capabilities=Capabilities(structured_output=True, stream=True),
        modes={"instant": ModeSettings()},
    )
    return route_of(profile)


if __name__ == "__main__":
    main()
