"""A worker on a shared tier, as a process: `python -m tests.flows.slice_worker SINK URL TIER SECONDS TOKENS`."""

import asyncio
import json
import sys
import time
from pathlib import Path

from connectors.storage import LocalStorage
from engine.batch import Line, Pace, Route, run
from engine.batch.breaker import Breaker
from engine.endpoint import open_endpoint
from engine.profile import RateTier, profile_for_url
from engine.request import Request
from flows.run.slices import Slices

MINUTE_S = 2.0
"""The minute of the tests, at the host and here."""
LEASE_S = 1.5


def line_to(url, tier):
    profile = profile_for_url(url).model_copy(
        update={"tiers": (tier,), "tier": tier.name, "max_in_flight": 10_000}
    )
    endpoint = open_endpoint(
        profile, venv=None, cache=Path("none"), environment={}, api_key=None, notify=lambda _: None
    )
    return Line(endpoint, Breaker(), Pace(profile.limits, minute_s=MINUTE_S + 0.02))


async def work(line, seconds, tokens):
    """Ask until the time is over, and return how many answers there were."""
    end = time.monotonic() + seconds

    async def source():
        number = 0
        while time.monotonic() < end:
            yield Request(
                request_key=str(number), stage="s", mode="instant", instructions="", material=f"{number}",
                question="?", schema={"type": "object", "properties": {}}, max_output_tokens=tokens,
                prompt_tokens=tokens,
            )  # fmt: skip
            number += 1

    results = [one async for one in run(source(), Route([line]))]
    assert {one.outcome for one in results} <= {"succeeded"}
    return len(results)


def main():
    sink, url, tier, seconds, tokens = sys.argv[1:]
    line = line_to(url, RateTier.model_validate_json(tier))
    slices = Slices(
        LocalStorage(Path(sink)), line, run_id=f"run-{time.monotonic_ns()}",
        lease_s=LEASE_S, minute_s=MINUTE_S + 0.6,
    )  # fmt: skip
    with slices:
        answered = asyncio.run(work(line, float(seconds), int(tokens)))
    sys.stdout.write(json.dumps({"answered": answered}))


if __name__ == "__main__":
    main()
