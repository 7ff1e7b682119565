"""The inputs of a stage over groups or the corpus, in order, on this machine's disk.

Of a million answers memory holds a few bytes each: which group, how many tokens, where cut. What they
say is read back when it is asked about.
"""

from __future__ import annotations

import pickle
import sqlite3
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.run.tree import mark
from flows.run.units import Input

_NO_GROUP = ""
"""Stands in front of the groups' own names, which begin with `=`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Inputs with the same value."""

    value: str | None
    marks: Sequence[int]
    tokens: Sequence[int]
    load: Callable[[range], Sequence[Input]]


class Spool:
    """Takes inputs in any order and gives them back group by group, in order of their identity."""

    def __init__(self, file: Path) -> None:
        self._db = sqlite3.connect(file, isolation_level=None)
        # It is gone with the run: no journal is needed.
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute(
            "CREATE TABLE arrived (grp TEXT, identity BLOB, tokens INTEGER, input BLOB)"
        )
        self._db.execute("BEGIN")

    def close(self) -> None:
        """Give up the file."""
        self._db.close()

    def add(self, group: str | None, one: Input, tokens: int) -> None:
        """Take an input."""
        name = _NO_GROUP if group is None else f"={group}"
        row = (name, one.identity.encode(), tokens, pickle.dumps(one))
        self._db.execute("INSERT INTO arrived VALUES (?, ?, ?, ?)", row)

    def groups(self) -> Iterator[Group]:
        """Yield the groups by value, after all inputs have arrived."""
        self._db.execute(
            "CREATE TABLE ordered AS SELECT * FROM arrived ORDER BY grp, identity, input"
        )
        self._db.execute("DROP TABLE arrived")
        ranges = self._db.execute(
            "SELECT grp, MIN(rowid), MAX(rowid) FROM ordered GROUP BY grp ORDER BY grp"
        ).fetchall()
        for name, first, last in ranges:
            yield self._group(None if name == _NO_GROUP else name[1:], first, last)

    def _group(self, value: str | None, first: int, last: int) -> Group:
        marks, tokens = array("Q"), array("Q")
        rows = self._db.execute(
            "SELECT identity, tokens FROM ordered WHERE rowid BETWEEN ? AND ? ORDER BY rowid",
            (first, last),
        )
        for identity, number in rows:
            marks.append(mark(identity.decode()))
            tokens.append(number)

        def load(run: range) -> list[Input]:
            found = self._db.execute(
                "SELECT input FROM ordered WHERE rowid BETWEEN ? AND ? ORDER BY rowid",
                (first + run.start, first + run.stop - 1),
            )
            # Written by this process a moment ago, to a folder of its own.
            return [pickle.loads(data) for (data,) in found]

        return Group(value=value, marks=marks, tokens=tokens, load=load)
