"""Reads plain text, Markdown and logs: sentences or entries, with their offsets in the decoded text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from connectors.document import Content, Segment, SegmentKind, Span, Unit
from connectors.errors import DocumentRejected
from connectors.readers import VERSIONS, ReaderOptions, no_picture
from connectors.readers.decoding import find_encoding
from connectors.readers.sentences import MAX_SENTENCE_CHARS, one_line, split_sentences

VERSION = VERSIONS["text"]
"""Raised whenever the same file gives other segments; it enters the chunk keys."""

_MAX_BYTES = 256 << 20
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(?P<text>.*?)[ \t]*#*[ \t]*$")
_LIST_ITEM = re.compile(r"[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]+")
_FENCE = re.compile(r" {0,3}(?:```|~~~)")
_RULE = re.compile(r"[ \t]*(?:[-=_*][ \t]*){3,}$|[ \t]*\|?[ \t:|-]*-{3,}[ \t:|-]*$")
_ENTRIES = (
    re.compile(
        r"(?:[A-Z]{4,8}\s+)?[\[(<]?(?:"  # a level may stand in front of the time
        r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}"
        r"|\d{4}/\d{2}/\d{2} \d{2}:\d{2}"
        r"|[A-Z][a-z]{2} [ \d]\d \d{2}:\d{2}:\d{2}"
        r"|\d{1,2}:\d{2}:\d{2}\b)"
        r"|[IWEF]\d{4} \d{2}:\d{2}:\d{2}"  # glog and klog
        r"|\S+ \S+ \S+ \[\d{1,2}/[A-Z][a-z]{2}/\d{4}:\d{2}:\d{2}"  # web servers
    ),
    re.compile(r"\{\s*\""),  # one JSON object a line
)
"""How an entry of a log begins. Lines that follow without one, such as a stack trace, belong to it."""

_LEAST_ENTRIES = 2


class _Passage(NamedTuple):
    """A stretch of the file that is cut into sentences, or kept whole."""

    kind: SegmentKind
    start: int
    end: int
    is_entry: bool = False
    """Whether it is an entry of a log, which stays whole unless it is long."""


def read(path: Path, media_type: str, media_dir: Path, options: ReaderOptions) -> Content:  # noqa: ARG001
    """Return the headings, sentences and table rows of the text.

    Raises:
        DocumentRejected: The file is too large, or nothing but white space.
    """
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise DocumentRejected(
            f"the text has {size:,} bytes; the limit is {_MAX_BYTES:,}: split it",
            reason="too_large",
        )
    encoding = find_encoding(path)
    # Offsets are those of the decoded text as it is: line ends stay as they are.
    text = path.read_bytes().decode(encoding, errors="replace")
    is_markdown = media_type == "text/markdown"
    segments = tuple(
        segment
        for passage in _passages(
            text, is_markdown=is_markdown, entry=None if is_markdown else _entry_form(text)
        )
        for segment in _segments(text, passage)
    )
    if not segments:
        raise DocumentRejected("the file holds nothing but white space", reason="empty")
    return Content(
        media_type=media_type,
        reader=f"text/{VERSION}",
        units=(Unit(name="text", status="read"),),
        segments=segments,
        metadata=(("encoding", encoding),),
    )


preview = no_picture


def _entry_form(text: str) -> re.Pattern[str] | None:
    """Return how entries begin, if the text is a log: half of its lines do, but for indented ones."""
    starts = [line for line in text.splitlines() if line.strip() and not line[0].isspace()]
    for form in _ENTRIES:
        count = sum(form.match(line) is not None for line in starts)
        if count >= _LEAST_ENTRIES and 2 * count >= len(starts):
            return form
    return None


def _passages(text: str, *, is_markdown: bool, entry: re.Pattern[str] | None) -> Iterator[_Passage]:
    """Yield headings, table rows, list items, paragraphs and a log's entries in order."""
    start: int | None = None
    end = 0
    is_entry = False
    for line_start, line_end in _line_spans(text):
        line = text[line_start:line_end]
        whole = _whole_line(line, line_start) if is_markdown else None
        begins = entry is not None and entry.match(line) is not None
        if start is not None and (
            whole or begins or not line.strip() or (_LIST_ITEM.match(line) and not is_entry)
        ):
            yield _Passage("paragraph", start, end, is_entry)
            start = None
        if whole is not None:
            yield whole
        elif line.strip() and not _RULE.match(line):
            if start is None:
                start, is_entry = line_start, begins
            end = line_end
    if start is not None:
        yield _Passage("paragraph", start, end, is_entry)


def _line_spans(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for line in text.splitlines(keepends=True):
        yield start, start + len(line.rstrip("\r\n"))
        start += len(line)


def _whole_line(line: str, start: int) -> _Passage | None:
    """Return a Markdown line that is a passage of its own: a heading, a table row, a fence."""
    heading = _HEADING.match(line)
    if heading is not None:
        return _Passage("heading", start + heading.start("text"), start + heading.end("text"))
    if line.lstrip().startswith("|") and not _RULE.match(line):
        return _Passage("table", start, start + len(line))
    # A fence itself holds no text: an empty passage only ends the paragraph before it.
    return _Passage("paragraph", start, start) if _FENCE.match(line) else None


def _segments(text: str, passage: _Passage) -> Iterator[Segment]:
    passage_text = text[passage.start : passage.end]
    is_short_entry = passage.is_entry and len(passage_text) <= MAX_SENTENCE_CHARS
    is_whole = passage.kind != "paragraph" or is_short_entry
    spans = [(0, len(passage_text))] if is_whole else split_sentences(passage_text)
    for start, end in spans:
        words = one_line(passage_text[start:end])
        if words:
            span = Span(char_start=passage.start + start, char_end=passage.start + end)
            yield Segment(kind=passage.kind, text=words, span=span)
