"""A `headrace run` beside a plain loop of the openai client: same server, same requests.

`python -m benchmarks.run_against_loop [--documents 40] [--repeats 3] [--offline]`. The loop sends the very
bodies that the run sends, in the run's order, chunk by chunk, and as many at a time, but not streamed; it
reads nothing, chunks nothing and writes one line per answer. Each arm has a cache salt of its own, so that
none finds another's prefixes in the server's cache. `seconds` of the run are its manifest's, from listing to
the last record, the report left out; `process_s` is from the start of the process to its end. `--offline` measures vLLM's own `LLM.chat` on the same prompts as well, for information.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, machine, show
from config.load import child_environment, load_profile, load_surroundings
from engine.client import Client, Patience, Watch
from engine.local_models import LOCAL_MODELS
from engine.profile import Profile
from engine.reply import Reply
from flows.run.bench import open_engine
from flows.run.core import run_job
from flows.run.job import Options, make_job

HEADRACE = str(Path(sys.executable).with_name("headrace"))
_CHARS_PER_DOCUMENT = 2_400
"""About 600 tokens."""
_PIPELINE = """\
name: bench
stages:
  - name: digest
    prompt: What kind of text is this, and which line says best what it is about?
    output: {kind: letter|report|table|article|other, topic: line}
    max_output_tokens: 48
  - name: next
    prompt: Does it tell the reader to do something, and in which line?
    output: {asks: yes|no, what: line}
    max_output_tokens: 48
"""


def main() -> None:
    """Run the arms in turn, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--offline", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        _compare(Path(folder), asked.documents, asked.repeats, offline=asked.offline)


def _compare(folder: Path, documents: int, repeats: int, *, offline: bool) -> None:
    measured_on = machine()
    write_source(folder / "source", documents, _CHARS_PER_DOCUMENT)
    (folder / "bench.yaml").write_text(_PIPELINE, encoding="utf-8")
    runs: list[Mapping[str, float]] = []
    loops: list[Mapping[str, float]] = []
    with open_engine("embedded", notify=note) as endpoint:
        bodies = _record(folder, endpoint.base_url)
        for number in range(repeats):
            arms = [
                lambda n=number: runs.append(_run(folder, endpoint.base_url, f"run-{n}")),
                lambda n=number: loops.append(_run_loop(folder, endpoint.base_url, f"loop-{n}")),
            ]
            for arm in arms if number % 2 == 0 else reversed(arms):
                arm()
            note(f"repeat {number + 1} of {repeats}: {runs[-1]} {loops[-1]}")
    rows = [median("headrace run", runs), median("asyncio + openai", loops)]
    if offline:
        rows.append({"arm": "LLM.chat (offline)", **_offline(folder)})
    ratios = [
        first["tokens_per_s"] / second["tokens_per_s"]
        for first, second in zip(runs, loops, strict=True)
    ]
    facts = {
        "requests": len(bodies),
        "documents": documents,
        "tokens/s of headrace run / loop, median of pairs": statistics.median(ratios),
        "pairs": [round(ratio, 3) for ratio in ratios],
    }
    show("run_against_loop", measured_on, facts, rows)


def note(line: str) -> None:
    """Say how far it is."""
    sys.stderr.write(line + "\n")


def write_source(source: Path, documents: int, num_chars: int) -> None:
    """Write documents of so many characters each, from the pages of docs/."""
    source.mkdir()
    pages = sorted((ROOT / "docs").rglob("*.md"))
    text = "\n\n".join(page.read_text(encoding="utf-8") for page in pages)
    for number in range(documents):
        start = number * num_chars % (len(text) - num_chars)
        piece = f"Document {number}.\n\n{text[start : start + num_chars]}"
        (source / f"{number:04}.txt").write_text(piece, encoding="utf-8")


def salted_profile(folder: Path, url: str, salt: str) -> Path:
    """Write a profile of the running server that salts its cache, and return its file."""
    served = load_profile("embedded")
    assert served.serve is not None
    model = LOCAL_MODELS[served.serve].model_folder(load_surroundings().cache)
    settings = served.modes["instant"].model_copy(update={"wire": {"cache_salt": salt}})
    profile = served.model_dump(mode="json") | {
        "name": "salted",
        "serve": None,
        "server_flags": [],
        "base_url": url,
        "tokenizer": {"file": str(model / "tokenizer.json")},
        "modes": {"instant": settings.model_dump(mode="json")},
    }
    Profile.model_validate(profile)
    file = folder / "salted.yaml"
    file.write_text(json.dumps(profile), encoding="utf-8")
    return file


@contextmanager
def recorded() -> Iterator[list[dict[str, Any]]]:
    """Keep the bodies that this process sends meanwhile."""
    bodies: list[dict[str, Any]] = []
    with watched(lambda body: bodies.append(dict(body))):
        yield bodies


@contextmanager
def watched(take: Callable[[Mapping[str, Any]], None]) -> Iterator[None]:
    """Hand over the body of each call that this process makes meanwhile, just before it is sent."""
    complete = Client.complete

    async def watching(
        self: Client,
        body: Mapping[str, Any],
        *,
        prompt_tokens: int,
        patience: Patience | None = None,
        watch: Watch | None = None,
    ) -> Reply:
        take(body)
        return await complete(
            self, body, prompt_tokens=prompt_tokens, patience=patience, watch=watch
        )

    Client.complete = watching  # type: ignore[method-assign]
    try:
        yield
    finally:
        Client.complete = complete  # type: ignore[method-assign]


def _record(folder: Path, url: str) -> list[dict[str, Any]]:
    """Run once and keep the bodies that are sent."""
    options = Options(
        source=str(folder / "source"),
        sink=str(folder / "recorded"),
        engine=str(salted_profile(folder, url, "record")),
    )
    with recorded() as bodies:
        run_job(make_job(folder / "bench.yaml", options))
    (folder / "bodies.json").write_text(json.dumps(bodies), encoding="utf-8")
    return bodies


def _run(folder: Path, url: str, salt: str) -> Mapping[str, float]:
    engine = str(salted_profile(folder, url, salt))
    started = time.monotonic()
    result = subprocess.run(
        [
            HEADRACE, "run", str(folder / "bench.yaml"), "--json", f"--engine={engine}",
            f"--source={folder / 'source'}", f"--sink={folder / salt}",
        ],
        # Without a Prefect server, whatever this machine has set.
        env=child_environment(PREFECT_API_URL="", PREFECT_PROFILES_PATH="/dev/null"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    process_s = time.monotonic() - started
    if result.returncode != 0:
        raise SystemExit(result.stderr[-3000:])
    manifest = json.loads(result.stdout)
    stages = manifest["stages"].values()
    tokens = sum(stage["prompt_tokens"] + stage["completion_tokens"] for stage in stages)
    return {
        "tokens_per_s": tokens / manifest["seconds"],
        "tokens": tokens,
        "cached": sum(stage["cached_tokens"] for stage in stages),
        "seconds": manifest["seconds"],
        "process_s": process_s,
    }


def _run_loop(folder: Path, url: str, salt: str) -> Mapping[str, float]:
    in_flight = str(load_profile("embedded").max_in_flight)
    argv = [sys.executable, str(ROOT / "benchmarks" / "plain_loop.py"), url, in_flight]
    started = time.monotonic()
    result = subprocess.run(
        [*argv, str(folder / "bodies.json"), str(folder / f"{salt}.jsonl"), salt],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {**json.loads(result.stdout), "process_s": time.monotonic() - started}


def _offline(folder: Path) -> dict[str, float]:
    """Return what vLLM does on the same prompts without a server, in the engine's environment.

    Raises:
        SystemExit: It failed.
    """
    surroundings = load_surroundings()
    served = load_profile("embedded")
    assert served.serve is not None
    model = LOCAL_MODELS[served.serve]
    result = subprocess.run(
        [
            str(surroundings.engine_venv / "bin" / "python"),
            str(ROOT / "benchmarks" / "offline.py"), str(model.model_folder(surroundings.cache)),
            model.dtype(), str(served.context_tokens), str(served.max_in_flight),
            str(folder / "bodies.json"),
        ],
        cwd=folder, capture_output=True, text=True, check=False,
        env=child_environment(HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="1", PYTHONSAFEPATH="1"),
    )  # fmt: skip
    if result.returncode != 0:
        raise SystemExit(result.stderr[-3000:])
    # vLLM writes its own lines to the same place, also when it ends.
    lines = [line for line in result.stdout.splitlines() if line.startswith('{"tokens_per_s"')]
    return dict(json.loads(lines[-1]))


def median(arm: str, found: Sequence[Mapping[str, float]]) -> dict[str, object]:
    """Return an arm's row: the median of each figure over its repeats."""
    middle = {key: float(statistics.median(one[key] for one in found)) for key in found[0]}
    return {"arm": arm, **middle}


if __name__ == "__main__":
    main()
