"""A supervised child process: started in a group of its own, watched until ready, always ended.

A detached child outlives this process instead: whoever knows its id and start mark ends it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engine.errors import PrerequisiteError

GRACE_S = 3.0
"""Seconds a child gets to end by request; Ctrl-C is to end everything within five."""

_LOG_LINES = 15
_POLL_S = 0.25
_KILL_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to start."""

    name: str
    """What people call it, such as `engine`."""
    argv: Sequence[str]
    cwd: Path
    env: Mapping[str, str]
    log: Path
    """Where output and errors go."""


class ChildProcess:
    """A running child, which ends with this process whatever happens to it, unless detached."""

    def __init__(self, command: Command, *, detached: bool = False) -> None:
        self.command = command
        self._detached = detached
        command.log.parent.mkdir(parents=True, exist_ok=True)
        with command.log.open("wb") as log:
            self._process = subprocess.Popen(
                list(command.argv) if detached else _with_parent(command.argv),
                cwd=command.cwd,
                env=dict(command.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Return the process id, which is also the group's."""
        return self._process.pid

    @property
    def mark(self) -> ProcessMark:
        """Return what another process needs to find it again."""
        return ProcessMark(pid=self.pid, started=start_mark(self.pid))

    def wait(self, limit_s: float | None = None) -> int | None:
        """Wait until it ends by itself, and return its exit code; None where it still runs after `limit_s`."""
        try:
            return self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None

    def wait_ready(
        self,
        is_ready: Callable[[], bool],
        *,
        limit_s: float,
        notify: Callable[[str], None],
        every_s: float = 10.0,
    ) -> float:
        """Wait until `is_ready` and return the seconds it took.

        Raises:
            PrerequisiteError: The child ended, or was not ready within `limit_s`.
        """
        started = told = time.monotonic()
        while not is_ready():
            elapsed = time.monotonic() - started
            if self._process.poll() is not None:
                raise PrerequisiteError(
                    f"{self.command.name} ended with code {self._process.returncode}"
                    f" before it was ready; its log {self.command.log} ends with:\n{self.log_tail()}"
                )
            if elapsed > limit_s:
                self.stop()
                raise PrerequisiteError(
                    f"{self.command.name} was not ready within {limit_s:.0f} s;"
                    f" its log {self.command.log} ends with:\n{self.log_tail()}"
                )
            if time.monotonic() - told > every_s:
                told = time.monotonic()
                notify(
                    f"{self.command.name}: starting for {elapsed:.0f} s (log: {self.command.log})"
                )
            time.sleep(_POLL_S)
        return time.monotonic() - started

    def log_tail(self) -> str:
        """Return the last lines of its log."""
        lines = self.command.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_LOG_LINES:])

    def drain(self) -> None:
        """Ask the child to end in its own time, and only it: its workers end when it tells them to."""
        for one in [self.mark] if self._detached else _children(self.pid):
            if one.is_alive:
                with suppress(ProcessLookupError):
                    os.kill(one.pid, signal.SIGTERM)

    def stop(self, grace_s: float = GRACE_S) -> None:
        """End the child and its group: by request first, by force after `grace_s`."""
        for number, limit_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, _KILL_LIMIT_S)):
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                break
            try:
                self._process.wait(limit_s)
            except subprocess.TimeoutExpired:
                continue
        # The leader may be gone before its children.
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMark:
    """A process of this machine, so that a reused number is not taken for it."""

    pid: int
    started: str
    """As `start_mark` says."""

    @property
    def is_alive(self) -> bool:
        """Tell whether this very process still runs."""
        return bool(self.started) and start_mark(self.pid) == self.started

    def ask_to_end(self, limit_s: float) -> bool:
        """Ask it, and only it, to end; wait for that at most `limit_s`, and return whether it was alive."""
        if not self.is_alive:
            return False
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        _wait_ended([self], limit_s)
        return True

    def stop(self, grace_s: float = GRACE_S) -> bool:
        """End it and all below it, and return whether it was alive.

        Processes below it that lead a group of their own, such as a worker's flow runs, are asked
        first and get `grace_s` to put their things away; then it and its group; then by force.
        """
        if not self.is_alive:
            return False
        family = _descendants(self.pid)
        parents = {one.pid: _field(one.pid, _PARENT) for one in family}
        leading = {one.pid for one in family if _field(one.pid, _GROUP) == one.pid}
        # A group below one of these is its leader's to end.
        first = [one for one in family if one.pid in leading and parents[one.pid] not in leading]
        for one in first:
            _signal_group(one, signal.SIGTERM)
        _wait_ended(first, grace_s)
        # Whatever was started meanwhile is part of the family too.
        family = [self, *{*family, *_descendants(self.pid)}]
        _signal_group(self, signal.SIGTERM)
        _wait_ended(family, grace_s)
        for one in family:
            if one.is_alive:
                with suppress(ProcessLookupError):
                    os.kill(one.pid, signal.SIGKILL)
        _wait_ended(family, _KILL_LIMIT_S)
        return True


_STATE, _PARENT, _GROUP, _STARTED = 0, 1, 2, 19
"""Places of fields in /proc/PID/stat, from the state on."""


def start_mark(pid: int) -> str:
    """Return when a process began, in clock ticks since boot; empty where none runs."""
    fields = _stat(pid)
    # A zombie has ended; it waits only for its parent to notice.
    return "" if not fields or fields[_STATE] in {"Z", "X"} else fields[_STARTED]


def _stat(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return []
    return text.rsplit(")", maxsplit=1)[-1].split()


def _field(pid: int, place: int) -> int:
    fields = _stat(pid)
    return int(fields[place]) if fields else 0


def _descendants(pid: int) -> list[ProcessMark]:
    """Return the live processes below `pid`, parents before children."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            number = int(folder.name)
            children.setdefault(_field(number, _PARENT), []).append(number)
    found, left = [], [pid]
    while left:
        below = children.get(left.pop(0), [])
        left += below
        found += [ProcessMark(pid=one, started=start_mark(one)) for one in below]
    return [one for one in found if one.is_alive]


def _children(pid: int) -> list[ProcessMark]:
    """Return the live processes right below `pid`."""
    return [one for one in _descendants(pid) if _field(one.pid, _PARENT) == pid]


def _signal_group(leader: ProcessMark, number: signal.Signals) -> None:
    if leader.is_alive:
        with suppress(ProcessLookupError):
            os.killpg(leader.pid, number)


def _wait_ended(family: Sequence[ProcessMark], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while any(one.is_alive for one in family) and time.monotonic() < deadline:
        time.sleep(0.05)


def _with_parent(argv: Sequence[str]) -> list[str]:
    """Return a command that runs `argv` and ends it when this process dies, even by SIGKILL."""
    return [sys.executable, "-m", "engine.process", str(os.getpid()), *argv]


def _guard(parent: int, argv: Sequence[str]) -> int:
    """Run the command; kill the whole group once the parent process is gone.

    The kernel's own death signal is tied to the parent's thread and would not reach the workers
    that a server forks, so the parent is looked for once a second.
    """
    child = subprocess.Popen(argv)
    # The group is told to end as a whole; the guard stays to report the child's exit code.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        try:
            return child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            if os.getppid() != parent:
                os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(_guard(int(sys.argv[1]), sys.argv[2:]))
