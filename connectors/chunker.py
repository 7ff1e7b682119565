"""Cuts a document's segments into chunks that fit a token budget exactly. Pure: no I/O.

The caller passes the token counter of the profile that will read the chunks. Sums of the lines'
counts choose the cut, and a count of the finished text decides, since tokenizers may merge across
lines (docs/decisions/0003-chunks-are-counted-as-sent.md).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from connectors.document import Chunk, Content, Media, Segment


class Counter(Protocol):
    """What the chunker needs of a tokenizer."""

    def count(self, text: str) -> int:
        """Return the tokens of `text`."""

    def count_many(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRule:
    """How to cut. `name` enters the chunk keys, so it must name all that changes the cut."""

    max_tokens: int
    counter: Counter
    name: str
    image_tokens: Callable[[Media], int] | None = None
    """Tokens of an image, for a model that takes images; None for a model that reads text only."""


def render(segments: Iterable[Segment]) -> str:
    """Return the segments as the model sees them: one labelled line each, in order."""
    return "".join(_line(segment.label, segment) for segment in segments)


def chunk_document(document_key: str, content: Content, rule: ChunkRule) -> list[Chunk]:
    """Split a document into chunks of at most `rule.max_tokens`.

    For a model that reads text only, an image is replaced by the text read off it; images without
    any text are gathered in chunks of their own at the end, which no text-only model is asked
    about. For a model that takes images, the image stands in place of the text read off it.

    Returns:
        Chunks in reading order. Each segment that can be shown lies in exactly one chunk, but
        for the header row of a sheet, which each chunk of its rows repeats, and for a segment
        larger than the budget, which is cut at word boundaries.
    """
    media = {item.name: item for item in content.media}
    shown, mute = _by_modality(content.segments, with_images=rule.image_tokens is not None)
    packer = _Packer(rule, media)
    runs = [*packer.runs(list(_fit(shown, rule)))]
    if mute:
        runs.append(mute)
    return [
        packer.chunk(document_key, content.reader, ordinal, run) for ordinal, run in enumerate(runs)
    ]


def _by_modality(
    segments: Sequence[Segment], *, with_images: bool
) -> tuple[list[Segment], list[Segment]]:
    """Return what is shown to the model, and the images nobody can read."""
    if with_images:
        return [segment for segment in segments if segment.tier != "ocr"], []
    read_off = {segment.media for segment in segments if segment.tier == "ocr"}
    shown = [segment for segment in segments if segment.kind != "image"]
    mute = [s for s in segments if s.kind == "image" and s.media not in read_off]
    return shown, mute


def _line(label: str, segment: Segment) -> str:
    return f"[{label}] {segment.text or '(image)'}\n"


def _fit(segments: Iterable[Segment], rule: ChunkRule) -> Iterator[Segment]:
    """Cut segments that exceed the budget alone."""
    # A header row is repeated in front of its rows, so a row may only use half of the budget.
    limit = max(1, rule.max_tokens // 2 - 8)
    for segment in segments:
        yield from _cut(segment, limit, rule.counter)


def _cut(segment: Segment, limit: int, counter: Counter) -> Iterator[Segment]:
    # A token is at least one byte, so short text needs no count.
    if len(segment.text.encode()) + 8 <= limit or counter.count(_line("L0000", segment)) <= limit:
        yield segment
        return
    middle = len(segment.text) // 2
    space = segment.text.rfind(" ", 1, middle + 1)
    at = space + 1 if space > 0 else max(1, middle)
    start = segment.span.char_start
    for text, offset in ((segment.text[:at], 0), (segment.text[at:], at)):
        if not text:
            continue
        span = segment.span
        if start is not None:
            span = replace(span, char_start=start + offset, char_end=start + offset + len(text))
        yield from _cut(replace(segment, text=text.strip(), span=span), limit, counter)


@dataclass(frozen=True, slots=True)
class _Packer:
    """Fills runs and makes chunks of them, for one document."""

    rule: ChunkRule
    media: Mapping[str, Media]

    def runs(self, segments: Sequence[Segment]) -> Iterator[list[Segment]]:
        """Yield runs that fit the budget, in order, a sheet's header row in front of its rows."""
        counts = self.rule.counter.count_many([_line("L0000", segment) for segment in segments])
        costs = [
            count + self._image_cost(segment)
            for segment, count in zip(segments, counts, strict=True)
        ]
        start = 0
        header: int | None = None
        while start < len(segments):
            repeated = self._repeated_header(segments, header, start)
            stop = self._stop(costs, start, sum(costs[index] for index in repeated))
            run = [*(segments[index] for index in repeated), *segments[start:stop]]
            while (
                stop - start > 1
                and (excess := self.count(_labelled(run)) - self.rule.max_tokens) > 0
            ):
                dropped = _tail(costs, start, stop, excess)
                stop -= dropped
                run = run[:-dropped]
            yield run
            header = next(
                (i for i in range(stop - 1, start - 1, -1) if _is_header(segments[i])), header
            )
            start = stop

    def count(self, segments: Sequence[Segment]) -> int:
        """Return the tokens of the run as it is sent, images included."""
        images = sum(self._image_cost(segment) for segment in segments)
        return self.rule.counter.count(render(segments)) + images

    def _stop(self, costs: Sequence[int], start: int, used: int) -> int:
        stop = start
        while stop < len(costs) and (stop == start or used + costs[stop] <= self.rule.max_tokens):
            used += costs[stop]
            stop += 1
        return stop

    def _repeated_header(
        self, segments: Sequence[Segment], header: int | None, start: int
    ) -> list[int]:
        first = segments[start]
        if header is None or first.kind != "table":
            return []
        return [header] if segments[header].span.sheet == first.span.sheet else []

    def _image_cost(self, segment: Segment) -> int:
        if self.rule.image_tokens is None or segment.kind != "image" or segment.media is None:
            return 0
        return self.rule.image_tokens(self.media[segment.media])

    def chunk(self, document_key: str, reader: str, ordinal: int, run: Sequence[Segment]) -> Chunk:
        """Label the run and give it its key and its exact count."""
        segments = tuple(_labelled(run))
        parts = ["chunk", document_key, reader, self.rule.name, self.rule.max_tokens, ordinal]
        return Chunk(
            chunk_key=hashlib.sha256(json.dumps(parts).encode()).hexdigest(),
            document_key=document_key,
            ordinal=ordinal,
            segments=segments,
            num_tokens=self.count(segments),
        )


def _is_header(segment: Segment) -> bool:
    return segment.kind == "heading" and segment.span.sheet is not None


def _tail(costs: Sequence[int], start: int, stop: int, excess: int) -> int:
    """Return how many segments to drop from the end to save `excess` tokens, leaving one."""
    saved = dropped = 0
    while saved < excess and stop - dropped - start > 1:
        dropped += 1
        saved += costs[stop - dropped]
    return dropped


def _labelled(run: Iterable[Segment]) -> list[Segment]:
    return [replace(segment, label=f"L{number}") for number, segment in enumerate(run, start=1)]
