"""A million questions made ready in the order in which they are sent: seconds and memory.

`python -m benchmarks.planning [--requests 1000000] [--stages 3] [--lines 30]` makes every stage's request about
one chunk after the other, as a shard does in front of the engine: the prompt is rendered and weighed, labels
are bound, keys are made, and requests are queued by their family. Nothing is sent and nothing is read; chunks have
so many lines of about 14 words. The peer in the same run makes the same message bodies with f-strings
and a SHA-256 of each, which no request with a key can do without.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.machine import ROOT, machine, show

if TYPE_CHECKING:
    from connectors.document import Chunk, Document
    from flows.run.ask import Asker

WORDS = [
    "the",
    "board",
    "of",
    "the",
    "northern",
    "water",
    "works",
    "has",
    "met",
    "in",
    "spring",
    "to",
    "read",
    "the",
    "report",
]
_PIPELINE = "name: bench\nengine: embedded\nstages:\n"
_STAGE = """\
  - name: stage{number}
    prompt: What does part {number} of the board's rules say about this, and in which line?
    output: {{kind: letter|report|table|other, topic: line}}
    max_output_tokens: 48
"""


def main() -> None:
    """Measure in processes of their own, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--lines", type=int, default=30)
    parser.add_argument("--arm", choices=_ARMS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    sizes = (asked.requests, asked.stages, asked.lines)
    if asked.arm:
        sys.stdout.write(json.dumps(_measured(_ARMS[asked.arm], *sizes)) + "\n")
        return
    measured_on = machine()
    rows = [_in_process(arm, *sizes) for arm in _ARMS]
    facts = {
        "stages": asked.stages,
        "lines in a chunk": asked.lines,
        "planned / plain strings, seconds": float(rows[0]["seconds"]) / float(rows[1]["seconds"]),
    }
    show("planning", measured_on, facts, rows)


def _in_process(arm: str, requests: int, stages: int, lines: int) -> dict[str, float]:
    argv = [sys.executable, "-m", "benchmarks.planning", "--arm", arm]
    argv += ["--requests", str(requests), "--stages", str(stages), "--lines", str(lines)]
    result = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    return {"arm": arm, **json.loads(result.stdout)}


def _measured(
    arm: Callable[[int, int, int], Iterator[object]], requests: int, stages: int, lines: int
) -> dict[str, float]:
    made = arm(requests, stages, lines)
    next(made)
    started = time.perf_counter()
    count = 1 + sum(1 for _ in made)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"requests": count, "seconds": seconds, "us": seconds / count * 1e6, "peak_mb": peak}


def _planned(requests: int, stages: int, lines: int) -> Iterator[object]:
    """Yield the requests in the order in which they would be sent."""
    from config.load import load_pipeline
    from flows.run.ask import Asker
    from flows.run.bench import plan_engine

    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        file = Path(name) / "bench.yaml"
        texts = (_STAGE.format(number=number) for number in range(stages))
        file.write_text(_PIPELINE + "".join(texts), encoding="utf-8")
        pipeline = load_pipeline(file)
        with plan_engine("embedded", lambda _: None) as endpoint:
            asker = Asker(pipeline, endpoint)
            yield from _queued(asker, _chunks(requests // stages + 1, lines), requests)


def _queued(
    asker: Asker, chunks: Iterator[tuple[Document, Chunk]], requests: int
) -> Iterator[object]:
    stages = list(asker.stages.values())
    ready: list[tuple[int, int, object]] = []
    pushed = itertools.count()
    left = requests
    for family, (document, chunk) in enumerate(chunks):
        for stage in stages:
            inquiry = asker.about_chunk(
                stage.config, document, chunk, upstream={}, media_dir=Path()
            )
            for request in inquiry.requests:
                heapq.heappush(ready, (family, next(pushed), request))
        while ready and left:
            left -= 1
            yield heapq.heappop(ready)[-1]


def _chunks(count: int, lines: int) -> Iterator[tuple[Document, Chunk]]:
    from connectors.document import Chunk, Document, Segment, SourceRef, Span

    document = Document(
        source=SourceRef(uri="s3://lake/a.txt", path="a.txt", size_bytes=1, etag="1"),
        document_key="0" * 64,
        status="read",
        content=None,
    )
    # The same lines each time: to make them is the work of readers and chunker.
    segments = tuple(
        Segment(
            kind="paragraph",
            text=f"{line} {' '.join(WORDS)}",
            span=Span(char_start=line, char_end=line + 1),
            label=f"L{line + 1}",
        )
        for line in range(lines)
    )
    for number in range(count):
        yield (
            document,
            Chunk(
                chunk_key=f"{number:064d}",
                document_key=document.document_key,
                ordinal=number,
                segments=segments,
                num_tokens=lines * 20,
            ),
        )


def _plain(requests: int, stages: int, lines: int) -> Iterator[object]:
    """Yield bodies of the same size, each with a hash of its prompt."""
    for number in range(requests // stages + 1):
        text = "".join(f"[L{line + 1}] {line} {' '.join(WORDS)}\n" for line in range(lines))
        for stage in range(stages):
            prompt = (
                f"{text}\nQuestion: What does part {stage} of the board's rules say about this?"
            )
            key = hashlib.sha256(prompt.encode()).hexdigest()
            if number * stages + stage < requests:
                yield key, [{"role": "user", "content": prompt}]


_ARMS = {"planned": _planned, "plain strings": _plain}


if __name__ == "__main__":
    main()
