"""Ranges of cells as sheets name them: `A5:F9`, `B2`, whole columns `B:D`, whole rows `5:9`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_RANGE = re.compile(
    r"\$?([A-Z]{0,3})\$?(\d{0,7})(?:\s*:\s*\$?([A-Z]{0,3})\$?(\d{0,7}))?", re.IGNORECASE
)
_MOST = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """A rectangle of cells; all bounds are inside it."""

    left: int
    right: int
    top: int
    bottom: int

    @classmethod
    def of(cls, text: str) -> Cells | None:
        """Return the range that a text names; None where it names none."""
        found = _RANGE.fullmatch(text.strip())
        if found is None or not (found[1] or found[2]):
            return None
        has_end = found[3] is not None
        if has_end and not (found[3] or found[4]):
            return None
        if not has_end and not (found[1] and found[2]):
            return None
        end_column, end_row = (found[3], found[4]) if has_end else (found[1], found[2])
        columns = (_column(found[1], 1), _column(end_column, _MOST))
        rows = (int(found[2] or 1), int(end_row or _MOST))
        return cls(left=min(columns), right=max(columns), top=min(rows), bottom=max(rows))

    def meets(self, other: Cells) -> bool:
        """Tell whether they have a cell in common."""
        return (
            self.left <= other.right
            and other.left <= self.right
            and self.top <= other.bottom
            and other.top <= self.bottom
        )


def _column(letters: str, otherwise: int) -> int:
    if not letters:
        return otherwise
    number = 0
    for letter in letters.upper():
        number = number * 26 + ord(letter) - 64
    return number
