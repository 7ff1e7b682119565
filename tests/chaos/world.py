"""What the chaos tests run on: a small corpus, a pipeline of four levels, an engine that counts."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

ROOT = Path(__file__).resolve().parent.parent.parent
HEADRACE = Path(sys.executable).with_name("headrace")

NUM_FILES = 48
LATENCY_S = 0.12
IN_FLIGHT = 16
"""Requests under way at once: the default of an engine given by URL."""
JOURNAL_WINDOW = 64
"""Results that a journal may hold back."""

PIPELINE = """
name: chaos
documents_per_shard: 4
chunk: {max_tokens: 900}
stages:
  - {name: kind, prompt: What is it?, output: {kind: a|b|c, says: line}}
  - {name: title, over: document, needs: [kind], prompt: Which line?, output: {title: line, sort: x|y|z}}
  - {name: sorts, over: group, by: sort, needs: [title], prompt: "What of {{ group }}?", output: {says: line}}
  - {name: all, over: corpus, needs: [title, sorts], prompt: What of all?, output: {says: line}}
"""
CONTEXT = 1600
"""Tokens of the engine's context: what is said of all documents takes several requests."""

_WORDS = [
    "harbour",
    "crane",
    "tide",
    "log",
    "rope",
    "anchor",
    "pilot",
    "dawn",
    "calm",
    "fuse",
    "motor",
    "noon",
    "boat",
    "keel",
    "mast",
]


def write_corpus(folder: Path) -> None:
    """Write small notes: every sixth has several chunks, and the last is a copy of the first."""
    pick = random.Random(5)
    folder.mkdir()
    for number in range(NUM_FILES):
        paragraphs = [
            " ".join(pick.choice(_WORDS) for _ in range(25)) + "."
            for _ in range(45 if number % 6 == 0 else 10)
        ]
        text = f"# Note {number}\n\n" + "\n\n".join(paragraphs)
        (folder / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    first = (folder / "00.txt").read_bytes()
    (folder / f"{NUM_FILES - 1:02d}.txt").write_bytes(first)


def write_large_shard(folder: Path, num_files: int) -> None:
    """Write notes of one line each, all different."""
    folder.mkdir()
    for number in range(num_files):
        text = f"Note {number} says that the tide is {number * 7 % 100} inches high."
        (folder / f"{number:03d}.txt").write_text(text, encoding="utf-8")


class PaidEngine:
    """A fake engine in its own process, which writes down every call as it arrives."""

    def __init__(self, folder: Path, latency_s: float = LATENCY_S) -> None:
        self.log = folder / "paid.jsonl"
        self._noise = folder / "engine.log"
        self._latency_s = latency_s

    def __enter__(self) -> Self:
        # Killed clients leave broken connections, of which its server writes tracebacks.
        noise: IO[bytes] = self._noise.open("wb")
        with noise:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "tests.fakes.engine_server",
                    f"--latency-s={self._latency_s}", f"--log={self.log}",
                    f"--max-model-len={CONTEXT}",
                ],
                cwd=ROOT, stdout=subprocess.PIPE, stderr=noise, text=True,
            )  # fmt: skip
        assert self._process.stdout is not None
        self.url = str(json.loads(self._process.stdout.readline())["url"])
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def mark(self) -> int:
        """Return where the log ends now, for `paid`."""
        return self.log.stat().st_size

    def paid(self, since: int = 0) -> Counter[str]:
        """Return how often each question was asked since a mark."""
        with self.log.open("rb") as file:
            file.seek(since)
            return Counter(json.loads(line)["call"] for line in file)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One corpus, what is asked of it, and the engine."""

    source: Path
    pipeline: Path
    engine: PaidEngine

    def start(self, sink: str) -> list[str]:
        """Return the command of a new run."""
        return [
            str(HEADRACE), "run", str(self.pipeline), f"--source={self.source}",
            f"--sink={sink}", f"--engine={self.engine.url}", "--json",
        ]  # fmt: skip


def environment(state: Path, **more: str) -> dict[str, str]:
    """Return what a run's process is given: this state folder, and no Prefect server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {
        **kept,
        "HEADRACE_STATE": str(state),
        "PREFECT_HOME": str(state / "no-prefect"),
        "COLUMNS": "500",
        **more,
    }
