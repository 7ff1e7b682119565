"""Watches over servers: starts them, waits, restarts what ends or hangs, and lets them come to their end.

One loop looks at all servers in turn, so that one that is starting keeps no other from being watched.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.errors import PrerequisiteError
from engine.process import ChildProcess, Command

_STOP_S = 10.0
"""Seconds beyond the time to drain until a server is ended by force."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepRule:
    """When a server is started again, and when no more."""

    ready_s: float = 3600.0
    """Most seconds until it answers: a terabyte of weights is read from disk first."""
    every_s: float = 2.0
    """Seconds between two looks."""
    deaf_looks: int = 15
    """Looks in a row without an answer after which a running server counts as hung."""
    first_wait_s: float = 2.0
    """Seconds until the first restart; doubled with each further one."""
    most_wait_s: float = 120.0
    """Most seconds between two starts."""
    max_restarts: int = 5
    """Restarts of one server within `window_s`; at one more the keeper gives up and says why."""
    window_s: float = 3600.0
    """Seconds in which restarts are counted."""
    drain_s: float = 120.0
    """Seconds that requests under way get at the end."""


@dataclass(slots=True, kw_only=True)
class _Kept:
    """One server as its keeper knows it."""

    command: Command
    is_well: Callable[[], bool]
    child: ChildProcess | None = None
    ready: bool = False
    begun: float = 0.0
    start_at: float = 0.0
    num_deaf: int = 0
    restarts: list[float] = field(default_factory=list)


class Keeper:
    """Servers and the loop that watches over them; `stop` ends them in their own time."""

    def __init__(
        self,
        servers: Sequence[tuple[Command, Callable[[], bool]]],
        rule: KeepRule,
        notify: Callable[[str], None],
        on_start: Callable[[int, ChildProcess], None] = lambda _number, _child: None,
    ) -> None:
        """Prepare to keep servers.

        Args:
            servers: Command of each, and what tells whether it answers.
            rule: When one is started again.
            notify: Called with a line whenever something changes.
            on_start: Called with a server's number and its process whenever it has started.
        """
        self._kept = [_Kept(command=command, is_well=is_well) for command, is_well in servers]
        self._rule = rule
        self._notify = notify
        self._on_start = on_start
        self._ended = threading.Event()

    def wait_ready(self) -> None:
        """Start all servers and wait until each answers.

        Raises:
            PrerequisiteError: One ended, or did not answer in time; the message has its log's end.
        """
        for number, kept in enumerate(self._kept):
            self._start(number, kept)
        while not all(kept.ready for kept in self._kept):
            for kept in self._kept:
                self._look_at_first_start(kept)
            self._ended.wait(min(1.0, self._rule.every_s))

    def keep(self) -> None:
        """Watch until `stop` is called from elsewhere, or this thread is interrupted.

        Raises:
            PrerequisiteError: A server had to be restarted too often.
        """
        while not self._ended.wait(self._rule.every_s):
            for number, kept in enumerate(self._kept):
                self._look(number, kept)

    def stop(self) -> bool:
        """End all servers: requests under way get `drain_s`; return whether all ended within it."""
        self._ended.set()
        running = [one.child for one in self._kept if one.child is not None]
        running = [child for child in running if child.wait(0) is None]
        for child in running:
            child.drain()
        if running:
            self._notify(f"engine: ending; requests under way get {self._rule.drain_s:.0f} s")
        deadline = time.monotonic() + self._rule.drain_s + _STOP_S
        while time.monotonic() < deadline and any(child.wait(0) is None for child in running):
            time.sleep(0.1)
        in_time = all(child.wait(0) is not None for child in running)
        for child in running:
            child.stop()
        return in_time

    def _start(self, number: int, kept: _Kept) -> None:
        log = kept.command.log
        if log.exists():
            # What the last one said before it ended is worth more than the room it takes.
            log.replace(log.with_suffix(".previous.log"))
        kept.child = ChildProcess(kept.command)
        kept.ready, kept.num_deaf, kept.begun = False, 0, time.monotonic()
        self._notify(f"{kept.command.name}: starting (log: {log})")
        self._on_start(number, kept.child)

    def _look_at_first_start(self, kept: _Kept) -> None:
        assert kept.child is not None
        code = kept.child.wait(0)
        if code is not None:
            raise PrerequisiteError(
                f"{kept.command.name} ended with code {code} before it was ready; its log"
                f" {kept.command.log} ends with:\n{kept.child.log_tail()}"
            )
        self._take_ready(kept)
        if not kept.ready and time.monotonic() - kept.begun > self._rule.ready_s:
            raise PrerequisiteError(
                f"{kept.command.name} was not ready within {self._rule.ready_s:.0f} s; its log"
                f" {kept.command.log} ends with:\n{kept.child.log_tail()}"
            )

    def _take_ready(self, kept: _Kept) -> None:
        if not kept.ready and kept.is_well():
            kept.ready = True
            seconds = time.monotonic() - kept.begun
            self._notify(f"{kept.command.name}: ready after {seconds:.0f} s")

    def _look(self, number: int, kept: _Kept) -> None:
        if kept.child is None:
            if time.monotonic() >= kept.start_at:
                self._start(number, kept)
            return
        code = kept.child.wait(0)
        if code is not None:
            self._again(kept, f"ended with code {code}")
        elif not kept.ready:
            self._take_ready(kept)
            if not kept.ready and time.monotonic() - kept.begun > self._rule.ready_s:
                self._again(kept, f"did not answer within {self._rule.ready_s:.0f} s")
        elif kept.is_well():
            kept.num_deaf = 0
        else:
            kept.num_deaf += 1
            if kept.num_deaf >= self._rule.deaf_looks:
                self._again(kept, f"did not answer {kept.num_deaf} times in a row")

    def _again(self, kept: _Kept, why: str) -> None:
        """End what is left of a server and settle when it is started again.

        Raises:
            PrerequisiteError: It was restarted too often.
        """
        assert kept.child is not None
        kept.child.stop()
        now = time.monotonic()
        kept.restarts = [at for at in kept.restarts if now - at < self._rule.window_s]
        if len(kept.restarts) >= self._rule.max_restarts:
            raise PrerequisiteError(
                f"{kept.command.name} {why}, after {len(kept.restarts)} restarts within"
                f" {self._rule.window_s:.0f} s; it is left ended. Its log {kept.command.log} ends with:\n"
                f"{kept.child.log_tail()}"
            )
        wait_s = min(self._rule.most_wait_s, self._rule.first_wait_s * 2.0 ** len(kept.restarts))
        kept.restarts.append(now)
        kept.child, kept.start_at = None, now + wait_s
        self._notify(f"{kept.command.name}: {why}; starting it again in {wait_s:.0f} s")
