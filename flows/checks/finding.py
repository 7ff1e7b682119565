"""A finding: what one check saw, and the command or variable that mends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check saw."""

    check: str
    """What was looked at, in one or two words."""
    status: Status
    """`fail`: runs will not work; `warn`: they may not, or something is not at its best."""
    says: str
    mend: str = ""
    """A command to run or a variable to set; empty where nothing is to be done."""


Check = Callable[[], Sequence[Finding]]


def ok(check: str, says: str) -> Finding:
    """Return a finding that asks for nothing."""
    return Finding(check=check, status="ok", says=says)


def warn(check: str, says: str, mend: str = "") -> Finding:
    """Return a finding that a run may trip over."""
    return Finding(check=check, status="warn", says=says, mend=mend)


def fail(check: str, says: str, mend: str) -> Finding:
    """Return a finding that keeps runs from working."""
    return Finding(check=check, status="fail", says=says, mend=mend)
