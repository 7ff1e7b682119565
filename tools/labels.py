"""Labels of documents and lines: how they are written, what they name, and where that stands.

All that tools show of documents goes through here, so that what a document says never looks like a
label of its own, and no argument of a tool reaches more than the corpus.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from connectors.chunker import render
from connectors.control_marks import disarm
from connectors.document import Segment, Span, clock
from engine.tool import ToolError
from tools.corpus import Corpus, Entry

_DOCUMENT = re.compile(r"\[?\s*D(\d{1,9})\s*\]?", re.IGNORECASE)
_LINES = re.compile(
    r"\[?\s*D(\d{1,9})\s*L(\d{1,9})(?:\s*[-–]\s*(?:D(\d{1,9})\s*)?L?(\d{1,9}))?\s*\]?",  # noqa: RUF001 - models write it
    re.IGNORECASE,
)
_LIKE_A_LABEL = re.compile(r"\[(?=D\d+(?:\s*L\d+)?\s*[\]\-–,;])", re.IGNORECASE)  # noqa: RUF001
_MOST_NAMED = 6
_MOST_QUOTED_CHARS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One line of the corpus."""

    entry: Entry
    number: int
    """From 1."""
    segment: Segment

    @property
    def label(self) -> str:
        """Return its label, such as `D3L120`."""
        return f"{self.entry.label}L{self.number}"


def shown_text(text: str) -> str:
    """Return what a document says, in one line and with nothing in it that reads as a mark or a label."""
    return _LIKE_A_LABEL.sub("[ ", disarm(" ".join(text.split())))


def shown_line(label: str, segment: Segment) -> str:
    """Return a line as the model sees it: its label, then its text."""
    return render([replace(segment, text=shown_text(segment.text), label=label)]).rstrip("\n")


def shown_place(entry: Entry, spans: Sequence[Span]) -> str:
    """Return in words where lines stand: path of the document, then page, cells or time."""
    where = place_of(spans)
    return f"{shown_text(entry.path)} ({entry.label}){', ' if where else ''}{where}"


def place_of(spans: Sequence[Span]) -> str:
    """Return page, sheet and cells, or time of lines in order; empty for a text that has none."""
    first, last = spans[0], spans[-1]
    if first.page is not None:
        same = last.page is None or first.page == last.page
        return f"page {first.page}" if same else f"pages {first.page}-{last.page}"
    if first.sheet is not None:
        name = shown_text(first.sheet)
        cells = first.cells or ""
        if last.sheet == first.sheet and last.cells and last.cells != cells:
            cells = f"{cells.partition(':')[0]}:{last.cells.rpartition(':')[2]}"
        return f"{name}!{cells}" if name else f"cells {cells}"
    if first.t0 is not None:
        end = last.t1 if last.t1 is not None else last.t0
        return (
            clock(first.t0) if end in {None, first.t0} else f"{clock(first.t0)}-{clock(end or 0)}"
        )
    return ""


def find_document(corpus: Corpus, name: str) -> Entry:
    """Return the document that a label, a path or a part of a path names.

    Raises:
        ToolError: There is none, or there are several.
    """
    wanted = name.strip()
    if found := _DOCUMENT.fullmatch(wanted):
        return _by_number(corpus, int(found[1]))
    matches = [entry for entry in corpus.entries if entry.path == wanted]
    if not matches and wanted:
        folded = wanted.casefold()
        matches = [entry for entry in corpus.entries if folded in entry.path.casefold()]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        raise ToolError(
            f"no document is called {_quoted(name)}; {_range_of(corpus)}: list them with `documents`"
        )
    named = ", ".join(f"{e.label} {shown_text(e.path)}" for e in matches[:_MOST_NAMED])
    more = f" and {len(matches) - _MOST_NAMED} more" if len(matches) > _MOST_NAMED else ""
    raise ToolError(f"{_quoted(name)} fits {len(matches)} documents: {named}{more}; give a label")


def path_matcher(wanted: str) -> Callable[[str], object]:
    """Return what tells whether a path fits a part of it, or a pattern with * and ?.

    It gives something where the path fits, and None where it does not.
    """
    text = wanted.strip()
    if "*" not in text and "?" not in text:
        return re.compile(re.escape(text), re.IGNORECASE).search
    # Its translation takes no longer for many stars in a row. A bracket is a bracket here.
    pattern = fnmatch.translate(text.replace("[", "[[]"))
    return re.compile(pattern, re.IGNORECASE).fullmatch


def find_documents(corpus: Corpus, name: str) -> list[Entry]:
    """Return all documents that a label, a part of a path, or a pattern with * and ? names.

    Raises:
        ToolError: There is none.
    """
    if _DOCUMENT.fullmatch(name.strip()):
        return [find_document(corpus, name)]
    fits = path_matcher(name)
    matches = [entry for entry in corpus.entries if fits(entry.path) is not None]
    return matches or [find_document(corpus, name)]


def find_lines(corpus: Corpus, label: str, *, most: int) -> list[Place]:
    """Return the lines that a label such as `D3L120`, or a range such as `D3L120-L124`, names.

    Args:
        corpus: Where they are.
        label: As a model writes it.
        most: Lines of a range that are taken.

    Raises:
        ToolError: It is no label, there is no such line, or the range is too long.
    """
    found = _LINES.fullmatch(label.strip())
    if found is None:
        raise ToolError(f"{_quoted(label)} is no label of a line; they look like D3L120")
    entry = _by_number(corpus, int(found[1]))
    first = int(found[2])
    last = int(found[4] or first)
    for number in (first, last):
        if not 1 <= number <= entry.num_lines:
            raise ToolError(f"{entry.label} has no line {number}; {lines_there(entry)}")
    if found[3] is not None and int(found[3]) != int(found[1]):
        raise ToolError(f"{_quoted(label)} runs over two documents; give a range in one")
    if not first <= last < first + most:
        raise ToolError(f"{_quoted(label)} must be a range of 1 to {most} lines, first to last")
    segments = corpus.lines(entry.label)[first - 1 : last]
    return [
        Place(entry=entry, number=number, segment=segment)
        for number, segment in enumerate(segments, start=first)
    ]


def lines_there(entry: Entry) -> str:
    """Return in words which lines a document has."""
    if entry.num_lines == 0:
        return "it has no lines"
    return f"its lines are {entry.label}L1 to {entry.label}L{entry.num_lines}"


def _by_number(corpus: Corpus, number: int) -> Entry:
    entries = corpus.entries
    if 1 <= number <= len(entries) and entries[number - 1].label == f"D{number}":
        return entries[number - 1]
    for entry in entries:
        if entry.label == f"D{number}":
            return entry
    raise ToolError(f"there is no document D{number}; {_range_of(corpus)}")


def _range_of(corpus: Corpus) -> str:
    entries = corpus.entries
    if not entries:
        return "the corpus is empty"
    if len(entries) == 1:
        return f"the only document is {entries[0].label} {shown_text(entries[0].path)}"
    return f"documents are {entries[0].label} to {entries[-1].label}"


def _quoted(text: str) -> str:
    short = text if len(text) <= _MOST_QUOTED_CHARS else f"{text[:_MOST_QUOTED_CHARS]}…"
    return repr(shown_text(short))
