"""Full-text search over passages of documents, behind a small protocol so that it can be swapped.

A passage is a run of neighbouring lines. The index knows which lines it covers, not what they say: the
lines themselves stay where they are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import tantivy

from connectors.document import Segment
from connectors.errors import DiskFull, StorageError, is_full

_PASSAGE_CHARS = 600
"""A passage ends with the line that brings it to this length."""
_PASSAGE_LINES = 12
_HEADING_CHARS = 300
"""What of a heading is found together with the lines below it; of a table, the names of its columns."""
_HEAP_BYTES = 32 << 20
_MOST_WORDS = 48
"""Words of one query that are looked for; further ones are left out."""
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
"""Characters of scripts that put no space between words: each is a word here."""
_QUOTED = re.compile(r'["“”„«»]([^"“”„«»]*)["“”„«»]')
_NUMBERS = ("document", "first", "last")
_FIELDS = (("exact", "plain"), ("across", "plain"), ("stem", "stem"), ("about", "stem"))
_ABOUT_SHARE = 0.4
_STEM_SHARE = 0.6
"""What a word counts where the path or the heading has it, or another form of it stands there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A run of lines that is found as one."""

    document: int
    """Number of the document; what it means is the caller's."""
    first: int
    """Number of its first line, from 1."""
    last: int
    text: str
    about: str
    """Words that are not in the lines themselves: path and heading."""
    heading: str = ""
    """That which its lines stand under, or the names of a table's columns; empty: none."""
    across: str = ""
    """Its last line and the one behind it, since a quoted phrase may run over the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A passage that was found."""

    document: int
    first: int
    last: int
    score: float
    """BM25; only of use to compare hits of one search."""


class Index(Protocol):
    """Passages that can be searched."""

    def add(self, passages: Iterable[Passage]) -> None:
        """Take passages in; they are found when this has returned.

        Raises:
            StorageError: They cannot be written.
        """

    def search(self, query: str, *, limit: int, among: Collection[int] | None = None) -> list[Hit]:
        """Return the best passages for words in any form, best first.

        Args:
            query: Anything; what stands in double quotes must stand in the passage word by word.
            limit: Most passages.
            among: Documents to look in; all where None.

        Raises:
            StorageError: The index cannot be read.
        """


def passages_of(document: int, path: str, lines: Iterable[Segment]) -> Iterator[Passage]:
    """Yield a document's lines as passages, in order, without those that have no text."""
    heading, run = "", _Run()
    for number, line in enumerate(lines, start=1):
        if line.kind == "heading" or run.is_full:
            behind = "" if line.kind == "heading" else line.text
            yield from run.passage(document, path, heading, behind)
            run = _Run()
        if line.kind == "heading":
            heading = line.text[:_HEADING_CHARS]
        run.add(number, line.text)
    yield from run.passage(document, path, heading)


def has_quotes(query: str) -> bool:
    """Tell whether a query has words in quotes, which must stand in a passage word by word."""
    return any(phrase.strip() for phrase in _QUOTED.findall(query))


class _Run:
    def __init__(self) -> None:
        self._first = self._last = self._chars = 0
        self._texts: list[str] = []

    @property
    def is_full(self) -> bool:
        return self._chars >= _PASSAGE_CHARS or len(self._texts) >= _PASSAGE_LINES

    def add(self, number: int, text: str) -> None:
        if not text:
            return
        self._first = self._first or number
        self._last = number
        self._chars += len(text)
        self._texts.append(text)

    def passage(
        self, document: int, path: str, heading: str, behind: str = ""
    ) -> Iterator[Passage]:
        if self._texts:
            yield Passage(
                document=document,
                first=self._first,
                last=self._last,
                text="\n".join(self._texts),
                about=f"{path} {heading}",
                heading=heading,
                across=f"{self._texts[-1]}\n{behind}" if behind else "",
            )


class TantivyIndex:
    """An index in a folder on this machine's disk, ranked by BM25.

    Queries are built word by word: no text of a query is ever read as a query language.
    """

    def __init__(self, folder: Path) -> None:
        """Open the index in a folder, or make an empty one there.

        Raises:
            StorageError: The folder cannot be written.
        """
        self._folder = folder
        builder = tantivy.SchemaBuilder()
        for name in _NUMBERS:
            builder.add_integer_field(name, stored=True, indexed=name == "document")
        for name, analyzer in _FIELDS:
            builder.add_text_field(name, tokenizer_name=analyzer)
        self._schema = builder.build()
        self._plain = _analyzer()
        self._stem = _analyzer(tantivy.Filter.stemmer("english"))
        with self._mapped():
            folder.mkdir(parents=True, exist_ok=True)
            self._index = tantivy.Index(self._schema, path=str(folder))
            self._index.register_tokenizer("plain", self._plain)
            self._index.register_tokenizer("stem", self._stem)

    def add(self, passages: Iterable[Passage]) -> None:
        """Take passages in; memory does not grow with them.

        Raises:
            StorageError: They cannot be written.
        """
        with self._mapped():
            # One thread: the same passages give the same order of equal scores.
            writer = self._index.writer(heap_size=_HEAP_BYTES, num_threads=1)
        for passage in passages:
            text, about = _spaced(passage.text), _spaced(passage.about)
            found = tantivy.Document(
                document=passage.document,
                first=passage.first,
                last=passage.last,
                exact=text,
                across=_spaced(passage.across),
                stem=text,
                about=about,
            )
            with self._mapped():
                writer.add_document(found)
        with self._mapped():
            writer.commit()
            writer.wait_merging_threads()
            self._index.reload()

    def search(self, query: str, *, limit: int, among: Collection[int] | None = None) -> list[Hit]:
        """Return the best passages, best first.

        Raises:
            StorageError: The index cannot be read.
        """
        if limit < 1 or (among is not None and not among):
            return []
        wanted = self._query(query)
        if wanted is None:
            return []
        if among is not None:
            within = tantivy.Query.term_set_query(self._schema, "document", sorted(among))
            wanted = tantivy.Query.boolean_query([
                (tantivy.Occur.Must, wanted),
                (tantivy.Occur.Must, tantivy.Query.const_score_query(within, 0.0)),
            ])
        with self._mapped():
            searcher = self._index.searcher()
            found = searcher.search(wanted, limit=limit, count=False).hits
            return [_hit(searcher.doc(address), score) for score, address in found]

    def _query(self, query: str) -> tantivy.Query | None:
        """Return what is looked for; None where the query has no words."""
        must: list[tantivy.Query] = []
        budget = _MOST_WORDS
        for phrase in _QUOTED.findall(query):
            words = self._plain.analyze(_spaced(phrase))[:budget]
            budget -= len(words)
            if words:
                must.append(self._phrase(words))
        loose = _QUOTED.sub(" ", query) if must else query
        should: list[tantivy.Query] = []
        for part in loose.split():
            spaced = _spaced(part)
            plain, stems = self._plain.analyze(spaced)[:budget], self._stem.analyze(spaced)[:budget]
            budget -= len(plain)
            # Of a name such as `A320-200`, or words that no space parts, all of it counts most.
            if len(plain) > 1:
                should.append(tantivy.Query.boost_query(self._phrase(plain), 2.0))
            should.extend(self._word("exact", word, 1.0) for word in plain)
            should.extend(self._word("stem", word, _STEM_SHARE) for word in stems)
            should.extend(self._word("about", word, _ABOUT_SHARE) for word in stems)
        if not must and not should:
            return None
        return tantivy.Query.boolean_query([
            *((tantivy.Occur.Must, one) for one in must),
            *((tantivy.Occur.Should, one) for one in should),
        ])

    def _word(self, field: str, word: str, boost: float) -> tantivy.Query:
        # With frequencies, or a word counts the same however often it stands there.
        found = tantivy.Query.term_query(self._schema, field, word, index_option="freq")
        return found if boost == 1 else tantivy.Query.boost_query(found, boost)

    def _phrase(self, words: Sequence[str]) -> tantivy.Query:
        if len(words) == 1:
            return self._word("exact", words[0], 1.0)
        return tantivy.Query.disjunction_max_query([
            tantivy.Query.phrase_query(self._schema, field, list(words))
            for field in ("exact", "across")
        ])

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as exc:
            uri = str(self._folder)
            full = isinstance(exc, OSError) and is_full(exc)
            raise (DiskFull if full else StorageError)(
                f"search index {uri!r} cannot be used: {exc}; check that the disk has room", uri=uri
            ) from exc


def _hit(stored: tantivy.Document, score: float) -> Hit:
    document, first, last = (int(stored[name][0]) for name in _NUMBERS)
    return Hit(document=document, first=first, last=last, score=score)


def _analyzer(*filters: tantivy.Filter) -> tantivy.TextAnalyzer:
    """Return what parts a text into words, without case and accents; more filters come last."""
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    long, lower, fold = (
        tantivy.Filter.remove_long(100),
        tantivy.Filter.lowercase(),
        tantivy.Filter.ascii_fold(),
    )
    for each in (long, lower, fold, *filters):
        builder = builder.filter(each)
    return builder.build()


def _spaced(text: str) -> str:
    """Return the text with blanks around the characters that are words by themselves."""
    if text.isascii():
        return text
    # Half of a pair of surrogates, as a JSON escape may give it, is no text for the index.
    whole = text.encode(errors="replace").decode()
    return _UNSPACED.sub(r" \g<0> ", whole)
