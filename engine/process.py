"""A supervised child process: started in a group of its own, watched until ready, always ended."""

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

_LOG_LINES = 15
_POLL_S = 0.25


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
    """A running child, which ends with this process whatever happens to it."""

    def __init__(self, command: Command) -> None:
        self.command = command
        command.log.parent.mkdir(parents=True, exist_ok=True)
        with command.log.open("wb") as log:
            self._process = subprocess.Popen(
                _with_parent(command.argv),
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

    def stop(self, grace_s: float = 10.0) -> None:
        """End the child and its group: by request first, by force after `grace_s`."""
        for number, limit_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
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
