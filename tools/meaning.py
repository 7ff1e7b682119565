"""Search by meaning: the passages of a corpus as vectors, and what they and the words found put together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import islice
from typing import NamedTuple

import numpy as np

from connectors.errors import DiskFull, StorageError
from connectors.index import Hit, Passage
from connectors.vectors import Claimed, Key, VectorStore, key_of
from engine.errors import VectorsUnavailable
from engine.modes.mode import LogFailed, raise_gravest
from engine.tool import Aside

logger = logging.getLogger(__name__)

MOST_PASSAGES = 500_000
"""Passages that vectors are made of and compared with, each time with all: 300 million characters of text or
more. benchmarks/vector_search.py measures what a search of so many takes."""
DEPTH = 50
"""Best passages by words and by meaning that are put together."""
_RANK_OFFSET = 60
_AT_ONCE = 8
_READ_AT_ONCE = 4_096


class Found(NamedTuple):
    """A passage, and how it was found."""

    hit: Hit
    by: str
    """`words`, `meaning`, or both."""


class _Place(NamedTuple):
    """Where a passage stands."""

    document: int
    first: int
    last: int


def fused(by_words: Sequence[Hit], by_meaning: Sequence[Hit], limit: int) -> list[Found]:
    """Return the best passages of two lists, best first: by reciprocal rank fusion.

    Ranks are added up as 1 / (60 + rank), so that scores of different kinds need not be compared. Of
    equals the one that the words found comes first.

    Source: Cormack, Clarke, Buettcher: Reciprocal Rank Fusion outperforms Condorcet and individual Rank
    Learning Methods, SIGIR 2009; 60 is theirs.
    """
    scores: dict[_Place, float] = {}
    hits: dict[_Place, Hit] = {}
    ways: dict[_Place, list[str]] = {}
    for way, found in (("words", by_words), ("meaning", by_meaning)):
        for rank, hit in enumerate(found, start=1):
            place = _Place(hit.document, hit.first, hit.last)
            hits.setdefault(place, hit)
            scores[place] = scores.get(place, 0.0) + 1 / (_RANK_OFFSET + rank)
            ways.setdefault(place, []).append(way)
    best = sorted(scores, key=lambda place: -scores[place])[:limit]
    return [Found(hits[place], " and ".join(ways[place])) for place in best]


class Meanings:
    """The passages of one corpus as vectors; those that nobody has paid for yet are made when first needed."""

    def __init__(self, store: VectorStore, passages: Callable[[], Iterator[Passage]]) -> None:
        """Make nothing yet.

        Args:
            store: Where vectors are.
            passages: Yields the passages of the corpus, the same each time.
        """
        self._store, self._of_corpus = store, passages
        self._one_at_a_time = asyncio.Lock()
        self._places: list[_Place] = []
        self._keys: list[Key] = []
        self._numbers: np.ndarray[tuple[int], np.dtype[np.int64]] | None = None
        self.has_too_many = False
        """Whether the corpus has more passages than are searched by meaning: then nothing is paid for it."""

    async def nearest(
        self, query: str, aside: Aside, *, among: Collection[int] | None = None
    ) -> list[Hit]:
        """Return the passages nearest to a query in meaning, nearest first; none where there are too many.

        Args:
            query: Anything.
            aside: Makes texts into vectors, at the request's cost.
            among: Documents to look in; all where None.

        Raises:
            EngineError: Vectors cannot be read or made; passes through the tool.
        """
        async with self._one_at_a_time:
            if self._numbers is None and not self.has_too_many:
                await self._prepare(aside)
        if self._numbers is None or not query.strip():
            return []
        (vector,) = await aside.embed([query], are_queries=True)
        return await asyncio.to_thread(self._nearest, vector, among)

    def _nearest(self, vector: Sequence[float], among: Collection[int] | None) -> list[Hit]:
        assert self._numbers is not None
        numbers, places = self._numbers, self._places
        if among is not None:
            kept = [n for n, place in enumerate(places) if place.document in among]
            numbers, places = numbers[kept], [places[n] for n in kept]
        found = self._store.nearest(vector, numbers, DEPTH)
        return [Hit(**places[number]._asdict(), score=score) for number, score in found]

    def _passages(self) -> Iterator[Passage]:
        # Hosts refuse blank texts.
        return (passage for passage in self._of_corpus() if passage.text.strip())

    async def _prepare(self, aside: Aside) -> None:
        if not self._keys:
            await asyncio.to_thread(self._list)
        if self.has_too_many:
            return
        left: Sequence[Key] = self._keys
        while left:
            async with self._claiming(left) as claimed:
                if claimed.own:
                    await self._make(claimed.own, aside)
            # Where one of the others fails, this search takes over what is left.
            await claimed.others_end()
            left = claimed.others
        self._numbers = await asyncio.to_thread(self._store.numbers, self._keys)

    @asynccontextmanager
    async def _claiming(self, keys: Sequence[Key]) -> AsyncIterator[Claimed]:
        async with AsyncExitStack() as stack:
            try:
                claimed = await stack.enter_async_context(self._store.claiming(keys))
            except DiskFull as exc:
                # Of this machine: no request would get further.
                raise LogFailed(str(exc)) from exc
            except StorageError as exc:
                # Told to the model it would answer without what it could not find.
                raise VectorsUnavailable(
                    f"search.vectors: those in the sink cannot be read: {exc}"
                ) from exc
            yield claimed

    def _list(self) -> None:
        places: list[_Place] = []
        keys: list[Key] = []
        for passage in self._passages():
            if len(keys) == MOST_PASSAGES:
                self.has_too_many = True
                logger.warning(
                    "the corpus has more than %d passages; it is searched by words only",
                    MOST_PASSAGES,
                )
                return
            places.append(_Place(passage.document, passage.first, passage.last))
            keys.append(key_of(_said(passage)))
        self._places, self._keys = places, keys

    async def _make(self, own: Sequence[Key], aside: Aside) -> None:
        """Have vectors made of these passages, and keep them call by call."""
        left = set(own)
        batch: dict[Key, str] = {}
        calls: list[dict[Key, str]] = []
        async for passage in _streamed(self._passages()):
            text = _said(passage)
            key = key_of(text)
            if key in left:
                left.remove(key)
                batch[key] = text
            if len(batch) == self._store.texts_per_call:
                calls.append(batch)
                batch = {}
            if len(calls) == _AT_ONCE:
                await self._called(calls, aside)
                calls = []
        await self._called([*calls, *([batch] if batch else [])], aside)

    async def _called(self, calls: Sequence[dict[Key, str]], aside: Aside) -> None:
        async def one(texts: dict[Key, str]) -> None:
            vectors = await aside.embed(list(texts.values()))
            try:
                await asyncio.to_thread(self._store.put, dict(zip(texts, vectors, strict=True)))
            except StorageError as exc:
                # Told to the model it would be paid for again with every search.
                raise LogFailed(f"vectors are paid for and cannot be kept: {exc}") from exc

        # All come to their end before one that failed is told: what was paid for is kept.
        raise_gravest(await asyncio.gather(*map(one, calls), return_exceptions=True))


def _said(passage: Passage) -> str:
    """Return what stands for a passage: its lines, under the heading or the names of columns they belong to."""
    if not passage.heading or passage.text.startswith(passage.heading):
        return passage.text
    return f"{passage.heading}\n{passage.text}"


async def _streamed(passages: Iterable[Passage]) -> AsyncIterator[Passage]:
    """Yield passages, read in a thread some thousands at a time."""
    left = iter(passages)
    while some := await asyncio.to_thread(lambda: list(islice(left, _READ_AT_ONCE))):
        for passage in some:
            yield passage
