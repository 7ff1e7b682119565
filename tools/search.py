"""Search over the documents of a request: by words, and by meaning where the pipeline has `search.vectors`."""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from pydantic import Field

from connectors.document import Segment
from connectors.index import Hit, Index, Passage, TantivyIndex, has_quotes, passages_of
from engine.tool import Aside, ToolAnswer, ToolSpec
from tools.corpus import Corpus
from tools.labels import find_documents, shown_line, shown_place
from tools.meaning import DEPTH, Found, Meanings, fused
from tools.tool import Arguments, Scope, spec_of

_MOST_LINE_CHARS = 700
_WORD = re.compile(r"\w+")
_BY_WORDS_ONLY = "by words only, since the corpus is too large for vectors"


class SearchArguments(Arguments):
    """What to look for."""

    query: str = Field(min_length=1)
    """Words that the passage may hold, in any order and form. Words in double quotes must stand there
    exactly so."""
    document: str | None = None
    """Look only here: the label of a document (D3), or a part of the paths of several (reports/2031), or a
    pattern such as *.pdf."""
    limit: int = Field(default=8, ge=1, le=30)
    """Most passages."""


_BY_WORDS = spec_of(
    "search",
    "Finds passages in the documents by their words, best first, and gives their lines with labels"
    " and places. Try other words, or fewer, where it finds nothing.",
    SearchArguments,
)
_BY_BOTH = replace(
    spec_of(
        "search",
        "Finds passages in the documents by their words and by their meaning, best first, and gives their"
        " lines with labels and places, and which of the two found them. Something is always near in"
        " meaning: read whether it is what you look for. A query with words in double quotes is looked"
        " for by words only.",
        SearchArguments,
    ),
    # Vectors of a large corpus take minutes the first time; each call for them has a time-out of its own.
    keeps_own_time=True,
)


class Search:
    """Finds the passages that fit a query best: by BM25, and with vectors by those as well."""

    def __init__(self, scope: Scope, *, open_index: Callable[[Path], Index] = TantivyIndex) -> None:
        """Make the tool; documents are read when it is first called.

        Args:
            scope: What it works on.
            open_index: Returns the index in a folder, or an empty one where there is none.
        """
        self._corpus = scope.corpus
        self._scratch = scope.scratch
        self._open_index = open_index
        self._index: Index | None = None
        self._meanings: Meanings | None = None
        if scope.vectors is not None:
            self._meanings = Meanings(scope.vectors, lambda: _passages(self._corpus))

    @property
    def spec(self) -> ToolSpec:
        """Return what the model is told of it."""
        return _BY_WORDS if self._meanings is None else _BY_BOTH

    async def call(self, arguments: Mapping[str, Any], aside: Aside) -> ToolAnswer:
        """Return the passages.

        Raises:
            ToolError: No document is called so.
        """
        asked = SearchArguments.of(arguments)
        among = await asyncio.to_thread(self._among, asked)
        # What stands in quotes must stand in the passage: no vector can promise that.
        is_near = self._meanings is not None and not has_quotes(asked.query)
        depth = max(DEPTH, asked.limit) if is_near else asked.limit
        by_words = await asyncio.to_thread(self._by_words, asked.query, depth, among)
        is_too_large = False
        if self._meanings is None or not is_near:
            found = [Found(hit, "") for hit in by_words]
        else:
            by_meaning = await self._meanings.nearest(asked.query, aside, among=among)
            found = fused(by_words, by_meaning, asked.limit)
            is_too_large = self._meanings.has_too_many
        if not found:
            return ToolAnswer(text=_nothing(is_narrow=among is not None, is_too_large=is_too_large))
        head = f"{len(found)} passages, best first" if len(found) > 1 else "1 passage"
        head += f", {_BY_WORDS_ONLY}:" if is_too_large else ":"
        shown = await asyncio.to_thread(lambda: [self._shown(one, asked.query) for one in found])
        return ToolAnswer(text="\n\n".join([head, *shown]))

    def _among(self, asked: SearchArguments) -> set[int] | None:
        """Return the numbers of the documents to look in; None for all."""
        if asked.document is None or not asked.document.strip():
            return None
        labels = {entry.label for entry in find_documents(self._corpus, asked.document)}
        return {n for n, entry in enumerate(self._corpus.entries) if entry.label in labels}

    def _by_words(self, query: str, limit: int, among: set[int] | None) -> list[Hit]:
        if self._index is None:
            self._index = _opened(self._corpus, self._scratch, self._open_index)
        return self._index.search(query, limit=limit, among=among)

    def _shown(self, found: Found, query: str) -> str:
        hit = found.hit
        entry = self._corpus.entries[hit.document]
        segments = self._corpus.lines(entry.label)[hit.first - 1 : hit.last]
        words = {_begin(word) for word in _WORD.findall(query)}
        lines = [
            shown_line(f"{entry.label}L{number}", _around(segment, words))
            for number, segment in enumerate(segments, start=hit.first)
        ]
        place = shown_place(entry, [segment.span for segment in segments])
        return "\n".join([f"{place}, found by {found.by}" if found.by else place, *lines])


def _nothing(*, is_narrow: bool, is_too_large: bool) -> str:
    """Return what the model is told where nothing is found."""
    said = "Nothing found. Try other words, fewer words, or none in quotes."
    if is_too_large:
        said += f" It was looked for {_BY_WORDS_ONLY}."
    if is_narrow:
        said += " It was looked for in the named documents only."
    return said


def _around(segment: Segment, words: set[str]) -> Segment:
    """Return the segment, a long one cut to what stands around the first word that was looked for."""
    text = segment.text
    if len(text) <= _MOST_LINE_CHARS:
        return segment
    found = (m.start() for m in _WORD.finditer(text) if _begin(m[0]) in words)
    start = max(0, min(next(found, 0) - _MOST_LINE_CHARS // 3, len(text) - _MOST_LINE_CHARS))
    end = start + _MOST_LINE_CHARS
    cut = f"{'… ' if start else ''}{text[start:end]}{' …' if end < len(text) else ''}"
    return replace(segment, text=cut)


def _begin(word: str) -> str:
    """Return what a word has in common with its other forms, near enough to place a cut."""
    return word.casefold()[:5]


# --- one index for a corpus, whoever asks first ---------------------------------------------------


class _Turn:
    """Held by whoever makes the index of a folder."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


_turns: WeakValueDictionary[Path, _Turn] = WeakValueDictionary()
_turns_lock = threading.Lock()


def _opened(corpus: Corpus, scratch: Path, open_index: Callable[[Path], Index]) -> Index:
    """Return the index of a corpus; made by the first who asks, while the others wait."""
    folder = scratch / f"search-{_key(corpus)}"
    with _turns_lock:
        turn = _turns.setdefault(folder, _Turn())
    with turn.lock:
        if not folder.exists():
            making = folder.with_name(f"{folder.name}.making")
            # Left by a maker that came to no end.
            shutil.rmtree(making, ignore_errors=True)
            open_index(making).add(_passages(corpus))
            making.rename(folder)
        return open_index(folder)


def _key(corpus: Corpus) -> str:
    digest = hashlib.sha256()
    for entry in corpus.entries:
        said: Sequence[object] = (entry.label, entry.path, entry.document_key, entry.num_lines)
        digest.update(repr(said).encode())
    return digest.hexdigest()[:16]


def _passages(corpus: Corpus) -> Iterator[Passage]:
    for number, entry in enumerate(corpus.entries):
        yield from passages_of(number, entry.path, corpus.lines(entry.label))
