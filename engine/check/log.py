"""The log of an engine on this machine: what it wrote while it was checked."""

from __future__ import annotations

import re
from pathlib import Path

_TAIL_LINES = 15
_MAX_BYTES = 1 << 20
_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|oom-kill|No available memory for the cache blocks",
    re.IGNORECASE,
)
"""How torch, CUDA, the kernel and vLLM say it; only what a verdict says hangs on it."""


class ServerLog:
    """What an engine's log says from now on."""

    def __init__(self, path: Path, secrets: tuple[str, ...] = ()) -> None:
        """Begin at the log's present end.

        Args:
            path: The file.
            secrets: Texts that are never shown.
        """
        self._path, self._secrets = path, secrets
        self._start = path.stat().st_size if path.exists() else 0

    def tail(self) -> str:
        """Return its last lines, without secrets."""
        return "\n".join(self._new_text().splitlines()[-_TAIL_LINES:])

    def tells_of_memory(self) -> bool:
        """Tell whether the engine ran out of memory."""
        return _MEMORY.search(self._new_text()) is not None

    def _new_text(self) -> str:
        """Return what was written since; all of it where the log was begun anew by a restart."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, 2)
                start = self._start if size >= self._start else 0
                file.seek(max(start, size - _MAX_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        return text
