"""What a run will do: the listing, streamed, cut into shards that own their documents for life."""

from __future__ import annotations

import io
import itertools
import queue
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from config.errors import ConfigError
from connectors.document import SourceRef
from connectors.sinks.lake import Lake
from connectors.storage import ObjectInfo, Source
from flows.report.words import counted
from flows.run.assignments import Assignments
from flows.run.commits import Commit, signature
from flows.run.counts import UNANSWERED
from flows.run.globs import glob_regex

AHEAD = 1000
"""Most shards that are planned and not begun: bounds memory, and tells how much there is to do."""

AGAIN = frozenset({"failed", "over_budget"})
"""Outcomes of records that the next run asks about again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """The documents of one shard, in the order of the listing. None are left where all were deleted."""

    shard: str
    sources: tuple[SourceRef, ...]


def list_sources(storage: Source, include: Sequence[str]) -> list[SourceRef]:
    """Return the source objects whose path matches one of the globs, in path order."""
    return sorted(stream_sources(storage, include), key=lambda source: source.path)


def stream_sources(storage: Source, include: Sequence[str]) -> Iterator[SourceRef]:
    """Yield the source objects whose path matches one of the globs, as the listing has them."""
    pattern = re.compile("|".join(f"(?:{glob_regex(glob)})" for glob in include))
    for item in storage.list():
        if pattern.fullmatch(item.path):
            yield _source(storage, item)


def require_match(sources: Sequence[SourceRef], url: str, include: Sequence[str]) -> None:
    """Check that the source at `url` holds something to read.

    Raises:
        ConfigError: It holds nothing that matches.
    """
    if not sources:
        raise ConfigError(
            f"source {url!r} has no object that matches include"
            f" {list(include)}; check the path and the globs"
        )


def _source(storage: Source, item: ObjectInfo) -> SourceRef:
    return SourceRef(
        uri=storage.uri(item.path), path=item.path, size_bytes=item.size_bytes, etag=item.etag
    )


@dataclass(slots=True, kw_only=True)
class SinkState:
    """What the sink holds already."""

    assignments: Assignments
    commits: Mapping[str, Commit]
    open_shards: set[str]
    """Shards that somebody works on, or has left in the middle, or that are to be made anew."""
    work_key: str
    """Of what rows would follow from now, besides the documents' bytes."""
    sensitive_key: str = ""
    """The same for shards with a sensitive document."""
    is_sensitive: Callable[[str], bool] = lambda _: False
    """Whether the document of a path may go to certain engines only, so that it goes to a shard of its kind."""

    def is_current(self, shard: str, sources: Sequence[SourceRef]) -> bool:
        """Tell whether there is nothing to do for a shard with these documents."""
        commit = self.commits.get(shard)
        if shard in self.open_shards:
            return False
        if commit is None:
            return not sources
        return (
            commit.work_key == self._key_of(sources)
            and len(commit.document_keys) == len(sources)
            and commit.signature == signature(sources)
            and not commit.again
            and not AGAIN & commit.outcomes.keys()
        )

    def _key_of(self, sources: Sequence[SourceRef]) -> str:
        is_sensitive = any(self.is_sensitive(source.path) for source in sources)
        return self.sensitive_key if is_sensitive else self.work_key


@dataclass(slots=True, kw_only=True)
class Planner:
    """Cuts a listing into the shards that have something to do, and counts the others.

    A document that the sink knows stays in its shard; new ones go, in the order of the listing, to new
    shards. A known shard whose documents are all gone is planned too, so that its parts become empty.
    """

    sources: Iterable[SourceRef]
    state: SinkState
    documents_per_shard: int
    num_listed: int = 0
    unchanged: dict[str, int] = field(default_factory=dict)
    """Documents of the shards that have nothing to do, by shard."""
    is_done: bool = False
    """Whether the listing has ended."""
    _new: list[SourceRef] = field(default_factory=list)
    _seen: dict[str, list[SourceRef]] = field(default_factory=lambda: defaultdict(list))
    _decided: set[str] = field(default_factory=set)

    def shards(self) -> Iterator[ShardPlan]:
        """Yield the shards that have something to do, while the listing arrives."""
        for source in self.sources:
            self.num_listed += 1
            yield from self._place(source)
            if len(self._new) == self.state.assignments.shards_per_block * self.documents_per_shard:
                yield from self._cut()
        while self._new:
            yield from self._cut()
        # Those of which not all documents are there any more.
        for shard in sorted(self.state.assignments.num_documents.keys() - self._decided):
            yield from self._decide(shard)
        self.is_done = True

    def _place(self, source: SourceRef) -> Iterator[ShardPlan]:
        """Put a document to those of its shard, and yield the shard if that was the last of them."""
        assignments = self.state.assignments
        shard = assignments.shard_of.get(source.path)
        if shard is None:
            self._new.append(source)
            return
        self._seen[shard].append(source)
        if len(self._seen[shard]) == assignments.num_documents[shard]:
            yield from self._decide(shard)

    def _cut(self) -> Generator[ShardPlan, None, None]:
        """Give the new documents shards; those that another run has just given theirs are known now."""
        per, new = self.documents_per_shard, self._new
        kinds: tuple[list[SourceRef], list[SourceRef]] = [], []
        for source in new:
            kinds[self.state.is_sensitive(source.path)].append(source)
        groups = [kind[start : start + per] for kind in kinds for start in range(0, len(kind), per)]
        names = self.state.assignments.add([[source.path for source in group] for group in groups])
        self._new = []
        if names is None:
            for source in new:
                yield from self._place(source)
            return
        for name, group in zip(names, groups, strict=True):
            self._decided.add(name)
            yield ShardPlan(shard=name, sources=tuple(group))

    def _decide(self, shard: str) -> Iterator[ShardPlan]:
        sources = tuple(self._seen.pop(shard, ()))
        self._decided.add(shard)
        if self.state.is_current(shard, sources):
            self.unchanged[shard] = len(sources)
        else:
            yield ShardPlan(shard=shard, sources=sources)


@dataclass(slots=True, kw_only=True)
class Retry:
    """The shards with records that have no answer, with their documents as they were read.

    The source is not looked at: what has changed there is the next run's.
    """

    lake: Lake
    run_id: str
    commits: Mapping[str, Commit]
    num_listed: int = 0
    unchanged: dict[str, int] = field(default_factory=dict)
    """Documents of the shards that have nothing to do, by shard."""
    is_done: bool = False

    def shards(self) -> Iterator[ShardPlan]:
        """Yield the shards.

        Raises:
            ConfigError: A later run has written one of them.
        """
        for shard, commit in sorted(self.commits.items()):
            self.num_listed += len(commit.document_keys)
            if not UNANSWERED & commit.outcomes.keys():
                self.unchanged[shard] = len(commit.document_keys)
                continue
            if commit.run_id > self.run_id:
                raise ConfigError(
                    f"run {self.run_id}: run {commit.run_id} has written its shard {shard} since;"
                    f" ask again with: headrace retry {commit.run_id}"
                )
            yield ShardPlan(shard=shard, sources=self._sources(shard))
        self.is_done = True

    def _sources(self, shard: str) -> tuple[SourceRef, ...]:
        columns = ["uri", "path", "size_bytes", "etag"]
        data = self.lake.storage.get(f"documents/{shard}.parquet")
        rows = pl.read_parquet(io.BytesIO(data), columns=columns).to_dicts()
        return tuple(SourceRef(**row) for row in rows)


_END = object()


def ahead(shards: Iterator[ShardPlan], closed: threading.Event) -> Iterator[ShardPlan]:
    """Yield the shards, planned by a thread that goes on while they are worked on."""
    planned: queue.Queue[object] = queue.Queue(AHEAD)

    def put(item: object) -> bool:
        while not closed.is_set():
            try:
                planned.put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for shard in shards:
                if not put(shard):
                    return
            put(_END)
        except Exception as exc:  # noqa: BLE001 - handed on, and raised by the reader
            put(exc)

    threading.Thread(target=work, name="plan", daemon=True).start()
    while (item := planned.get()) is not _END:
        if isinstance(item, BaseException):
            raise item
        assert isinstance(item, ShardPlan)
        yield item


def limited(
    sources: Iterable[SourceRef], known: Mapping[str, str], limit: int | None
) -> Iterable[SourceRef]:
    """Return the first sources, at most `limit`.

    Raises:
        ConfigError: It would drop documents that the sink already holds.
    """
    if limit is None:
        return sources
    every = iter(sources)
    first = list(itertools.islice(every, limit))
    dropped = [source.path for source in every if source.path in known] if known else []
    if dropped:
        raise ConfigError(
            f"--limit {limit}: the sink already holds {counted(len(dropped), 'document')} beyond it,"
            f" such as {dropped[0]!r}, which would be removed; use another --sink or a larger --limit"
        )
    return first
