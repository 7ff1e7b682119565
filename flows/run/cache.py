"""Answers that pipelines and sinks share: what one of them was answered, no other one asks again.

Answers lie by what they are about, so that one read brings all that is known of a document:

    cache.json                          says that this is a cache, and of which layout
    documents/<ab>/<document_key>.jsonl answers about a document, one a line
    gathered/<abc>.jsonl                answers that span documents, by the beginning of their request_key

The cache is a help and no record: what cannot be read is a warning and a miss, and a run goes on without
it when it fails. An answer is taken only where it loads and follows the request's schema.
(docs/decisions/0014-answers-shared-by-content.md)
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from config.errors import ConfigError
from connectors.errors import StorageError
from connectors.storage import Access, Storage, open_storage
from engine.modes.dialogue import misfit
from engine.request import Outcome, Request
from flows.run.answers import Answer, as_line, checked
from flows.run.conditions import check_conditions
from flows.run.job import Job

logger = logging.getLogger(__name__)

LAYOUT = 1
CACHE_FILE = "cache.json"
FOLDERS = ("documents", "gathered")

SHARED: frozenset[Outcome] = frozenset({"succeeded", "invalid_output"})
"""Outcomes that are shared. `rejected` is not: it depends on the server's limits, and cost nothing."""

MOST_FAILURES = 3
"""Failures in a row after which a run leaves its cache alone."""
_MOST_TRIES = 30
_PAUSE_S = 0.05
_AT_ONCE = 8


def place_of(answer: Answer) -> str:
    """Return where an answer lies in a cache."""
    return _place(answer.document_key, answer.result.request_key)


def _place(document_key: str, request_key: str) -> str:
    if document_key:
        return f"documents/{document_key[:2]}/{document_key}.jsonl"
    return f"gathered/{request_key[:3]}.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """What lies at one place of a cache."""

    etag: str | None = None
    """None where nothing is there."""
    answers: Mapping[str, Answer] = field(default_factory=dict)
    """By request_key."""
    num_strange: int = 0
    """Lines that are no answers."""
    size_bytes: int = 0


class AnswerCache:
    """A cache, for one run; several threads may use it."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.url = storage.url
        self._failures = 0
        self._lock = threading.Lock()

    def check(self) -> None:
        """Check that this is a cache, or make it one; nothing is to be paid before that.

        Raises:
            ConfigError: It is of another layout, or its store has no conditional puts.
            StorageError: It cannot be reached, read or written.
        """
        try:
            held = self.storage.find(CACHE_FILE)
            if held is None:
                # A key that is not there looks like a bucket that is not there; a listing does not.
                next(iter(self.storage.list("documents")), None)
                check_conditions(self.storage, "cache")
                self.storage.put_if_absent(CACHE_FILE, json.dumps({"layout": LAYOUT}).encode())
                return
        except StorageError as exc:
            message = f"cache {self.url!r} cannot be used: {exc}; or leave `cache` out"
            raise type(exc)(message, uri=exc.uri) from exc
        check_layout(self.url, held.data)

    def read(self, place: str) -> Shelf | None:
        """Return what lies at a place; None where the cache does not answer."""
        if self.is_given_up:
            return None
        try:
            shelf = read_shelf(self.storage, place)
        except StorageError as exc:
            self._failed(exc)
            return None
        self._failures = 0
        if shelf.num_strange:
            logger.warning(
                "cache: %s holds %d lines that are no answers; they are passed over",
                self.storage.uri(place),
                shelf.num_strange,
            )
        return shelf

    def put(self, answers: Iterable[Answer], known: Mapping[str, Shelf]) -> None:
        """Put answers beside those that are there; what fails is a warning.

        Args:
            answers: What is new.
            known: What was found at their places, where it was looked at.
        """
        by_place: dict[str, list[Answer]] = defaultdict(list)
        for answer in answers:
            by_place[place_of(answer)].append(answer)

        def put(place: str) -> None:
            if self.is_given_up:
                return
            try:
                merge(self.storage, place, by_place[place], known.get(place))
                self._failures = 0
            except StorageError as exc:
                self._failed(exc)

        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="cache") as threads:
            list(threads.map(put, by_place))

    @property
    def is_given_up(self) -> bool:
        """Tell whether the cache has failed too often in this run."""
        return self._failures >= MOST_FAILURES

    def _failed(self, exc: StorageError) -> None:
        with self._lock:
            self._failures += 1
            end = "the run goes on without the cache" if self.is_given_up else "a miss"
        logger.warning("cache %s: %s; %s", self.url, exc, end)


def open_cache(job: Job) -> AnswerCache | None:
    """Return the job's cache, checked; None where it has none.

    Raises:
        ConfigError: It is of another layout, or its store has no conditional puts.
        StorageError: It cannot be reached, read or written.
    """
    url = job.pipeline.cache
    if url is None:
        return None
    cache = AnswerCache(storage_of(url, job.pipeline.access_to(url)))
    cache.check()
    return cache


def storage_of(url: str, access: Access | None) -> Storage:
    """Return the storage of the cache at an address."""
    return open_storage(url, access)


def check_layout(url: str, data: bytes) -> None:
    """Check what a cache says of itself.

    Raises:
        ConfigError: It is of another layout.
    """
    try:
        layout = json.loads(data)["layout"]
    except (ValueError, TypeError, KeyError):
        layout = "that cannot be read"
    if layout != LAYOUT:
        raise ConfigError(
            f"cache {url!r} has a layout {layout}, and this version of Headrace writes {LAYOUT};"
            f" choose another cache, or remove {CACHE_FILE} and what lies beside it"
        )


def read_shelf(storage: Storage, place: str) -> Shelf:
    """Return what lies at a place of a cache.

    Raises:
        StorageError: It cannot be read.
    """
    held = storage.find(place)
    if held is None:
        return Shelf()
    lines = held.data.decode(errors="replace").split("\n")
    answers: dict[str, Answer] = {}
    num_strange = 0
    for line in filter(None, lines):
        answer = checked(line)
        if answer is None or answer.result.outcome not in SHARED or place_of(answer) != place:
            num_strange += 1
            continue
        answers[answer.result.request_key] = answer
    return Shelf(
        etag=held.etag, answers=answers, num_strange=num_strange, size_bytes=len(held.data)
    )


def merge(
    storage: Storage, place: str, answers: Iterable[Answer], known: Shelf | None = None
) -> None:
    """Put answers at a place of a cache, beside those that others put there meanwhile.

    Raises:
        StorageError: It cannot be read or written, or others write there without end.
    """
    new = {answer.result.request_key: answer for answer in answers}
    shelf = known
    for _ in range(_MOST_TRIES):
        shelf = shelf or read_shelf(storage, place)
        better = {key: answer for key, answer in new.items() if _is_better(answer, shelf)}
        if not better or put_shelf(storage, place, {**shelf.answers, **better}, shelf.etag):
            return
        shelf = None
        time.sleep(random.uniform(0, _PAUSE_S))
    uri = storage.uri(place)
    raise StorageError(f"{uri} is written by others all the time", uri=uri)


def _is_better(answer: Answer, shelf: Shelf) -> bool:
    """Tell whether an answer takes the place of the one that is there: not a good one's, if it is none."""
    held = shelf.answers.get(answer.result.request_key)
    if held is None or answer.result.outcome == "succeeded":
        return held != answer
    return held.result.outcome != "succeeded" and held != answer


def put_shelf(
    storage: Storage, place: str, answers: Mapping[str, Answer], etag: str | None
) -> bool:
    """Put what lies at a place, and tell whether nobody else has written there meanwhile."""
    data = "".join(as_line(answer) for _, answer in sorted(answers.items())).encode()
    if etag is None:
        return storage.put_if_absent(place, data) is not None
    return storage.put_if_match(place, data, etag) is not None


class Replays:
    """What the cache has for the questions of one shard."""

    def __init__(self, cache: AnswerCache | None) -> None:
        self._cache = cache
        self._shelves: dict[str, Shelf] = {}

    def look(self, document_key: str, request_key: str = "") -> None:
        """Read what the cache has about a document, or about a question that spans them; once."""
        place = _place(document_key, request_key)
        if self._cache is not None and place not in self._shelves:
            shelf = self._cache.read(place)
            if shelf is not None:
                self._shelves[place] = shelf

    def has_looked(self, document_key: str, request_key: str) -> bool:
        """Tell whether there is nothing to be gained from a look."""
        return self._cache is None or _place(document_key, request_key) in self._shelves

    def find(self, document_key: str, request: Request) -> Answer | None:
        """Return the answer that was found to a request, if it is one."""
        shelf = self._shelves.get(_place(document_key, request.request_key))
        found = shelf.answers.get(request.request_key) if shelf else None
        if found is None or found.result.output is None:
            return found
        problem = misfit(request.schema, found.result.output)
        if problem is not None:
            logger.warning(
                "cache: its answer to request %s does not follow the schema (%s) and is passed over",
                request.request_key,
                problem,
            )
            return None
        return found

    def put(self, answers: Iterable[Answer]) -> None:
        """Put what the shard was answered into the cache."""
        if self._cache is None:
            return
        worth = [
            replace(answer, shard="")
            for answer in answers
            # Another engine's answer is none to the same question.
            if answer.result.outcome in SHARED and answer.result.fallback is None
        ]
        if worth:
            self._cache.put(worth, self._shelves)
