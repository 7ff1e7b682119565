"""Characters back in their places, where a page is drawn twice."""

import pytest

from connectors.readers.pdf_order import Glyph, mend_order


def _glyphs(*pieces):
    """Glyphs one unit wide, from pairs of a place and a text; a blank in a text is one glyph."""
    return [
        Glyph(char, start + at, start + at + 1)
        for start, text in pieces
        for at, char in enumerate(text)
    ]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([(0, "53.7")], "53.7"),
        ([(0, "two words")], "two words"),
        # The full stop was drawn last.
        ([(0, "53"), (3, "7"), (2, ".")], "53.7"),
        ([(0, "53"), (3, " 7"), (2, ".")], "53. 7"),
        # A word's second copy lies where the first does.
        ([(0, "Titan"), (0.1, "Titan"), (6, "19M42")], "Titan 19M42"),
        # Another character over it is no copy.
        ([(0, "a"), (0.1, "^")], "a^"),
        ([(0, "H"), (2, "ft"), (1, "e"), (4, "y")], "Hefty"),
    ],
)
def test_line_reads_as_the_page_shows_it(pieces, expected):
    assert mend_order(_glyphs(*pieces), 2) == expected


def test_nothing_is_lost_when_there_are_no_copies():
    assert mend_order(_glyphs((10, "c"), (0, "a"), (5, "b")), 2) == "a b c"
    assert mend_order([], 2) == ""


def test_ligature_keeps_its_letters():
    word = [
        Glyph("e", 0, 1),
        Glyph("f", 1, 3),
        Glyph("f", 1, 3),
        Glyph("i", 1, 3),
        Glyph("x", 3, 4),
    ]
    assert mend_order(word, 2) == "effix"
    assert mend_order([*word, *word], 2) == "effix"
