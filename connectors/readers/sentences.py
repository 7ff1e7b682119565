"""Splits running text into sentences with their offsets, for the readers of prose."""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_SENTENCE_CHARS = 600
"""A longer sentence is cut at a word boundary, so that a citation stays small."""

_END = re.compile(
    r"[.!?\u2026]+[\"'\u201d\u2019\u00bb)\]]*(?=\s)"  # Latin: the mark, closing quotes, then space
    r"|[\u3002\uff01\uff1f\uff61][\u300d\u300f\u201d\uff09]*"  # CJK: no space needed
    r"|[\u061f\u06d4]+(?=\s)"  # Arabic question mark and full stop
)
_ABBREVIATED = (
    "mr mrs ms dr prof st jr sr vs etc e.g i.e cf al fig figs eq no nos vol pp ed eds inc ltd co "
    "corp dept est approx sec art ch bzw z.b d.h ca nr usw u.s u.k a.m p.m jan feb mar apr jun jul "
    "aug sep sept oct nov dec"
)
_ABBREVIATIONS = frozenset(_ABBREVIATED.split())
_LAST_WORD = re.compile(r"[\w.]*\w$")


def split_sentences(text: str, max_chars: int = MAX_SENTENCE_CHARS) -> Iterator[tuple[int, int]]:
    """Yield start and end offsets of the sentences of one paragraph, in order.

    The spans cover all of the text but white space between them; none is longer than `max_chars`.
    """
    start = 0
    for match in _END.finditer(text):
        if _is_end(text, start, match):
            yield from _bounded(text, start, match.end(), max_chars)
            start = match.end()
    yield from _bounded(text, start, len(text), max_chars)


def _is_end(text: str, start: int, match: re.Match[str]) -> bool:
    if not match.group().startswith(".") or match.group().startswith(".."):
        return True
    following = text[match.end() :].lstrip()[:1]
    if following.islower() or following in {",", ";"}:
        return False
    word = _LAST_WORD.search(text[max(start, match.start() - 24) : match.start()])
    if word is None:
        return True
    # An initial such as `J.`, or a known abbreviation. A lone number ends a list mark: `3. Take`.
    is_initial = len(word.group()) == 1 and word.group().isupper()
    is_list_mark = (
        word.group().isdigit() and not text[start : match.start() - len(word.group())].strip()
    )
    return not (is_initial or is_list_mark or word.group().lower() in _ABBREVIATIONS)


def _bounded(text: str, start: int, end: int, max_chars: int) -> Iterator[tuple[int, int]]:
    """Yield the span without outer white space, cut into pieces where it is too long."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    while end - start > max_chars:
        space = text.rfind(" ", start + max_chars // 2, start + max_chars + 1)
        cut = space if space > 0 else start + max_chars
        yield start, cut
        start = cut
        while start < end and text[start].isspace():
            start += 1
    if end > start:
        yield start, end


def one_line(text: str) -> str:
    """Return the text with single blanks for its white space, and without unprintable characters."""
    printable = (char if char.isprintable() or char.isspace() else "" for char in text)
    return " ".join("".join(printable).split())
