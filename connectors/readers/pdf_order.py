"""Mends lines by the places of their characters. Pure: no PDF library.

Where a page is drawn twice, PDFium drops what it takes for a copy and appends the rest: `53.7` becomes
`53 7.`, and other words stay double. Where each letter is placed by itself, PDFium takes blanks that are
narrower than usual for none: `Boricacid`. The places of the characters still tell.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

_SLACK = 0.3
"""Part of its own width by which a character may reach into its neighbours."""
_WORD_GAP = 0.12
"""Gap between words, in font sizes."""
_EXTRA_GAP = 0.1
"""What a missed blank adds to the usual gap of its line, in font sizes."""
_MIN_GAPS = 8


class Glyph(NamedTuple):
    """One character with its left and right border; blanks have none that counts."""

    char: str
    x0: float
    x1: float


def mend_order(glyphs: Iterable[Glyph], size: float) -> str:
    """Return the text of a line without copies, characters that fit into a gap put there.

    Args:
        glyphs: The line's characters in the order of the text layer, left to right.
        size: Font size, in the unit of the borders.
    """
    placed: list[Glyph] = []
    blank_before: list[bool] = []
    blank, place, is_after_copy = False, -1, False
    for glyph in glyphs:
        if glyph.char.isspace():
            blank = True
            continue
        under = _under(glyph, placed)
        if placed and not blank and not is_after_copy and glyph[1:] == placed[place][1:]:
            # The letters of a ligature share its borders.
            place += 1
        elif any(other.char == glyph.char for other in under):
            blank, is_after_copy = False, True
            continue
        elif not under and placed and glyph.x0 < placed[-1].x0:
            place = next(at for at, other in enumerate(placed) if other.x0 >= glyph.x0)
            blank = blank_before[place] = False
        else:
            place = len(placed)
        placed.insert(place, glyph)
        blank_before.insert(place, blank)
        blank, is_after_copy = False, False
    text = ""
    for at, glyph in enumerate(placed):
        gap = glyph.x0 - placed[at - 1].x1 if at else 0.0
        text += f" {glyph.char}" if blank_before[at] or gap > _WORD_GAP * size else glyph.char
    return text.strip()


def _under(glyph: Glyph, others: Sequence[Glyph]) -> list[Glyph]:
    """Return the characters that stand where this one does."""
    slack = _SLACK * (glyph.x1 - glyph.x0)
    return [
        other for other in others if other.x0 < glyph.x1 - slack and other.x1 > glyph.x0 + slack
    ]


def part_words(glyphs: Sequence[Glyph], size: float) -> str:
    """Return the text of a line with a blank where a gap is much wider than is usual in it.

    Args:
        glyphs: The line's characters, left to right, blanks included.
        size: Font size, in the unit of the borders.
    """
    gaps = {
        at: after.x0 - before.x1
        for at, (before, after) in enumerate(pairwise(glyphs), start=1)
        if not before.char.isspace() and not after.char.isspace()
    }
    wide: set[int] = set()
    if len(gaps) >= _MIN_GAPS:
        least = statistics.median(gaps.values()) + _EXTRA_GAP * size
        wide = {at for at, gap in gaps.items() if gap > least and _is_word(glyphs[at - 1 : at + 1])}
    # A letter between two gaps is not a word: the letters of this one are set far apart.
    alone = {at for at in wide if at + 1 in wide and glyphs[at].char.isalpha()}
    wide -= alone | {at + 1 for at in alone}
    return "".join(f" {g.char}" if at in wide else g.char for at, g in enumerate(glyphs))


def _is_word(glyphs: Sequence[Glyph]) -> bool:
    return all(glyph.char.isalnum() for glyph in glyphs)
