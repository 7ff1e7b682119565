"""Three stages that build on one another, over more text than the engine's cache holds: in which order.

`python -m benchmarks.chunk_order [--documents 14] [--repeats 3] [--json FILE]` serves the embedded model with a
KV cache of 12,000 tokens. The first arm is a run of Headrace; the others send the same bodies through the openai
client and a semaphore, stage by stage over all chunks, and shuffled. Each has a cache salt of its own.
`prefilled_tokens` are the prompt tokens that the server computed; `unique` is what a cache without end would
leave to compute.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, show
from benchmarks.peer_cases import small_cache_profile
from benchmarks.plain_loop import send_all
from benchmarks.results import write_result
from benchmarks.run_against_loop import median, note, recorded, salted_profile, write_source
from config.load import load_profile
from flows.run.bench import open_engine
from flows.run.core import run_job
from flows.run.job import Options, make_job

_CHUNK_TOKENS = 3_000
_CHARS_PER_DOCUMENT = 9_500
"""About 2,900 tokens."""
_PIPELINE = f"""\
name: bench
documents_per_shard: 100
chunk: {{max_tokens: {_CHUNK_TOKENS}}}
stages:
  - name: kind
    prompt: What kind of text is this?
    output: {{kind: letter|report|table|article|other}}
    max_output_tokens: 24
  - name: topic
    needs: [kind]
    prompt: Which line says best what it is about?
    output: {{topic: line}}
    max_output_tokens: 24
  - name: asks
    needs: [topic]
    prompt: Does it tell the reader to do something, and in which line?
    output: {{asks: yes|no, what: line}}
    max_output_tokens: 32
"""


def main() -> None:
    """Run the arms, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=14)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    measured_on = machine()
    found: dict[str, list[Mapping[str, float]]] = {}
    unique = 0
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        write_source(folder / "source", asked.documents, _CHARS_PER_DOCUMENT)
        (folder / "bench.yaml").write_text(_PIPELINE, encoding="utf-8")
        with open_engine(str(small_cache_profile(folder)), notify=note) as endpoint:
            for number in range(asked.repeats):
                bodies, run, unique = _run(folder, endpoint.base_url, f"run-{number}")
                arms = {"headrace run": run}
                for arm, order in _orders(bodies, number).items():
                    arms[arm] = _loop(folder, endpoint.base_url, order, f"{arm} {number}")
                for arm, figures in arms.items():
                    found.setdefault(arm, []).append(figures)
                note(f"repeat {number + 1} of {asked.repeats}: {arms}")
    rows = [median(arm, figures) for arm, figures in found.items()]
    runs, by_stage = found["headrace run"], found["stage by stage"]
    facts = {
        "unique": unique,
        "prefilled by headrace / unique": _ratio(runs, [{"prefilled_tokens": unique}] * len(runs)),
        "prefilled by headrace / stage by stage": _ratio(runs, by_stage),
        "seconds of headrace / stage by stage": _ratio(runs, by_stage, "seconds"),
    }
    show("chunk_order", measured_on, facts, rows)
    if asked.json:
        write_result(asked.json, "chunk_order", measured_on, facts=facts, rows=rows)


def _run(
    folder: Path, url: str, salt: str
) -> tuple[list[dict[str, Any]], Mapping[str, float], int]:
    """Return the bodies in the order sent, the run's figures, and its unique tokens."""
    options = Options(
        source=str(folder / "source"),
        sink=str(folder / salt),
        engine=str(salted_profile(folder, url, salt)),
    )
    started = time.monotonic()
    with recorded() as bodies:
        manifest = run_job(make_job(folder / "bench.yaml", options))
    seconds = time.monotonic() - started
    stages = manifest["stages"].values()
    prompt = sum(stage["prompt_tokens"] for stage in stages)
    cached = sum(stage["cached_tokens"] for stage in stages)
    planned = sum(stage["planned_cached_tokens"] for stage in stages)
    return (
        bodies,
        {"prefilled_tokens": prompt - cached, "prompt_tokens": prompt, "seconds": seconds},
        prompt - planned,
    )


def _orders(bodies: Sequence[dict[str, Any]], seed: int) -> dict[str, list[dict[str, Any]]]:
    """Return the bodies in the orders of the other arms, each with the priority of its place."""
    by_stage: dict[str, list[dict[str, Any]]] = {}
    for body in bodies:
        by_stage.setdefault(_stage(body), []).append(body)
    shuffled = list(bodies)
    random.Random(seed).shuffle(shuffled)
    orders = {
        "stage by stage": [body for group in by_stage.values() for body in group],
        "shuffled": shuffled,
    }
    return {
        arm: [{**body, "priority": place} for place, body in enumerate(order)]
        for arm, order in orders.items()
    }


def _stage(body: Mapping[str, Any]) -> str:
    """Return what tells a stage's calls from others': its question."""
    return str(body["messages"][1]["content"]).rpartition("\nQuestion: ")[2]


def _loop(folder: Path, url: str, bodies: list[dict[str, Any]], salt: str) -> Mapping[str, float]:
    in_flight = load_profile("embedded").max_in_flight
    found = asyncio.run(send_all(url, in_flight, bodies, folder / f"{salt}.jsonl", salt=salt))
    prefilled = found["prompt"] - found["cached"]
    return {
        "prefilled_tokens": prefilled,
        "prompt_tokens": found["prompt"],
        "seconds": found["seconds"],
    }


def _ratio(
    first: Sequence[Mapping[str, float]],
    second: Sequence[Mapping[str, float]],
    key: str = "prefilled_tokens",
) -> float:
    """Return the median of the pairs' ratios."""
    return statistics.median(a[key] / b[key] for a, b in zip(first, second, strict=True))


if __name__ == "__main__":
    main()
