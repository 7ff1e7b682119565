"""A command as a process: its seconds, its output, and the peak memory of it and all its children."""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_SAMPLE_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a command printed and took."""

    stdout: str
    seconds: float
    """From the start of the process to its end."""
    peak_mb: float
    """Most memory of the process and its children at one time; shared pages count once."""


def run_measured(
    argv: Sequence[str], *, environment: Mapping[str, str], folder: Path, limit_s: float = 1800.0
) -> Ran:
    """Run a command to its end and return what it took.

    Raises:
        SystemExit: It failed, or took longer than `limit_s`; with the end of what it printed.
    """
    with _output() as out, _output() as err:
        started = time.monotonic()
        process = subprocess.Popen(argv, stdout=out, stderr=err, cwd=folder, env=dict(environment))
        peak = _Peak(process.pid)
        try:
            status = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        seconds = time.monotonic() - started
        peak_mb = peak.stop()
        out.seek(0)
        err.seek(0)
        if status != 0:
            said = out.read()[-1000:] + err.read()[-3000:]
            raise SystemExit(f"{' '.join(argv)} ended with {status} after {seconds:.0f} s: {said}")
        return Ran(stdout=out.read(), seconds=seconds, peak_mb=peak_mb)


def _output() -> IO[str]:
    return tempfile.TemporaryFile("w+", encoding="utf-8")


class _Peak:
    """Looks at a process and its children a few times a second."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak_bytes = pid, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Return the peak in MB."""
        self._ended.set()
        self._thread.join()
        return self._peak_bytes / 1e6

    def _look(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            self._peak_bytes = max(self._peak_bytes, tree_bytes(self._pid))


def tree_bytes(pid: int) -> int:
    """Return the memory of a process and its children, with shared pages once; 0 where it is gone."""
    try:
        rolled = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [
            int(child)
            for task in tasks
            for child in (task / "children").read_text(encoding="ascii").split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    own = next((line for line in rolled.splitlines() if line.startswith("Pss:")), "Pss: 0 kB")
    return int(own.split()[1]) * 1024 + sum(map(tree_bytes, children))
