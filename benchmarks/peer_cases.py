"""What benchmarks/peers.py asks: documents, stages, and the same as a job for the peers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.run_against_loop import write_source
from config.load import load_profile

_CACHE_BLOCKS = 94
"""Of 128 tokens each, as vLLM's CPU build has them: 12,032 tokens."""
_CHUNK_TOKENS = 5_000
"""More than any of the documents has."""
_CHARS_PER_DOCUMENT = 8_000
"""2,100 to 4,000 tokens, 2,500 in the middle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A question with a choice for an answer; braces name earlier stages."""

    name: str
    prompt: str
    choices: tuple[str, ...]
    max_tokens: int = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is asked about which documents."""

    name: str
    stages: tuple[Stage, ...]
    num_chars: int
    """Of each document."""
    in_flight: int = 0
    """0: as the profile of the embedded model says."""
    fixed_latency: bool = False
    """Timed on the fake engine."""

    def pipeline(self) -> str:
        """Return the pipeline for Headrace."""
        stages = [
            {
                "name": stage.name,
                "needs": _names(stage.prompt),
                "prompt": re.sub(r"{(\w+)}", r"{{ upstream.\1.\1 }}", stage.prompt),
                "output": {stage.name: "|".join(stage.choices)},
                "max_output_tokens": stage.max_tokens,
            }
            for stage in self.stages
        ]
        return json.dumps({
            "name": "bench",
            "documents_per_shard": 100,
            "chunk": {"max_tokens": _CHUNK_TOKENS},
            "stages": stages,
        })

    def write_documents(self, folder: Path, num: int) -> None:
        """Write the documents, each of one chunk."""
        write_source(folder, num, self.num_chars)


_KIND = Stage(
    name="kind",
    prompt="What kind of text is this?",
    choices=("letter", "report", "table", "article", "other"),
)
_TOPIC = Stage(
    name="topic",
    prompt="It was found to be of the kind {kind}. What is it about?",
    choices=("software", "business", "science", "people", "other"),
)
_ASKS = Stage(
    name="asks",
    prompt="It was found to be of the kind {kind}, about {topic}. Does it tell the reader to act?",
    choices=("yes", "no"),
)
CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        Case(name="three-stages", stages=(_KIND, _TOPIC, _ASKS), num_chars=_CHARS_PER_DOCUMENT),
        Case(name="one-stage", stages=(_KIND,), num_chars=_CHARS_PER_DOCUMENT),
        Case(
            name="fixed-latency",
            # What the fake engine always answers is one of the choices.
            stages=(Stage(name="topic", prompt="Which topic is it about?", choices=("a", "b")),),
            num_chars=400,
            in_flight=64,
            fixed_latency=True,
        ),
    )
}


def _names(prompt: str) -> list[str]:
    return re.findall(r"{(\w+)}", prompt)


def write_rows(folder: Path, case: Case, bodies: Sequence[Mapping[str, Any]]) -> None:
    """Write the chunks that Headrace asked its first question about, as the peers read them.

    Raises:
        SystemExit: A request is not made of a system text, a chunk and the question.
    """
    ending = f"\n\nQuestion: {case.stages[0].prompt}"
    users = [body["messages"][-1]["content"] for body in bodies]
    texts = sorted(text.removesuffix(ending) for text in users if text.endswith(ending))
    systems = {body["messages"][0]["content"] for body in bodies}
    if len(texts) * len(case.stages) != len(bodies) or len(systems) != 1:
        raise SystemExit(
            f"{case.name}: {len(bodies)} requests with {len(systems)} system texts, of which"
            f" {len(texts)} end with {ending!r}; the peers cannot be given the same"
        )
    rows = [{"id": number, "text": text} for number, text in enumerate(texts)]
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "system.txt").write_text(systems.pop(), encoding="utf-8")


def job(folder: Path, case: Case) -> dict[str, Any]:
    """Return what peer_arm.py is to ask; see there."""
    rows = folder / "rows.jsonl"
    return {
        "system": (folder / "system.txt").read_text(encoding="utf-8"),
        "rows": str(rows),
        "num_rows": len(rows.read_text(encoding="utf-8").splitlines()),
        "stages": [
            {
                "name": stage.name, "prompt": stage.prompt, "choices": list(stage.choices),
                "max_tokens": stage.max_tokens,
            }
            for stage in case.stages
        ],
    }  # fmt: skip


def small_cache_profile(folder: Path) -> Path:
    """Write the profile of the embedded model with a small cache, and return its file."""
    embedded = load_profile("embedded").model_dump(mode="json", exclude_none=True)
    flags = [*embedded["server_flags"], f"--num-gpu-blocks-override={_CACHE_BLOCKS}"]
    file = folder / "small_cache.yaml"
    file.write_text(
        json.dumps({**embedded, "name": "small_cache", "server_flags": flags}), encoding="utf-8"
    )
    return file


def embedded_model() -> tuple[str, int]:
    """Return the name of the embedded model and its context in tokens."""
    embedded = load_profile("embedded")
    assert embedded.model is not None
    assert embedded.context_tokens is not None
    return embedded.model, embedded.context_tokens
