"""Results that are kept: one JSON file per benchmark, from which benchmarks/plots.py draws."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

_DIGITS = 4


def write_result(
    file: Path,
    benchmark: str,
    measured_on: Mapping[str, object],
    *,
    facts: Mapping[str, object],
    rows: Sequence[Mapping[str, object]],
) -> None:
    """Write what a benchmark found, with the machine, commit and command that made it.

    Args:
        file: Where to.
        benchmark: Name of its module.
        measured_on: As `machine.machine` gives it.
        facts: What holds for all arms.
        rows: One per arm, its name under `arm`; written as `name`.
    """
    machine = {key: value for key, value in measured_on.items() if key != "commit"}
    arms = [
        {"name": row["arm"], **{key: _short(value) for key, value in row.items() if key != "arm"}}
        for row in rows
    ]
    result = {
        "benchmark": benchmark,
        "machine": machine,
        "commit": measured_on["commit"],
        "command": command(benchmark),
        "date": datetime.now(UTC).date().isoformat(),
        "arms": arms,
        "facts": {key: _short(value) for key, value in facts.items()},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def command(benchmark: str) -> str:
    """Return the command of this process, without where things lie on this machine."""
    given = sys.argv[1:]
    kept = [
        word
        for before, word in zip(["", *given], given, strict=False)
        if not word.startswith(("--json", "--envs")) and before not in {"--json", "--envs"}
    ]
    return " ".join(["python -m", f"benchmarks.{benchmark}", *kept])


def _short(value: object) -> object:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
