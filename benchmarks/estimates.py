"""How near a plan comes to what its run takes: the shipped pipelines on the documents that come along.

`python -m benchmarks.estimates [--pilot 4]` runs each pipeline on the embedded engine, at made-up prices and a
made-up number of GPUs, and plans it twice before: with nothing known, and after a pilot on the first documents.
The pilot has a sink of its own, so that the run pays for all of its answers itself.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, machine, show
from benchmarks.results import write_result
from benchmarks.run_against_loop import note
from engine.profile import Throughput
from flows.cost import Rent, Turns, load_of, price
from flows.estimate import plan_on_engine
from flows.pilot import run_pilot
from flows.run.core import run_job
from flows.run.job import Job, Options, make_job
from flows.run.progress import Progress

_PRICES = {"input_usd": 0.6, "cached_input_usd": 0.1, "output_usd": 3.0}
"""Kimi K2.5's at Moonshot, in dollars a million tokens."""
_PACE = Throughput(prompt_tokens_per_s=9_977, output_tokens_per_s=486)
_RENT = Rent(gpu_hour_usd=3.5, gpus=8, throughput=_PACE)
_PIPELINES: Mapping[str, Path] = {
    "demo": ROOT / "config" / "demo_corpus",
    "faq": ROOT / "config" / "samples" / "faq",
    "log_tracing": ROOT / "config" / "samples" / "logs",
    "briefing": ROOT / "config" / "demo_corpus",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tokens:
    prompt: float
    cached: float
    output: float


def main() -> None:
    """Plan and run each pipeline, and print how far they are apart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pilot", type=int, default=4)
    parser.add_argument("--pipelines", nargs="+", choices=_PIPELINES, default=[*_PIPELINES])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    measured_on = machine()
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        for pipeline in asked.pipelines:
            rows.append(_row(Path(name), pipeline, asked.pilot))
            note(str(rows[-1]))
    facts = {"documents of the pilot": asked.pilot}
    show("estimates", measured_on, facts, rows)
    if asked.json:
        write_result(asked.json, "estimates", measured_on, facts=facts, rows=rows)


def _row(folder: Path, pipeline: str, num_pilot: int) -> dict[str, Any]:
    engine = _priced(folder)

    def job(sink: str) -> Job:
        options = Options(
            source=str(_PIPELINES[pipeline]), sink=str(folder / pipeline / sink), engine=str(engine)
        )
        return make_job(pipeline, options)

    before, profile = plan_on_engine(job("pilot"), sample=None, notify=note)
    run_pilot(job("pilot"), num_pilot, Progress(lambda _: None), note)
    after, _ = plan_on_engine(job("pilot"), sample=None, notify=note)
    stages = run_job(job("run"))["stages"]
    actual = _Tokens(
        prompt=sum(stage["prompt_tokens"] for stage in stages.values()),
        cached=sum(stage["cached_tokens"] or 0 for stage in stages.values()),
        output=sum(stage["completion_tokens"] for stage in stages.values()),
    )
    # What is shown of earlier answers is not known before there are any.
    chunks = [one for one in before["stages"] if one["over"] in {"chunk", "rows"}]
    chunk_tokens = sum(stages[one["stage"]]["prompt_tokens"] for one in chunks)
    load = load_of(after, Turns())
    documents = sum(group["count"] for group in after["documents"])
    at_host = price(load, profile, _RENT, documents=documents)
    own = profile.model_copy(update={"prices": None})
    on_gpus = price(load, own, _RENT, documents=documents)
    usd = _usd(actual)
    gpu_hours = (
        (_RENT.gpus or 1)
        / 3600
        * (
            (actual.prompt - actual.cached) / _PACE.prompt_tokens_per_s
            + actual.output / _PACE.output_tokens_per_s
        )
    )
    return {
        "arm": pipeline,
        "documents": documents,
        "prompt tokens": actual.prompt,
        "output tokens": actual.output,
        "prompt about documents, planned / actual": sum(one["prompt_tokens"] for one in chunks)
        / chunk_tokens,
        "prompt after pilot / actual": load.prompt_tokens / actual.prompt,
        "output after pilot / actual": load.output_tokens / actual.output,
        "cached after pilot / actual": load.cached_tokens / max(1.0, actual.cached),
        "USD after pilot / actual": at_host["usd"] / usd,
        "GPU hours after pilot / actual": on_gpus["gpu_hours"] / gpu_hours,
    }


def _usd(tokens: _Tokens) -> float:
    miss = tokens.prompt - tokens.cached
    return (
        miss * _PRICES["input_usd"]
        + tokens.cached * _PRICES["cached_input_usd"]
        + tokens.output * _PRICES["output_usd"]
    ) / 1e6


def _priced(folder: Path) -> Path:
    """Return the embedded engine's profile with prices."""
    text = (ROOT / "config" / "profiles" / "embedded.yaml").read_text(encoding="utf-8")
    file = folder / "priced.yaml"
    prices = ", ".join(f"{name}: {usd}" for name, usd in _PRICES.items())
    text = text.replace("name: embedded", "name: priced", 1)
    file.write_text(f"{text}prices: {{{prices}}}\n", encoding="utf-8")
    return file


if __name__ == "__main__":
    main()
