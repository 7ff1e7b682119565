"""A tier's limits shared by all workers of a sink: each holds a slice, and together they are within it.

One object per endpoint names the slices, and changes by conditional puts only. Who has to give something
up lowers its own gate first, and then writes what it keeps: the smaller slice, or as much of the larger one as
is still in flight or was called in the last minute. Who joins takes what is free. So the written slices never exceed the tier,
and no gate exceeds its written slice. No clocks of two machines are compared: a holder that has not
changed for a lease, by the own steady clock, has shut its gate by its own, and its slice is free when what
it called last is a minute old. (docs/decisions/0012-one-gate-per-endpoint.md)
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import random
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from connectors.errors import StorageError
from connectors.storage import STATE_PREFIX, Storage
from engine.batch import Limits, Line
from engine.process import start_mark
from flows.run.claims import LEASE_S, Holder, machine_mark

logger = logging.getLogger(__name__)

SLICES = f"{STATE_PREFIX}/slices"

MINUTE_S = 61.0
"""After which nothing that was called counts any more at the host, its way there included."""

SAFE_SHARE = 0.8
"""Share of the lease after which a holder that could not renew it sends nothing more."""

WAIT_S = 1.0
"""Seconds between two looks while a slice is about to change hands."""

_MAX_TRIES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """What one worker may send."""

    holder: Holder
    limits: Limits
    beat_s: float
    """When it was renewed, by the steady clock of the holder's machine."""
    need_tokens: int = 0
    """Tokens of its largest call."""
    has_left: bool = False
    """Whether the worker has ended; the limits are what the host still counts of it."""


class Slices:
    """One worker's part in sharing a tier; a thread renews it."""

    def __init__(
        self,
        storage: Storage,
        line: Line,
        *,
        run_id: str,
        notify: Callable[[str], None] = lambda _: None,
        lease_s: float = LEASE_S,
        minute_s: float = MINUTE_S,
    ) -> None:
        """Prepare to share an endpoint's limits with the other workers of the sink.

        Args:
            storage: The sink.
            line: The endpoint and its gate, which is shut until there is a slice.
            run_id: The worker's run.
            notify: Called with a line where a slice must be waited for.
            lease_s: Seconds without a sign of life after which a slice is given up for lost.
            minute_s: How long a call counts at the host.
        """
        self._storage, self._pace, self._notify = storage, line.pace, notify
        url, pace = line.endpoint.base_url, line.pace
        self._url, self._path = (
            url,
            f"{SLICES}/{hashlib.sha256(url.encode()).hexdigest()[:16]}.json",
        )
        self._lease_s, self._minute_s = lease_s, minute_s
        pid = os.getpid()
        holder = Holder(
            run_id=run_id,
            machine=machine_mark(),
            host=platform.node(),
            pid=pid,
            pid_started=start_mark(pid),
            token=secrets.token_hex(8),
        )
        nothing = part_of(pace.tier, 0, 0)
        self._mine = Slice(holder=holder, limits=nothing, beat_s=0.0)
        self._slices: list[Slice] = []
        self._etag: str | None = None
        self._seen: dict[str, tuple[int, float]] = {}
        self._died: dict[str, float] = {}
        self._gate = nothing
        self._is_settled = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="slices", daemon=True)

    def __enter__(self) -> Slices:
        self._pace.allow(self._mine.limits)
        self._step()
        if self._mine.limits.is_nothing:
            self._tell()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join(self._lease_s)
        self._pace.allow(part_of(self._pace.tier, 0, 0))
        try:
            self._write(self._leaving)
        except StorageError as exc:
            logger.warning("slice of %s not given back, free after a while: %s", self._url, exc)

    def _renew(self) -> None:
        while not self._closed.wait(
            self._lease_s / 6 if self._is_settled else min(WAIT_S, self._lease_s / 6)
        ):
            try:
                self._step()
            except StorageError as exc:
                # The gate shuts by itself when the lease is nearly over.
                logger.warning("slice of %s not renewed: %s", self._url, exc)

    def _step(self) -> None:
        """Renew the slice, and take or give up what is this worker's to.

        Raises:
            StorageError: The sink cannot be reached.
        """
        self._write(self._next)
        until_s = self._mine.beat_s + SAFE_SHARE * self._lease_s
        self._pace.allow(self._gate, until_s)

    def _write(self, make: Callable[[list[Slice]], Slice | None]) -> None:
        """Put the list with what `make` returns in this worker's place, whoever else writes it.

        Raises:
            StorageError: The sink cannot be reached, or others are always faster.
        """
        for number in range(_MAX_TRIES):
            beat_s = time.monotonic()
            others = [one for one in self._slices if self._counts(one)]
            mine = make(others)
            slices = others
            if mine is not None:
                mine = replace(mine, beat_s=beat_s)
                slices = self._placed(mine, others)
            etag = self._put(slices)
            if etag is not None:
                self._slices, self._etag = slices, etag
                self._mine = mine or self._mine
                return
            time.sleep(random.uniform(0, 0.02 * number))
            self._load()
        raise StorageError(
            f"{self._storage.uri(self._path)} was changed by others {_MAX_TRIES} times in a row",
            uri=self._storage.uri(self._path),
        )

    def _put(self, slices: Sequence[Slice]) -> str | None:
        data = json.dumps([asdict(one) for one in slices]).encode()
        if self._etag is None:
            return self._storage.put_if_absent(self._path, data)
        return self._storage.put_if_match(self._path, data, self._etag)

    def _load(self) -> None:
        """Read what is written, and when it was seen for the first time.

        Raises:
            StorageError: The sink cannot be reached, or the object is of another version.
        """
        found = self._storage.find(self._path)
        self._etag = None if found is None else found.etag
        self._slices = [] if found is None else _slices(found.data, self._storage.uri(self._path))
        now = time.monotonic()
        for one in self._slices:
            seen = self._seen.get(one.holder.token)
            if seen is None or seen[0] != one.holder.beat:
                self._seen[one.holder.token] = (one.holder.beat, now)

    def _next(self, others: list[Slice]) -> Slice:
        """Return this worker's slice after this step; the gate is lowered before, if it must be."""
        mine, tier = self._mine, self._pace.tier
        written = next((one for one in self._slices if self._is_mine(one)), None)
        # Taken away, since it was not renewed for so long: the gate has been shut for a minute.
        held = written.limits if written is not None else part_of(tier, 0, 0)
        need = max(mine.need_tokens, self._pace.waiting_tokens or 0)
        live = [
            replace(mine, need_tokens=need) if self._is_mine(one) else one
            for one in self._placed(mine, others)
            if self._is_mine(one) or self._lives(one)
        ]
        fair = fair_parts(tier, [one.need_tokens for one in live])
        target = fair[next(n for n, one in enumerate(live) if self._is_mine(one))]
        for one in others:
            tier = tier.minus(one.limits)
        wanted = target.least(tier)
        # First the own gate is lowered, then only what is still in use is kept of the rest.
        self._pace.allow(held.least(wanted), mine.beat_s + SAFE_SHARE * self._lease_s)
        limits = wanted.most(self._pace.used.least(held))
        self._gate = wanted
        self._is_settled = limits == target and len(live) == len(others) + 1
        holder = replace(mine.holder, beat=mine.holder.beat + 1)
        return replace(mine, holder=holder, limits=limits, need_tokens=need)

    def _leaving(self, _: list[Slice]) -> Slice | None:
        """Return what the host still counts of this worker; None where that is nothing."""
        used = self._pace.used.least(self._mine.limits)
        holder = replace(self._mine.holder, beat=self._mine.holder.beat + 1)
        if not (used.max_in_flight or used.requests_per_minute or used.tokens_per_minute):
            return None
        return replace(self._mine, holder=holder, limits=used, has_left=True)

    def _placed(self, mine: Slice, others: Sequence[Slice]) -> list[Slice]:
        """Return all slices in the order in which their holders joined."""
        order = [one.holder.token for one in self._slices]
        by_token = {one.holder.token: one for one in [*others, mine]}
        return [by_token[token] for token in order if token in by_token] + (
            [] if mine.holder.token in order else [mine]
        )

    def _is_mine(self, one: Slice) -> bool:
        return one.holder.token == self._mine.holder.token

    def _last_sign_s(self, one: Slice) -> float:
        """Return when its holder gave its last sign of life, by this machine's steady clock."""
        if one.holder.machine == self._mine.holder.machine:
            return one.beat_s
        return self._seen.get(one.holder.token, (0, time.monotonic()))[1]

    def _silent_from_s(self, one: Slice) -> float:
        """Return from when on its holder sends nothing for sure."""
        if one.has_left:
            return self._last_sign_s(one)
        over_s = self._last_sign_s(one) + self._lease_s
        if one.holder.has_died:
            died_s = self._died.setdefault(one.holder.token, time.monotonic())
            return min(over_s, died_s)
        return over_s

    def _lives(self, one: Slice) -> bool:
        return not one.has_left and time.monotonic() < self._silent_from_s(one)

    def _counts(self, one: Slice) -> bool:
        """Tell whether a slice of somebody else is not free yet."""
        if self._is_mine(one):
            return False
        return time.monotonic() < self._silent_from_s(one) + self._minute_s

    def _tell(self) -> None:
        self._notify(
            f"engine: all of the limits at {self._url} are in use by other runs of this sink, or were"
            " until a moment ago; waiting for a slice of them"
        )


def part_of(tier: Limits, num: int, index: int) -> Limits:
    """Return one of `num` equal parts of a tier, the first ones larger by one; nothing where num is 0."""

    def part(total: int) -> int:
        return total // num + (index < total % num) if num else 0

    calls, tokens = tier.requests_per_minute, tier.tokens_per_minute
    return Limits(
        max_in_flight=part(tier.max_in_flight),
        requests_per_minute=None if calls is None else part(calls),
        tokens_per_minute=None if tokens is None else part(tokens),
    )


def fair_parts(tier: Limits, needs: Sequence[int]) -> list[Limits]:
    """Return a slice for each worker: equal ones for as many as can use one, nothing for the others.

    Args:
        tier: What there is.
        needs: Tokens of each one's largest call, in the order in which they joined.
    """
    num = len(needs)
    while num > 1 and not _is_enough(part_of(tier, num, num - 1), tier, needs[:num]):
        num -= 1
    return [part_of(tier, num if index < num else 0, index) for index in range(len(needs))]


def _is_enough(least: Limits, tier: Limits, needs: Sequence[int]) -> bool:
    tokens, whole = least.tokens_per_minute, tier.tokens_per_minute
    return not least.is_nothing and (
        tokens is None or whole is None or all(min(need, whole) <= tokens for need in needs)
    )


def _slices(data: bytes, uri: str) -> list[Slice]:
    try:
        return [
            Slice(**{**one, "holder": Holder(**one["holder"]), "limits": Limits(**one["limits"])})
            for one in json.loads(data)
        ]
    except (ValueError, TypeError, KeyError) as exc:
        raise StorageError(
            f"{uri} names no slices of this version; if no other run is at work, delete it", uri=uri
        ) from exc
