"""The chunker beside the bare tokenizer: what cutting costs over counting the text once.

`python -m benchmarks.chunking VOCABULARY [--megabytes 4]` cuts text of this project's pages, repeated, into
chunks of 100,000 and 1,000 tokens with the vocabulary (tiktoken.model or tokenizer.json), and counts the same
lines once in one call.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.machine import ROOT, machine, show
from connectors.chunker import ChunkRule, chunk_document, render
from connectors.document import Content, Segment, Span
from engine.tokens.opening import load_counter

_REPEATS = 5


def main() -> None:
    """Measure in turn, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--megabytes", type=float, default=4.0)
    asked = parser.parse_args()
    measured_on = machine()
    counter = load_counter(asked.vocabulary)
    content = _content(int(asked.megabytes * 1e6))
    text = render(content.segments)
    rows: list[dict[str, object]] = []
    for limit in (100_000, 1_000):
        rule = ChunkRule(max_tokens=limit, counter=counter, name=counter.name)
        bare: list[float] = []
        cut: list[float] = []
        for _ in range(_REPEATS):
            bare.append(_seconds(partial(counter.count, text)))
            cut.append(_seconds(partial(chunk_document, "0" * 64, content, rule)))
        chunks = chunk_document("0" * 64, content, rule)
        rows.append({
            "max_tokens": limit,
            "chunks": len(chunks),
            "fullest": max(chunk.num_tokens for chunk in chunks),
            "tokenizer_s": statistics.median(bare),
            "chunker_s": statistics.median(cut),
            "chunker / tokenizer": statistics.median(
                second / first for first, second in zip(bare, cut, strict=True)
            ),
        })
    facts = {"megabytes": len(text.encode()) / 1e6, "tokens": counter.count(text)}
    show("chunking", measured_on, facts, rows)


def _content(size: int) -> Content:
    lines: list[str] = []
    pages = sorted((ROOT / "docs").rglob("*.md"))
    words = [
        line for page in pages for line in page.read_text(encoding="utf-8").splitlines() if line
    ]
    total = 0
    while total < size:
        line = f"{len(lines)} {words[len(lines) % len(words)]}"
        lines.append(line)
        total += len(line.encode()) + 8
    return Content(
        media_type="text/plain",
        reader="bench",
        units=(),
        segments=tuple(
            Segment(kind="paragraph", text=line, span=Span(page=1 + number // 40))
            for number, line in enumerate(lines)
        ),
    )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
