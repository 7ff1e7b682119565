"""What it costs to pay once: the ledger beside the same batch without it, and a plan of many objects.

`python -m benchmarks.pay_once [--requests 6400] [--objects 1000000] [--repeats 3]`. Calls take 200 ms and
64 are in flight. The arm with a ledger claims its shard, journals into a local sink with fsync, and
commits the answers; the other one only sends. Both run in turn, in this process.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from benchmarks import fast_engine
from benchmarks.machine import machine, show
from config.load import set_environment
from connectors.document import SourceRef
from connectors.sinks.lake import Lake
from engine.batch import Log, Route, run
from engine.request import Request, Result, content_key
from flows.run.assignments import Assignments
from flows.run.claims import Claims
from flows.run.ledger import Ledger
from flows.run.plan import Planner, SinkState

DELAY_S, IN_FLIGHT = 0.2, 64
_SCHEMA = {
    "type": "object",
    "properties": {"topic": {"type": "string", "enum": ["a", "b", "c"]}},
    "required": ["topic"],
    "additionalProperties": False,
}


def main() -> None:
    """Run both arms in turn, then plan."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=6400)
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    measured_on = machine()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        set_environment({"HEADRACE_STATE": f"{folder}/state"})
        with fast_engine.serving(DELAY_S) as url:
            route = fast_engine.route(url, max_in_flight=IN_FLIGHT, streamed=True)
            plain, paid = [], []
            for number in range(asked.repeats):
                plain.append(_plain(route, asked.requests))
                paid.append(_paid(route, asked.requests, Path(folder, f"lake-{number}")))
        first_s, all_s, num_shards = _plan(asked.objects, Path(folder, "plan"))
    rows.append({"arm": "batch", "requests": asked.requests, "wall_s": statistics.median(plain)})
    rows.append({"arm": "ledger", "requests": asked.requests, "wall_s": statistics.median(paid)})
    rows.append({
        "arm": "plan",
        "objects": asked.objects,
        "shards": num_shards,
        "first_shard_s": first_s,
        "wall_s": all_s,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    })
    ratio = statistics.median(b / a for a, b in zip(plain, paid, strict=True))
    show("pay_once", measured_on, {"wall ledger / batch": ratio}, rows)


async def _send(route: Route, requests: int, log: Log | None) -> list[Result]:
    async def asked() -> AsyncIterator[Request]:
        for number in range(requests):
            yield Request(
                request_key=content_key(number),
                stage="topic",
                mode="instant",
                instructions="Read.",
                material=f"[L1] Line {number}.\n" * 40,
                question="What is it?",
                schema=_SCHEMA,
                max_output_tokens=50,
                prompt_tokens=500,
            )

    return [result async for result in run(asked(), route, log=log)]


def _plain(route: Route, requests: int) -> float:
    started = time.monotonic()
    results = asyncio.run(_send(route, requests, None))
    assert len(results) == requests
    return time.monotonic() - started


def _paid(route: Route, requests: int, folder: Path) -> float:
    started = time.monotonic()
    lake = Lake(str(folder))
    with Claims(lake.storage, "run") as claims, claims.take("s00000", wait=False) as claim:
        ledger = Ledger(lake, "run", "new", claim, has_agents=False)

        async def work() -> list[Result]:
            flushing = asyncio.ensure_future(ledger.keep_flushing())
            try:
                return await _send(route, requests, ledger)
            finally:
                flushing.cancel()

        results = asyncio.run(work())
        ledger.save()
        ledger.commit({"document": results}, ())
        ledger.remove_journal()
    assert len(results) == requests
    return time.monotonic() - started


def _plan(objects: int, folder: Path) -> tuple[float, float, int]:
    """Return the seconds to the first shard and to the last, and the number of shards."""

    def listing() -> Iterator[SourceRef]:
        for number in range(objects):
            path = f"year=2026/part-{number // 1000:05d}/document-{number:08d}.pdf"
            yield SourceRef(
                uri=f"s3://lake/in/{path}", path=path, size_bytes=number, etag=f"{number:032x}"
            )

    started = time.monotonic()
    state = SinkState(
        assignments=Assignments(Lake(str(folder))), commits={}, open_shards=set(), work_key=""
    )
    shards = Planner(sources=listing(), state=state, documents_per_shard=16).shards()
    next(shards)
    first_s = time.monotonic() - started
    num_shards = 1 + sum(1 for _ in shards)
    return first_s, time.monotonic() - started, num_shards


if __name__ == "__main__":
    main()
