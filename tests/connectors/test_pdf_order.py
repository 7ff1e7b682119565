"""Characters back in their places, where a page is drawn twice."""

import pytest

from connectors.readers.pdf_order import Glyph, mend_order, part_words


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


def _spread(*words, gap, blank):
    """Glyphs one unit wide, `gap` apart, with `blank` between words and no character for it."""
    glyphs, x = [], 0.0
    for word in words:
        for char in word:
            glyphs.append(Glyph(char, x, x + 1))
            x += 1 + gap
        x += blank - gap
    return glyphs


@pytest.mark.parametrize("gap", [-0.2, 0.0, 0.1, 1.5])
def test_words_are_parted_when_the_gap_between_them_is_wide_for_their_line(gap):
    glyphs = _spread("Boric", "acid", "and", "lead", gap=gap, blank=gap + 0.3)
    assert part_words(glyphs, 2) == "Boric acid and lead"


def test_words_stay_whole_when_their_gaps_are_alike():
    assert part_words(_spread("Boric", "acid", gap=0.5, blank=0.6), 2) == "Boricacid"
    assert part_words([], 2) == ""


def test_word_stays_whole_when_its_letters_are_set_far_apart_and_others_are_not():
    glyphs = [*_spread("Written,_in", gap=0, blank=0), *_spread("_letter", gap=0.4, blank=0)]
    moved = [
        Glyph(g.char, g.x0 + 11 * (at > 10), g.x1 + 11 * (at > 10)) for at, g in enumerate(glyphs)
    ]
    assert part_words(moved, 2) == "Written,_in_letter"


def test_marks_and_blanks_of_the_layer_are_kept():
    glyphs = _spread("one two", "3.5%", gap=0, blank=0.5)
    assert part_words(glyphs, 2) == "one two 3.5%"
