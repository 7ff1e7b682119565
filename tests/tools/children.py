"""Children of processes, as /proc tells them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def children_of(pid: int | str = "self") -> set[str]:
    """Return the ids of the processes that any thread of one has started; a thread may end meanwhile."""
    found: set[str] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            found |= {*(task / "children").read_text().split()}
    return found
