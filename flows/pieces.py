"""What `headrace up` has started and left running, as remembered in the state folder."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from config.errors import ConfigError
from config.load import load_surroundings
from engine.process import ProcessMark
from flows.run.log import LOGGERS

Notify = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A process that `up` has started, as remembered."""

    name: str
    """`prefect`, `worker`, `reports` or `engine`."""
    pid: int
    started: str
    address: str
    log: str
    facts: Mapping[str, str]
    """What else the next `up` must know."""

    @property
    def mark(self) -> ProcessMark:
        """Return its process."""
        return ProcessMark(pid=self.pid, started=self.started)


def up_folder() -> Path:
    """Return where `up` keeps its state, logs and Prefect's data; others cannot read it.

    Raises:
        ConfigError: It cannot be written.
    """
    folder = load_surroundings().state.absolute() / "up"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    except OSError as exc:
        raise ConfigError(
            f"state folder {str(folder)!r}: {exc.strerror}; set HEADRACE_STATE to a folder that can"
            " be written"
        ) from exc
    return folder


def running_pieces() -> dict[str, Piece]:
    """Return what `up` has started and is alive, by name."""
    folder = load_surroundings().state.absolute() / "up"
    found = [read_piece(file) for file in sorted(folder.glob("*.piece.json"))]
    return {piece.name: piece for piece in found if piece is not None and piece.mark.is_alive}


def client_environment() -> dict[str, str] | None:
    """Return what the environment of a client of `headrace up` must hold; None where it is down."""
    pieces = running_pieces()
    if "prefect" not in pieces:
        return None
    environment = prefect_environment(up_folder(), pieces["prefect"].address)
    if "reports" in pieces:
        environment["HEADRACE_REPORTS_URL"] = pieces["reports"].address
    return environment


def prefect_environment(folder: Path, prefect: str) -> dict[str, str]:
    """Return the settings of a client of the Prefect server at this address."""
    return {
        "PREFECT_API_URL": f"{prefect}/api",
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_LOGGING_EXTRA_LOGGERS": ",".join(LOGGERS),
        # Our loggers speak at DEBUG for the run's own log; one line per request is not for the page.
        "PREFECT_LOGGING_HANDLERS_API_LEVEL": "INFO",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
    }


def own_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the caller's environment for a server of ours.

    Without Prefect's settings for another server, its key above all; with folders from the root,
    since our servers have working directories of their own.
    """
    kept = {
        name: value
        for name, value in environment.items()
        if not name.startswith("PREFECT_") or name.startswith(("PREFECT_SERVER_", "PREFECT_LOG"))
    }
    surroundings = load_surroundings(environment)
    folders = {
        "HEADRACE_STATE": surroundings.state,
        "HEADRACE_CACHE": surroundings.cache,
        "HEADRACE_ENGINE_VENV": surroundings.engine_venv,
    }
    named = {name: str(folder.absolute()) for name, folder in folders.items()}
    lists = {
        "HEADRACE_PIPELINES": surroundings.pipelines[1:],
        "HEADRACE_PROFILES": surroundings.profiles[1:],
    }
    joined = {
        name: os.pathsep.join(str(folder.absolute()) for folder in listed)
        for name, listed in lists.items()
    }
    return {**kept, **named, **joined}


def piece_file(folder: Path, name: str) -> Path:
    """Return where a piece is remembered."""
    return folder / f"{name}.piece.json"


def read_piece(file: Path) -> Piece | None:
    """Return the piece, alive or not; None where none is remembered."""
    try:
        return Piece(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_piece(folder: Path, piece: Piece) -> None:
    """Remember the piece."""
    file = piece_file(folder, piece.name)
    staged = file.with_suffix(".tmp")
    staged.write_text(json.dumps(asdict(piece)), encoding="utf-8")
    staged.replace(file)


@contextmanager
def lock(folder: Path, notify: Notify) -> Iterator[None]:
    """Hold the lock, so that of two commands at once one waits for the other."""
    with (folder / "lock").open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notify("another headrace up or down is at work; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
