"""What one request costs this process: CPU and memory, beside the plain openai client.

`python -m benchmarks.client_cost [--requests 100000] [--peer-requests 20000]`. Every arm sends the same
bodies, 256 at a time, from a process of its own to the same fake engine. Headrace's arm is the whole of a
batch: order, pace, breaker, budget, the mode's verdict and the check against the schema; the peers only
parse the answer's JSON. The plain client rides on httpx; its aiohttp variant is there to tell how much of
the difference is the transport.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import fast_engine
from benchmarks.machine import ROOT, machine, show

IN_FLIGHT = 256
_MATERIAL = "".join(f"[L{n}] The quick brown fox jumps over line {n}.\n" for n in range(40))
_SCHEMA = {
    "type": "object",
    "properties": {"topic": {"type": "string", "enum": ["a", "b", "c"]}},
    "required": ["topic"],
    "additionalProperties": False,
}
_ARMS = (
    "headrace streamed",
    "headrace whole",
    "openai streamed",
    "openai whole",
    "openai-aiohttp whole",
)


def main() -> None:
    """Run the arms one after the other, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument(
        "--peer-requests", type=int, default=20_000, help="of the slower openai arms"
    )
    parser.add_argument("--arm", choices=_ARMS)
    parser.add_argument("--url")
    asked = parser.parse_args()
    if asked.arm:
        sys.stdout.write(json.dumps(_measure(asked.arm, asked.url, asked.requests)))
        return
    if asked.requests < 2 * IN_FLIGHT or asked.peer_requests < 2 * IN_FLIGHT:
        parser.error(f"at least {2 * IN_FLIGHT} requests, twice those in flight")
    measured_on = machine()
    with fast_engine.serving() as url:
        rows = [
            _in_process(
                arm, url, asked.requests if arm.startswith("headrace") else asked.peer_requests
            )
            for arm in _ARMS
        ]
    cpu = {row["arm"]: row["cpu_ms"] for row in rows}
    facts = {
        "in_flight": IN_FLIGHT,
        "cpu headrace streamed / openai streamed": cpu[_ARMS[0]] / cpu[_ARMS[2]],
        "cpu headrace streamed / openai whole": cpu[_ARMS[0]] / cpu[_ARMS[3]],
        "cpu headrace whole / openai whole": cpu[_ARMS[1]] / cpu[_ARMS[3]],
        "cpu headrace whole / openai-aiohttp whole": cpu[_ARMS[1]] / cpu[_ARMS[4]],
    }
    show("client_cost", measured_on, facts, rows)


def _in_process(arm: str, url: str, requests: int) -> dict[str, Any]:
    argv = [sys.executable, "-m", "benchmarks.client_cost", "--arm", arm, "--url", url]
    result = subprocess.run(
        [*argv, "--requests", str(requests)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return dict(json.loads(result.stdout))


def _measure(arm: str, url: str, requests: int) -> dict[str, Any]:
    who, how = arm.split()
    arms: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
        "headrace": _headrace,
        "openai": _openai,
        "openai-aiohttp": partial(_openai, over_aiohttp=True),
    }
    send = arms[who]
    marks: dict[int, float] = {}
    started: list[float] = []
    warm = max(IN_FLIGHT, requests // 20)

    def count(done: int) -> None:
        if done == warm:
            started.extend([_cpu_s(), time.monotonic()])
        if done in {warm, (warm + requests) // 2, requests}:
            marks[done] = _rss_mb()

    asyncio.run(send(url, requests, count, streamed=how == "streamed"))
    measured = requests - warm
    cpu_s, wall_s = _cpu_s() - started[0], time.monotonic() - started[1]
    early, half, end = marks.values()
    return {
        "arm": arm,
        "requests": requests,
        "cpu_ms": 1000 * cpu_s / measured,
        "requests_per_s": measured / wall_s,
        "rss_early_mb": early,
        "rss_half_mb": half,
        "rss_end_mb": end,
    }


async def _headrace(
    url: str, requests: int, count: Callable[[int], None], *, streamed: bool
) -> None:
    from engine.batch import run
    from engine.request import Request

    route = fast_engine.route(url, max_in_flight=IN_FLIGHT, streamed=streamed)

    async def asked() -> AsyncIterator[Request]:
        for number in range(requests):
            yield Request(
                request_key=str(number),
                stage="topic",
                mode="instant",
                instructions="Read.",
                material=f"{number}\n{_MATERIAL}",
                question="Which topic?",
                schema=_SCHEMA,
                max_output_tokens=16,
                prompt_tokens=500,
            )

    done = 0
    async for result in run(asked(), route, max_in_flight=IN_FLIGHT):
        assert result.outcome == "succeeded", result
        done += 1
        count(done)


async def _openai(
    url: str,
    requests: int,
    count: Callable[[int], None],
    *,
    streamed: bool,
    over_aiohttp: bool = False,
) -> None:
    from httpx2 import Limits
    from openai import AsyncOpenAI, DefaultAioHttpClient, DefaultAsyncHttpxClient

    # As many connections kept as there are requests in flight; its default keeps 100.
    kind = DefaultAioHttpClient if over_aiohttp else DefaultAsyncHttpxClient
    limits = Limits(max_connections=IN_FLIGHT, max_keepalive_connections=IN_FLIGHT)
    client = AsyncOpenAI(base_url=url, api_key="none", timeout=60, http_client=kind(limits=limits))
    done = 0
    todo = iter(range(requests))

    async def worker(one: Callable[[dict[str, Any]], Awaitable[str]]) -> None:
        nonlocal done
        for number in todo:
            text = await one(_body(number))
            assert json.loads(text)["topic"] == "b"
            done += 1
            count(done)

    async def whole(body: dict[str, Any]) -> str:
        answer = await client.chat.completions.create(**body)
        return str(answer.choices[0].message.content)

    async def stream(body: dict[str, Any]) -> str:
        events = await client.chat.completions.create(
            **body, stream=True, stream_options={"include_usage": True}
        )
        parts = [event.choices[0].delta.content or "" async for event in events if event.choices]
        return "".join(parts)

    await asyncio.gather(*(worker(stream if streamed else whole) for _ in range(IN_FLIGHT)))
    await client.close()


def _body(number: int) -> dict[str, Any]:
    return {
        "model": "fast",
        "messages": [
            {"role": "system", "content": "Read."},
            {"role": "user", "content": f"{number}\n{_MATERIAL}\nQuestion: Which topic?"},
        ],
        "max_tokens": 16,
        "temperature": 0.6,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "topic", "schema": _SCHEMA, "strict": True},
        },
    }


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 1e6


if __name__ == "__main__":
    main()
