"""What this machine remembers of its runs, so that commands find a run's sink by its id.

One small JSON file per run below the state folder. The sink holds everything that matters; losing
these files only means naming the sink again.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from config.errors import ConfigError
from config.load import load_surroundings
from connectors.errors import DiskFull, is_full
from connectors.sinks.lake import Lake
from connectors.storage import Access
from engine.process import ProcessMark, start_mark
from flows.run.job import Job

RunState = Literal["running", "interrupted", "ended"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEntry:
    """One run as this machine knows it."""

    run_id: str
    pipeline: str
    source: str
    sink: str
    started: str
    """ISO 8601, UTC."""
    pid: int
    """The process that runs it, or ran it."""
    pid_started: str = ""
    """Start mark of that process, so that a reused number is not taken for it."""
    verdict: str | None = None
    """As in the manifest; `failed: ...` where there is none; None while it runs or was killed."""
    progress: Mapping[str, Any] | None = None
    """The last counts it told of."""
    access: Mapping[str, Any] | None = None
    """How its sink is reached, where the pipeline says so; there are no secrets in it."""

    @property
    def state(self) -> RunState:
        """Return whether it runs, has ended, or was interrupted."""
        if self.verdict is not None:
            return "ended"
        process = ProcessMark(pid=self.pid, started=self.pid_started)
        return "running" if process.is_alive else "interrupted"


def register(job: Job, started: str) -> RunEntry:
    """Remember a run that begins in this process, and return its entry."""
    access = job.pipeline.access_to(job.sink)
    entry = RunEntry(
        run_id=job.run_id,
        pipeline=job.pipeline.name,
        source=job.source,
        sink=job.sink,
        started=started,
        pid=os.getpid(),
        pid_started=start_mark(os.getpid()),
        access=None if access is None else asdict(access),
    )
    return update(entry)


def update(
    entry: RunEntry, *, verdict: str | None = None, progress: Mapping[str, Any] | None = None
) -> RunEntry:
    """Remember what has changed, and return the new entry.

    Raises:
        ConfigError: The state folder cannot be written.
        DiskFull: Its disk is full.
    """
    entry = replace(entry, verdict=verdict or entry.verdict, progress=progress or entry.progress)
    folder = runs_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staged = folder / f".{secrets.token_hex(8)}"
        staged.write_text(json.dumps(asdict(entry)), encoding="utf-8")
        staged.replace(folder / f"{entry.run_id}.json")
    except OSError as exc:
        raise (DiskFull if is_full(exc) else ConfigError)(
            f"state folder {str(folder)!r}: {exc.strerror}; free space, or set HEADRACE_STATE to a"
            " folder that can be written"
        ) from exc
    return entry


def runs_folder() -> Path:
    """Return the folder of the runs' entries and logs."""
    return load_surroundings().state / "runs"


def known_runs() -> list[RunEntry]:
    """Return the runs this machine knows, newest first."""
    entries = [_read(file) for file in runs_folder().glob("*.json")]
    found = [entry for entry in entries if entry is not None]
    return sorted(found, key=lambda entry: entry.run_id, reverse=True)


def _read(file: Path) -> RunEntry | None:
    try:
        return RunEntry(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        # Written by another version, or damaged: the sink still has the run.
        return None


def open_sink(sink: str) -> Lake:
    """Return the lake at `sink`, reached as by this machine's last run there, else by the environment.

    For commands that have no pipeline; the run's own is in its sink.
    """
    access = next((entry.access for entry in known_runs() if entry.sink == sink), None)
    return Lake(sink, None if access is None else Access(**access))


def find_run(run: str | None) -> RunEntry:
    """Return the run with this id or part of it; the latest where None.

    Raises:
        ConfigError: There is none, or more than one.
    """
    runs = known_runs()
    if not runs:
        raise ConfigError(
            "this machine knows no run yet; start one with `headrace run` or `headrace ask`, or"
            " give --sink to look at a run made elsewhere"
        )
    if run is None:
        return runs[0]
    found = [entry for entry in runs if entry.run_id == run] or [
        entry for entry in runs if run in entry.run_id
    ]
    if len(found) == 1:
        return found[0]
    latest = ", ".join(entry.run_id for entry in (found or runs)[:3])
    if found:
        raise ConfigError(f"run {run!r} fits {len(found)} runs, such as {latest}; give more of it")
    raise ConfigError(
        f"run {run!r} is not known on this machine; the latest are {latest}; `headrace status` lists"
        " them; give --sink for a run made elsewhere"
    )
