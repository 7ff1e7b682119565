"""Counts the tests that try to break out or to lead an agent astray, by kind, as docs/security.md shows them.

`python -m tests.attacks` prints the table, `python -m tests.attacks --write` puts it into the page.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "security.md"
_BEGIN, _END = "<!-- ATTACKS: python -m tests.attacks --write -->", "<!-- /ATTACKS -->"


class _Collected:
    """A plugin that keeps what pytest has found, and has it run nothing."""

    def __init__(self) -> None:
        self.files: dict[str, list[str]] = defaultdict(list)
        """Files of the attempts, one entry each, by kind."""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            mark = item.get_closest_marker("attack")
            if mark is not None:
                self.files[mark.args[0]].append(item.path.relative_to(ROOT).as_posix())


def table() -> str:
    """Return the table of kinds, attempts and tests; each case of a test is an attempt.

    Raises:
        RuntimeError: The tests cannot be collected.
    """
    found = _Collected()
    # Only files that have any: collecting all of them would take a minute.
    files = [str(file) for file in sorted((ROOT / "tests").rglob("test_*.py")) if _has_any(file)]
    asked = ["--collect-only", "-q", "-p", "no:cacheprovider", "-m", "attack", *files]
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        if pytest.main(asked, plugins=[found]) != pytest.ExitCode.OK:
            raise RuntimeError(
                "the tests cannot be collected; run: pytest --collect-only -m attack"
            )
    lines = ["| kind of attempt | tried | succeeded | tests |", "| --- | ---: | ---: | --- |"]
    for kind, files in found.files.items():
        named = ", ".join(f"`{file}`" for file in sorted(set(files)))
        lines.append(f"| {kind} | {len(files)} | 0 | {named} |")
    total = sum(map(len, found.files.values()))
    lines.append(f"| **all** | **{total}** | **0** | |")
    return "\n".join(lines)


def _has_any(file: Path) -> bool:
    return "mark.attack(" in file.read_text(encoding="utf-8")


def shown() -> str:
    """Return the table as the page has it."""
    text = PAGE.read_text(encoding="utf-8")
    return text.partition(_BEGIN)[2].partition(_END)[0].strip()


def main(arguments: Sequence[str]) -> None:
    """Print the table, or put it into the page."""
    made = table()
    if "--write" in arguments:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
        after = rest.partition(_END)[2]
        PAGE.write_text(f"{before}{_BEGIN}\n\n{made}\n\n{_END}{after}", encoding="utf-8")
    sys.stdout.write(f"{made}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
