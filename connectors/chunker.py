"""Cuts a document's segments into chunks that fit a token budget exactly. Pure: no I/O.

The caller passes the token counter of the profile that will read the chunks. Sums of the lines'
counts choose the cut, and a count of the finished text decides, since tokenizers may merge across
lines (docs/decisions/0003-chunks-are-counted-as-sent.md).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Protocol

from connectors.control_marks import disarm
from connectors.document import Chunk, Content, Media, Segment, Span, clock


class Counter(Protocol):
    """What the chunker needs of a tokenizer."""

    def count(self, text: str) -> int:
        """Return the tokens of `text`."""

    def weigh(self, texts: Sequence[str]) -> list[int]:
        """Return cheap counts that choose a cut; a count of the finished text decides."""

    @property
    def weighs_exactly(self) -> bool:
        """Tell whether `weigh` gives the same numbers as `count`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRule:
    """How to cut. `name` enters the chunk keys, so it must name all that changes the cut."""

    max_tokens: int
    counter: Counter
    name: str
    image_tokens: Callable[[Media], int] | None = None
    """Tokens of an image, for a model that takes images; None for a model that reads text only."""

    overlap_tokens: int = 0
    """Most tokens of running text that a chunk repeats from the end of the one before it."""


VERSION = 2
"""Raised whenever the same content gives other chunks, or is shown in other words; it enters their keys."""

_MAX_REFILLS = 4
_BORDER_SHARE = 0.75
"""A chunk may end at a heading if it is at least so full; else it is filled to the end."""
_HEADING_SHARE = 8
_OVERLAP_SHARE = 4
"""A repeated heading takes at most this part of a chunk, an overlap at most that."""


def render(segments: Iterable[Segment]) -> str:
    """Return the segments as the model sees them: one labelled line each, in order."""
    return "".join(_line(segment.label, segment) for segment in segments)


def chunk_document(document_key: str, content: Content, rule: ChunkRule) -> list[Chunk]:
    """Split a document into chunks of at most `rule.max_tokens`.

    For a model that reads text only, an image is replaced by the text read off it; images without
    any text are gathered in chunks of their own at the end, which no text-only model is asked
    about. For a model that takes images, the image stands in place of the text read off it.

    Returns:
        Chunks in reading order, which end in front of a heading where that leaves them three
        quarters full. Each segment that can be shown lies in exactly one chunk, but for what is
        repeated: a sheet's header row in each chunk of its rows, the last heading in front of
        text that goes on, and the overlap. A segment larger than the budget is cut at word
        boundaries and its rest marked.
    """
    media = {item.name: item for item in content.media}
    shown, mute = _by_modality(content.segments, with_images=rule.image_tokens is not None)
    packer = _Packer(rule, media)
    runs = chain(packer.runs(list(_fit(shown, rule))), [mute] if mute else [])
    # Each run becomes a chunk before the next is packed, so that its text is counted once.
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
    rest = "(goes on) " if segment.is_rest else ""
    return f"[{label}] {rest}{disarm(segment.text) or _stand_in(segment.span)}\n"


def _stand_in(span: Span) -> str:
    """Return what the line of an image says: the model sees the picture, but not where it is from."""
    if span.t0 is not None:
        return f"(frame at {clock(span.t0)})"
    return "(image)" if span.page is None else f"(page {span.page})"


def _fit(segments: Iterable[Segment], rule: ChunkRule) -> Iterator[Segment]:
    """Cut segments that exceed the budget alone."""
    limit = _segment_limit(rule)

    def weigh(line: str) -> int:
        # A token is at least one byte, so short text needs no count.
        num_bytes = len(line.encode())
        return num_bytes if num_bytes <= limit else rule.counter.weigh([line])[0]

    for segment in segments:
        yield from _cut(segment, limit, weigh)


def _segment_limit(rule: ChunkRule) -> int:
    """Return the most tokens of one segment.

    A header row is repeated in front of its rows, so a row may only use half of the budget.
    """
    return max(1, rule.max_tokens // 2 - 8)


def _cut(segment: Segment, limit: int, measure: Callable[[str], int]) -> Iterator[Segment]:
    if len(segment.text) <= 1 or measure(_line("L0000", segment)) <= limit:
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
        piece = replace(
            segment, text=text.strip(), span=span, is_rest=segment.is_rest or offset > 0
        )
        yield from _cut(piece, limit, measure)


@dataclass(frozen=True, slots=True)
class _Packer:
    """Fills runs and makes chunks of them, for one document."""

    rule: ChunkRule
    media: Mapping[str, Media]
    counted: dict[str, Any] = field(default_factory=dict)
    """The text that was counted last, and its tokens: what fits is often counted again as it is."""

    def runs(self, segments: list[Segment]) -> Iterator[list[Segment]]:
        """Yield runs that fit the budget, in order, each behind the context that it repeats."""
        if segments and self._is_small(segments) and self._fits(segments):
            yield segments
            return
        costs = self._weighed(segments)
        start = 0
        heading: int | None = None
        while start < len(segments):
            repeated = self._repeated(segments, costs, heading, start)
            context = [segments[index] for index in repeated]
            if context and not self._fits([*context, segments[start]]):
                context, repeated = [], []
            stop = self._stop(costs, start, sum(costs[index] for index in repeated))
            run = [*context, *segments[start:stop]]
            while stop - start > 1 and (excess := self.count(run) - self.rule.max_tokens) > 0:
                dropped = _tail(costs, start, stop, excess)
                stop -= dropped
                run = run[:-dropped]
            if not self.rule.counter.weighs_exactly:
                pieces = self._pieces(segments[start], run)
                if len(pieces) > 1:
                    segments[start : start + 1], costs[start : start + 1] = (
                        pieces,
                        self._weighed(pieces),
                    )
                    continue
                stop, run = self._filled(segments, costs, stop, run)
            border = _border(segments, costs, start, stop)
            yield run[: len(run) - (stop - border)]
            heading = next(
                (i for i in range(border - 1, start - 1, -1) if segments[i].kind == "heading"),
                heading,
            )
            start = border

    def _is_small(self, segments: Sequence[Segment]) -> bool:
        """Tell whether all of a document fits one chunk, so that no line is to be weighed.

        A token is at least one byte.
        """
        room = self.rule.max_tokens
        label = f"L{len(segments)}"
        for segment in segments:
            room -= len(_line(label, segment).encode()) + self._image_cost(segment)
            if room < 0:
                return False
        return True

    def _fits(self, run: Sequence[Segment]) -> bool:
        return self.count(run) <= self.rule.max_tokens

    def _weighed(self, segments: Sequence[Segment]) -> list[int]:
        """Return what each segment takes, about, its image included."""
        counts = self.rule.counter.weigh([_line("L0000", segment) for segment in segments])
        return [
            count + self._image_cost(segment)
            for segment, count in zip(segments, counts, strict=True)
        ]

    def _pieces(self, segment: Segment, run: Sequence[Segment]) -> list[Segment]:
        """Return the segment cut by its count, where its weight was too low and it does not fit."""
        if run[-1] is not segment or self._fits(run):
            return [segment]
        return list(_cut(segment, _segment_limit(self.rule), self.rule.counter.count))

    def _filled(
        self, segments: Sequence[Segment], costs: Sequence[int], stop: int, run: list[Segment]
    ) -> tuple[int, list[Segment]]:
        """Return a longer run and its end, where cautious weights left room in it.

        At most `_MAX_REFILLS` counts more, each a call of a remote counter.
        """
        counted = self.count(run)
        most = len(costs)
        for _ in range(_MAX_REFILLS):
            weighed = sum(costs[stop - len(run) : stop]) or 1
            room = (self.rule.max_tokens - counted) * max(1.0, weighed / max(1, counted))
            end = stop
            while end < most and (room := room - costs[end]) >= 0:
                end += 1
            if end == stop:
                break
            longer = [*run, *segments[stop:end]]
            num_tokens = self.count(longer)
            if num_tokens > self.rule.max_tokens:
                most = stop + (end - stop) // 2
            else:
                stop, run, counted = end, longer, num_tokens
        return stop, run

    def count(self, run: Sequence[Segment]) -> int:
        """Return the tokens of the run as it is sent, labels and images included."""
        text = "".join(_line(f"L{number}", segment) for number, segment in enumerate(run, start=1))
        if self.counted.get("text") != text:
            self.counted.update(text=text, tokens=self.rule.counter.count(text))
        return int(self.counted["tokens"]) + sum(self._image_cost(segment) for segment in run)

    def _stop(self, costs: Sequence[int], start: int, used: int) -> int:
        stop = start
        while stop < len(costs) and (stop == start or used + costs[stop] <= self.rule.max_tokens):
            used += costs[stop]
            stop += 1
        return stop

    def _repeated(
        self, segments: Sequence[Segment], costs: Sequence[int], heading: int | None, start: int
    ) -> list[int]:
        """Return what a chunk that begins at `start` repeats: its heading, then the overlap."""
        first = segments[start]
        if first.kind == "heading":
            return []
        found: list[int] = []
        if heading is not None and segments[heading].span.sheet == first.span.sheet:
            # Rows mean nothing without the names of their columns, whatever those cost.
            limit = self.rule.max_tokens // _HEADING_SHARE
            if first.span.sheet is not None or costs[heading] <= limit:
                found.append(heading)
        left = min(self.rule.overlap_tokens, self.rule.max_tokens // _OVERLAP_SHARE)
        index = start - 1
        overlap: list[int] = []
        while index >= 0 and segments[index].kind == "paragraph" and costs[index] <= left:
            left -= costs[index]
            overlap.append(index)
            index -= 1
        return [*found, *reversed(overlap)] if first.kind == "paragraph" else found

    def _image_cost(self, segment: Segment) -> int:
        if self.rule.image_tokens is None or segment.kind != "image" or segment.media is None:
            return 0
        return self.rule.image_tokens(self.media[segment.media])

    def chunk(self, document_key: str, reader: str, ordinal: int, run: Sequence[Segment]) -> Chunk:
        """Label the run and give it its key and its exact count."""
        segments = tuple(_labelled(run))
        parts = [
            f"chunk/{VERSION}",
            document_key,
            reader,
            self.rule.name,
            self.rule.max_tokens,
            self.rule.overlap_tokens,
            ordinal,
        ]
        return Chunk(
            chunk_key=hashlib.sha256(json.dumps(parts).encode()).hexdigest(),
            document_key=document_key,
            ordinal=ordinal,
            segments=segments,
            num_tokens=self.count(segments),
        )


def _border(segments: Sequence[Segment], costs: Sequence[int], start: int, stop: int) -> int:
    """Return where a run from `start` to `stop` ends best: in front of a heading near its end."""
    if stop == len(segments):
        return stop
    taken = sum(costs[start:stop])
    least = _BORDER_SHARE * taken
    for index in range(stop - 1, start, -1):
        taken -= costs[index]
        if taken < least:
            break
        if segments[index].kind == "heading":
            stop = index
            break
    while stop - 1 > start and segments[stop - 1].kind == "heading":
        stop -= 1
    return stop


def _tail(costs: Sequence[int], start: int, stop: int, excess: int) -> int:
    """Return how many segments to drop from the end to save `excess` tokens, leaving one."""
    saved = dropped = 0
    while saved < excess and stop - dropped - start > 1:
        dropped += 1
        saved += costs[stop - dropped]
    return dropped


def _labelled(run: Iterable[Segment]) -> list[Segment]:
    return [segment.with_label(f"L{number}") for number, segment in enumerate(run, start=1)]
