"""Where a sequence of inputs is cut so that each run of them fits one request. Pure.

The cut follows from the inputs' identities and, only in how deep it goes, from their tokens: a range that
does not fit is divided at the input of its middle half whose identity hashes lowest. So parts are
balanced, no part is smaller than a quarter of what was divided, a changed input moves no border but
its own, and an input more or less moves few.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate


def mark(identity: str) -> int:
    """Return the number that an identity is compared by, below 2**64."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")


def marks_of(identities: Iterable[str]) -> array[int]:
    """Return the numbers of many identities, eight bytes each."""
    return array("Q", map(mark, identities))


def cut(marks: Sequence[int], tokens: Sequence[int], room: int) -> list[range]:
    """Return the runs of inputs that are shown together, in order; every input is in one.

    Args:
        marks: One number per input, from `mark`.
        tokens: Tokens of each input.
        room: Most tokens of one run. An input that exceeds it alone is a run of its own.
    """
    before = array("Q", accumulate(tokens, initial=0))
    runs: list[range] = []
    open_ranges = [range(len(marks))]
    while open_ranges:
        part = open_ranges.pop()
        if len(part) <= 1 or before[part.stop] - before[part.start] <= room:
            runs.extend([part] if part else [])
            continue
        border = _border(marks, part)
        # Taken from the end, so that runs come in order.
        open_ranges += [range(border, part.stop), range(part.start, border)]
    return runs


def _border(marks: Sequence[int], part: range) -> int:
    """Return where the second half begins: at the lowest mark of the middle half."""
    quarter = len(part) // 4
    low = part.start + max(1, quarter)
    high = max(low + 1, part.stop - quarter)
    middle = marks[low:high]
    return low + middle.index(min(middle))
