"""What a number was measured on, and how it is shown."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def machine() -> dict[str, object]:
    """Return the processor, memory, Python and commit; ask before measuring, not after."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    widest = [name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in flags]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {
        "cores": os.cpu_count(),
        "widest": widest[0] if widest else "none",
        "memory_gib": round(memory / 2**30),
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
    }


def show(
    name: str,
    measured_on: Mapping[str, object],
    facts: Mapping[str, object],
    rows: Sequence[Mapping[str, object]],
) -> None:
    """Print the machine, a table of the arms, and everything once more as one line of JSON."""
    out = sys.stdout.write
    out(f"{name}: {', '.join(f'{key} {value}' for key, value in measured_on.items())}\n")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = [columns, *([_cell(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        out("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + "\n")
    for key, value in facts.items():
        out(f"{key}: {_cell(value)}\n")
    found = {"name": name, "machine": dict(measured_on), "arms": list(rows), **facts}
    out(json.dumps(found) + "\n")


def _cell(value: object) -> str:
    return f"{value:,.3g}" if isinstance(value, float) else str(value)
