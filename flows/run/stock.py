"""The answers that a cache or a sink holds: how many, of what, and clearing them."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from config.errors import ConfigError
from connectors.errors import StorageError
from connectors.storage import Storage, open_storage
from flows.run.answers import Answer, as_line, checked, run_time
from flows.run.begin import SINK_FILE
from flows.run.cache import CACHE_FILE, FOLDERS, check_layout
from flows.run.claims import require_idle
from flows.run.job import Options, load_config
from flows.run.ledger import ANSWERS
from flows.run.registry import open_sink

_AT_ONCE = 16
_MOST_TRIES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """Where answers are held."""

    kind: Literal["cache", "sink"]
    storage: Storage

    @property
    def folders(self) -> Sequence[str]:
        """Return the folders that hold answers."""
        return FOLDERS if self.kind == "cache" else (ANSWERS,)


def open_stock(pipeline: str | None, cache: str | None, sink: str | None) -> Stock:
    """Return the cache or sink at an address, or that of a pipeline: its cache, where it has one.

    Raises:
        ConfigError: None or several are named, or what is there is none.
        StorageError: It cannot be reached.
    """
    if sum(name is not None for name in (pipeline, cache, sink)) != 1:
        raise ConfigError("which answers? give one of: a pipeline, --cache URL, --sink URL")
    if sink is not None:
        return _checked(Stock(kind="sink", storage=open_sink(sink).storage))
    if cache is not None:
        return _checked(Stock(kind="cache", storage=open_storage(cache)))
    config = load_config(str(pipeline), Options())
    url = config.cache or config.sink
    if url is None:
        raise ConfigError(f"{pipeline} names neither a cache nor a sink; give --cache or --sink")
    kind: Literal["cache", "sink"] = "cache" if config.cache else "sink"
    return _checked(Stock(kind=kind, storage=open_storage(url, config.access_to(url))))


def _checked(stock: Stock) -> Stock:
    """Return the stock.

    Raises:
        ConfigError: There is none at its address.
    """
    url = stock.storage.url
    held = stock.storage.find(CACHE_FILE if stock.kind == "cache" else SINK_FILE)
    if held is None:
        raise ConfigError(f"there is no {stock.kind} at {url!r}; check the address")
    if stock.kind == "cache":
        check_layout(url, held.data)
    return stock


@dataclass(slots=True)
class Tally:
    """Answers, counted."""

    num_answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None

    def add(self, answer: Answer) -> None:
        """Count one more."""
        usage = answer.result.usage
        self.num_answers += 1
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        if answer.result.cost_usd is not None:
            self.cost_usd = (self.cost_usd or 0.0) + answer.result.cost_usd

    def as_json(self) -> dict[str, Any]:
        """Return the counts by name."""
        return {
            "answers": self.num_answers,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cost_usd": None if self.cost_usd is None else round(self.cost_usd, 6),
        }


@dataclass(slots=True)
class Stats:
    """What a stock holds."""

    total: Tally = field(default_factory=Tally)
    by_question: dict[tuple[str, str], Tally] = field(default_factory=lambda: defaultdict(Tally))
    """By stage and model."""
    num_objects: int = 0
    num_bytes: int = 0
    num_strange: int = 0
    """Lines that are no answers."""
    runs: set[str] = field(default_factory=set)
    """Those that have paid."""

    def as_json(self) -> dict[str, Any]:
        """Return the figures, the largest stages first; times are the beginnings of the runs that paid."""
        times = sorted(filter(None, map(run_time, self.runs)))
        groups = sorted(self.by_question.items(), key=lambda item: (-item[1].num_answers, item[0]))
        return {
            **self.total.as_json(),
            "objects": self.num_objects,
            "bytes": self.num_bytes,
            "unreadable": self.num_strange,
            "oldest": times[0].isoformat() if times else None,
            "newest": times[-1].isoformat() if times else None,
            "stages": [
                {"stage": stage, "model": model, **tally.as_json()}
                for (stage, model), tally in groups
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which answers are meant; all where nothing is said."""

    older_than_days: float | None = None
    """By when the run that paid began; answers of which that is not known are not meant."""
    stage: str | None = None

    @property
    def is_all(self) -> bool:
        """Tell whether all answers are meant, and what is none too."""
        return self == Choice()

    def fits(self, answer: Answer) -> bool:
        """Tell whether an answer is meant."""
        if self.stage is not None and answer.result.stage != self.stage:
            return False
        if self.older_than_days is None:
            return True
        began = run_time(answer.run)
        limit = datetime.now(UTC) - timedelta(days=self.older_than_days)
        return began is not None and began < limit


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """One object of a stock."""

    path: str
    etag: str
    size_bytes: int
    answers: Sequence[Answer]
    num_strange: int


def stats_of(stock: Stock, choice: Choice | None = None) -> Stats:
    """Return the figures of the answers that are meant.

    Raises:
        StorageError: They cannot be read.
    """
    choice = choice or Choice()
    found = Stats()
    for held in _each(stock, lambda path: _read(stock, path)):
        if held is None:
            continue
        meant = [answer for answer in held.answers if choice.fits(answer)]
        for answer in meant:
            found.total.add(answer)
            found.by_question[answer.result.stage, answer.result.model].add(answer)
            found.runs.add(answer.run)
        if len(meant) == len(held.answers):
            found.num_bytes += held.size_bytes
        else:
            found.num_bytes += sum(len(as_line(answer)) for answer in meant)
        found.num_objects += 1
        found.num_strange += held.num_strange
    return found


def clear(stock: Stock, choice: Choice) -> int:
    """Remove the answers that are meant, and return how many there were.

    The sink's tables stay as they are.

    Raises:
        SinkInUse: A run is at work on the sink.
        StorageError: They cannot be read or removed.
    """
    if stock.kind == "sink":
        require_idle(stock.storage)
    return sum(_each(stock, lambda path: _clear(stock, path, choice)))


def _each(stock: Stock, work: Callable[[str], Any]) -> Iterator[Any]:
    """Yield what `work` makes of each object of the stock."""
    paths = (
        item.path
        for folder in stock.folders
        for item in stock.storage.list(folder)
        if item.path.endswith(".jsonl")
    )
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        # In batches: a large stock is not to be in memory.
        while batch := list(itertools.islice(paths, 8 * _AT_ONCE)):
            yield from threads.map(work, batch)


def _read(stock: Stock, path: str) -> _Held | None:
    held = stock.storage.find(path)
    if held is None:
        return None
    lines = [line for line in held.data.decode(errors="replace").split("\n") if line]
    answers = [answer for line in lines if (answer := checked(line)) is not None]
    return _Held(
        path=path,
        etag=held.etag,
        size_bytes=len(held.data),
        answers=answers,
        num_strange=len(lines) - len(answers),
    )


def _clear(stock: Stock, path: str, choice: Choice) -> int:
    for _ in range(_MOST_TRIES):
        held = _read(stock, path)
        if held is None:
            return 0
        left = [answer for answer in held.answers if not choice.fits(answer)]
        num_cleared = len(held.answers) - len(left)
        if choice.is_all:
            stock.storage.delete(path)
            return num_cleared
        if not num_cleared or _put(stock.storage, held, left):
            return num_cleared
    uri = stock.storage.uri(path)
    raise StorageError(f"{uri} is written by others all the time; try again later", uri=uri)


def _put(storage: Storage, held: _Held, answers: Iterable[Answer]) -> bool:
    data = "".join(map(as_line, answers)).encode()
    return storage.put_if_match(held.path, data, held.etag) is not None


def shown(stock: Stock, stats: Stats) -> Mapping[str, Any]:
    """Return what a stock holds, for a machine."""
    return {"kind": stock.kind, "url": stock.storage.url, **stats.as_json()}
