"""A swarm beside one agent on the same items, at the same latencies of model and tools.

`python -m benchmarks.swarm_speedup [--items 10,40,100] [--probes 5] [--latency 1.0] [--repeats 1]`. A scripted
model (a process of its own) takes the same time for each turn; each item takes some probes, one after the other.
One agent works off all items; a swarm gives each to a sub-agent, all at once. `speedup` is the time of the one
over that of the other. `bound` is the time that the swarm's critical path takes if nothing but model and tools
takes any: turns of the orchestrator, and of the slowest sub-agent where it waits, each at the latency, and
`of_bound` is how much of it was reached. Answers are checked: both have the value of every item.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.machine import ROOT, machine, show
from engine.batch import run
from engine.batch.route import route_to
from engine.endpoint import open_endpoint
from engine.modes.mode import Workshop
from engine.profile import Capabilities, ModeSettings, Profile
from engine.request import AgentLimits, ModeName, Request, Result
from tests.fakes.agent_worlds import TABLE, Items

_TOOL_S = 0.05


def main() -> None:
    """Run both ways for each number of items, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", default="10,40,100")
    parser.add_argument("--probes", type=int, default=5, help="per item, one after the other")
    parser.add_argument("--latency", type=float, default=1.0, help="seconds per turn of the model")
    parser.add_argument("--repeats", type=int, default=1)
    asked = parser.parse_args()
    measured_on = machine()
    rows = []
    for number in map(int, asked.items.split(",")):
        once = [_compare(number, asked.probes, asked.latency) for _ in range(asked.repeats)]
        rows.append({key: statistics.median(one[key] for one in once) for key in once[0]})
    show(
        "swarm_speedup",
        measured_on,
        {"latency_s": asked.latency, "tool_s": _TOOL_S, "probes": asked.probes},
        rows,
    )


def _compare(number: int, probes: int, latency_s: float) -> dict[str, float]:
    world = Items(num_items=number, parts=probes, delay_s=_TOOL_S)
    alone_s, _ = _timed("wide", {"parts": probes}, latency_s, world, "agent", number)
    options = {"parts": probes, "width": number}
    swarm_s, swarm = _timed("swarm", options, latency_s, world, "swarm", number)
    assert swarm.work is not None
    # Each item takes one probe after the other, whoever makes them.
    bound_s = swarm.work.critical_steps * latency_s + probes * _TOOL_S
    return {
        "sub-agents": float(swarm.work.num_subagents),
        "one_agent_s": alone_s,
        "swarm_s": swarm_s,
        "speedup": alone_s / swarm_s,
        "steps": float(swarm.work.num_steps),
        "critical_steps": float(swarm.work.critical_steps),
        "bound_s": bound_s,
        "of_bound": bound_s / swarm_s,
    }


def _timed(  # noqa: PLR0917 - one arm
    script: str,
    options: dict[str, int],
    latency_s: float,
    world: Items,
    mode: ModeName,
    number: int,
) -> tuple[float, Result]:
    """Return the seconds of one request, and its result.

    Raises:
        SystemExit: Its answer is wrong.
    """
    with _serving(script, options, latency_s) as url:
        started = time.monotonic()
        (result,) = asyncio.run(_carry_out(url, world, mode, number))
        seconds = time.monotonic() - started
    found = {row["item"]: row["value"] for row in (result.output or {}).get("rows", ())}
    if found != world.values:
        raise SystemExit(f"{mode} with {number} items: {result.error or 'a wrong answer'}")
    return seconds, result


async def _carry_out(url: str, world: Items, mode: ModeName, number: int) -> list[Result]:
    profile = Profile(
        name="scripted",
        base_url=url,
        context_tokens=262_144,
        max_in_flight=2 * number,
        capabilities=Capabilities(tools=True, structured_output=True),
        modes={"instant": ModeSettings(wire={"chat_template_kwargs": {"thinking": False}})},
    )
    endpoint = open_endpoint(
        profile,
        venv=ROOT / ".venv-engine",
        cache=Path("no-cache"),
        environment={},
        api_key=None,
        notify=_silent,
    )
    request = Request(
        request_key=mode,
        stage="search",
        mode=mode,
        instructions="",
        material="",
        question=world.question,
        schema=TABLE,
        max_output_tokens=8_000,
        limits=AgentLimits(max_steps=5_000, max_calls=5_000, max_subagents=number),
    )

    async def source() -> AsyncIterator[Request]:
        yield request

    batch = run(source(), route_to(endpoint), workshop=Workshop(tools=lambda _: world))
    return [result async for result in batch]


def _silent(_line: str) -> None:
    """Say nothing."""


@contextmanager
def _serving(script: str, options: dict[str, int], latency_s: float) -> Iterator[str]:
    command: Sequence[str] = [
        sys.executable,
        "-m",
        "tests.fakes.agent_server",
        *("--script", script, "--options", json.dumps(options), "--latency-s", str(latency_s)),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.kill()


if __name__ == "__main__":
    main()
