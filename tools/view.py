"""Lets the model look at a page or a frame: the picture goes to it with a question, an answer comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from connectors.control_marks import disarm
from connectors.document import Segment, clock
from engine.tool import Aside, ToolAnswer, ToolError, ToolSpec
from tools.corpus import Corpus, Entry
from tools.labels import find_document, shown_place
from tools.tool import Arguments, Scope, spec_of

_MOST_FIGURES = 4
_MOST_NAMED = 20


class ViewPageArguments(Arguments):
    """What to look at, and what to find out."""

    document: str = Field(min_length=1)
    """Label of the document (D3), or its path."""
    page: int = Field(ge=1)
    """Number of the page, from 1; an image file is page 1."""
    question: str = Field(min_length=1)
    """What to find out from the picture; it is answered from the picture alone, so say all it needs."""


class ViewFrameArguments(Arguments):
    """What to look at, and what to find out."""

    document: str = Field(min_length=1)
    """Label of the film (D3), or its path."""
    time_s: float = Field(allow_inf_nan=False)
    """Second of the film; the frame that shows then, or the nearest one that was kept, is taken."""
    question: str = Field(min_length=1)
    """What to find out from the picture; it is answered from the picture alone, so say all it needs."""


class _Picture(NamedTuple):
    number: int
    """Of the line, from 1."""
    segment: Segment
    """The image, or the first text read off it where the image has no line of its own."""


class _View(NamedTuple):
    entry: Entry
    pictures: Sequence[_Picture]
    files: Sequence[Path]


class ViewPage:
    """Answers a question from the picture of a page."""

    spec: ToolSpec = spec_of(
        "view_page",
        "Looks at the picture of one page of a scanned document, or its figures, or an image file, and"
        " answers a question about what is seen there.",
        ViewPageArguments,
    )

    def __init__(self, scope: Scope) -> None:
        self._corpus = scope.corpus

    async def call(self, arguments: Mapping[str, Any], aside: Aside) -> ToolAnswer:
        """Return the answer.

        Raises:
            ToolError: There is no such page, or no picture of it, or the model sees no pictures.
        """
        asked = ViewPageArguments.of(arguments)
        return await _look(aside, await asyncio.to_thread(self._find, asked), asked.question)

    def _find(self, asked: ViewPageArguments) -> _View:
        entry = find_document(self._corpus, asked.document)
        lines = self._corpus.lines(entry.label)
        pictures = [p for p in _pictures(lines) if p.segment.span.page == asked.page]
        if not pictures:
            raise ToolError(_no_picture(entry, lines, asked.page))
        # The page as a whole, where there is one, shows its figures too.
        whole = [p for p in pictures if p.segment.span.bbox is None or p.segment.tier == "ocr"]
        found = whole[:1] or pictures[:_MOST_FIGURES]
        return _View(entry, found, _files(self._corpus, entry, found))


class ViewFrame:
    """Answers a question from a frame of a film."""

    spec: ToolSpec = spec_of(
        "view_frame",
        "Looks at the frame of a film at a time, and answers a question about what is seen there.",
        ViewFrameArguments,
    )

    def __init__(self, scope: Scope) -> None:
        self._corpus = scope.corpus

    async def call(self, arguments: Mapping[str, Any], aside: Aside) -> ToolAnswer:
        """Return the answer.

        Raises:
            ToolError: There is no such film, no frame of it, or the model sees no pictures.
        """
        asked = ViewFrameArguments.of(arguments)
        return await _look(aside, await asyncio.to_thread(self._find, asked), asked.question)

    def _find(self, asked: ViewFrameArguments) -> _View:
        entry = find_document(self._corpus, asked.document)
        frames = [p for p in _pictures(self._corpus.lines(entry.label)) if _starts(p) is not None]
        if not frames:
            raise ToolError(
                f"{entry.label} is {entry.media_type} and has no frames; read it, or view_page"
            )
        found = min(frames, key=lambda picture: _distance(picture, asked.time_s))
        return _View(entry, [found], _files(self._corpus, entry, [found]))


def _pictures(lines: Sequence[Segment]) -> Iterator[_Picture]:
    """Yield each picture of a document once, in order.

    Where the model of the run reads text only, a picture may have no line: the text read off it names it.
    """
    found: dict[str, _Picture] = {}
    for number, line in enumerate(lines, start=1):
        if line.media is None:
            continue
        held = found.get(line.media)
        if held is None or (line.kind == "image" and held.segment.kind != "image"):
            found[line.media] = _Picture(number, line)
    yield from found.values()


def _starts(picture: _Picture) -> float | None:
    return picture.segment.span.t0


def _distance(picture: _Picture, time_s: float) -> tuple[float, float]:
    """Return how far a frame is from a time, and from its start: of two that show it, the later."""
    start = picture.segment.span.t0 or 0.0
    end = picture.segment.span.t1
    end = start if end is None else max(start, end)
    off = start - time_s if time_s < start else max(0.0, time_s - end)
    return off, abs(time_s - start)


def _files(corpus: Corpus, entry: Entry, pictures: Sequence[_Picture]) -> list[Path]:
    """Return the local files of pictures.

    Raises:
        ToolError: One was not kept.
    """
    files = []
    for picture in pictures:
        try:
            files.append(corpus.media(entry.label, picture.segment.media or ""))
        except (KeyError, FileNotFoundError) as exc:
            raise ToolError(
                f"the picture of {entry.label}L{picture.number} was not kept; read the text instead"
            ) from exc
    return files


def _no_picture(entry: Entry, lines: Sequence[Segment], page: int) -> str:
    """Return why there is no picture of a page, and what to do instead."""
    numbers = [n for n, line in enumerate(lines, start=1) if line.span.page == page]
    if numbers:
        return (
            f"page {page} of {entry.label} has no picture: its text is in lines"
            f" {entry.label}L{numbers[0]} to {entry.label}L{numbers[-1]}; read them"
        )
    pages = sorted({line.span.page for line in lines if line.span.page is not None and line.media})
    if pages:
        more = " and more" if len(pages) > _MOST_NAMED else ""
        listed = ", ".join(map(str, pages[:_MOST_NAMED]))
        return f"{entry.label} has no page {page} with a picture; those are {listed}{more}"
    return f"{entry.label} has no page with a picture; read it, or view_frame where it is a film"


async def _look(aside: Aside, view: _View, question: str) -> ToolAnswer:
    answer = await aside.ask(disarm(question), images=view.files)
    entry = view.entry
    labels = ", ".join(f"{entry.label}L{picture.number}" for picture in view.pictures)
    spans = [picture.segment.span for picture in view.pictures]
    start = spans[0].t0
    seen = f"frame at {clock(start)}" if start is not None else "seen"
    text = f"[{labels}] {seen} in {shown_place(entry, spans)}:\n{disarm(answer.strip())}"
    return ToolAnswer(text=text)
