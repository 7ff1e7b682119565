"""What a file in the cache remembers of a running server, so that other processes find it and end it."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from engine.process import ProcessMark


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """What the state file says of a running server."""

    pid: int
    started: str
    """Start mark of the process, so that a reused number is not taken for it."""
    base_url: str
    model: str
    log: str
    flags: str = ""
    """Hash of its command line but for the port, which tells whether it is what a profile asks for."""
    keeper_pid: int = 0
    """Process that watches over it and starts it again; 0: none does."""
    keeper_started: str = ""
    """Start mark of that process."""
    drain_s: float = 0.0
    """Seconds that requests under way get to come to their end, once it is asked to end."""
    replicas: tuple[str, ...] = ()
    """Addresses of further servers that the same process watches over."""

    @property
    def mark(self) -> ProcessMark:
        """Return its process."""
        return ProcessMark(pid=self.pid, started=self.started)

    @property
    def keeper(self) -> ProcessMark | None:
        """Return the process that watches over it; None: none does."""
        if not self.keeper_pid:
            return None
        return ProcessMark(pid=self.keeper_pid, started=self.keeper_started)


def state_file(name: str, cache: Path) -> Path:
    """Return where the state of a profile's server lies, or will lie."""
    return cache / "engine" / f"{name}.json"


def read_state(file: Path) -> ServerState | None:
    """Return what a state file says; None where there is none, or it is another version's."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return ServerState(**{**data, "replicas": tuple(data.get("replicas", ()))})
    except (OSError, ValueError, TypeError):
        return None


def write_state(file: Path, state: ServerState) -> None:
    """Write a state file; the folder must exist."""
    file.write_text(json.dumps(asdict(state)), encoding="utf-8")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock, so that of two starters at once only one starts an engine."""
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
