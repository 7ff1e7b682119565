"""One line of a checklist."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Topic = Literal["hardware", "compliance", "budget", "latency", "crew", "model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one look at a way of working has found."""

    topic: Topic
    holds: bool | None
    """None where an answer or a fact is missing."""
    reason: str
    """One sentence, with its source where it is a fact."""
    todo: str = ""
    """What to do about it; empty where nothing is."""


def worst(findings: Iterable[Finding]) -> bool | None:
    """Return whether all of them hold; None where that is open."""
    states = {finding.holds for finding in findings}
    if False in states:
        return False
    return None if None in states else True
