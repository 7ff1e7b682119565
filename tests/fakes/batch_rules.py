"""What a fake of a host's batch API does and refuses, and what it keeps of a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the host does, and what goes wrong."""

    max_bytes: int = 100_000_000
    max_files: int = 1000
    keeps_metadata: bool = True
    lists_batches: bool = True
    takes_to_end: bool = True
    """Whether batches end by themselves, when they have been looked at so often as `num_looks` says."""
    num_looks: int = 1
    ends_as: str = "completed"
    page: int = 20
    shuffle: bool = False
    """Give the output in another order."""
    double: bool = False
    """Give each line of the output twice."""
    leave_out: int = 0
    """Leave out every so-manieth line; 0: none."""
    strangers: int = 0
    """Lines in the output that nobody asked for."""
    fail_status: int = 0
    """Put every `fail_every`th line into the error file, with this status."""
    fail_every: int = 3
    invalid_every: int = 0
    """Answer every so-manieth line with what is no JSON."""
    bad_batches: int = 1_000_000
    """Batches, the first ones, to which all of this is done; the rest end as they should."""
    refuse: Mapping[str, int] = field(default_factory=dict)
    """Status by call (`upload`, `begin`, `look`, `list`, `content`), in place of an answer."""
    refuse_times: int = 1_000_000
    forgets: bool = False
    """Know nothing of a batch once it has been begun."""
    lose_answers: Mapping[str, int] = field(default_factory=dict)
    """How often the answer of a call is lost after it has been done, by call."""
    halt: str = ""
    """Call at which to stand still, or `any`: the caller is killed there."""
    halt_before: bool = False
    """Whether that is before it is done, or after."""
    halt_after: int = 0
    """Calls of that kind that pass first."""


@dataclass(slots=True, kw_only=True)
class Kept:
    """What the host knows."""

    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    submitted: list[list[str]] = field(default_factory=list)
    """The `custom_id`s of each batch that it has begun, whatever became of it."""
    contents: Counter[str] = field(default_factory=Counter)
    """How often each request, by its messages, has been taken in a batch."""
    calls: list[str] = field(default_factory=list)
    at_once: int = 0
    halted: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)


class Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
