# ruff: noqa: RUF001 - characters that look alike are what it is about
"""Finds out whether a quote stands in a source, and where. Pure text: no model, no I/O.

A model that answers with a claim names lines and quotes them; what it quotes is looked up here.
Models reproduce text with other case, spaces, dashes, quotation marks and emphasis, so none of
these count, and words may be broken or joined. All else does: each word, in order, each digit, the
signs of a number and of a comparison.

- Numbers: thousands separators (comma, space, apostrophe) and zeros at the end of decimals do not
  count, so 1,234.50 is 1234.5; `4.10` is `4.1` for that reason, but versions and dates such as
  1.2.10 are compared digit by digit. A decimal comma is not a decimal point, and 12 is not in 123,
  1,234 or 12.5.
- A quote may leave out a percent or currency sign that the source has, but not add or change one.
  A minus may neither be added nor left out; where a dash may be a hyphen, a bullet or a range, it
  is none. A quote may begin behind `=`, but not between `<` and a number.
- An ellipsis parts a quote into pieces, which follow one another within a few texts.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from connectors.quote_text import INSIDE_NUMBER, INSIDE_WORD, Gap, tokens

_MAX_TEXTS_APART = 3
"""How many texts further on, at most, a quote may go on behind an ellipsis."""
_MIN_PIECE_WORDS = 2
_ELLIPSIS = re.compile(
    r"[\[(]\s?(?:\.\s?\.\s?\.|…)\s?[\])]|…|(?<!\.)(?<!\.\s)\.\s?\.\s?\.(?:\s?\.){0,3}(?!\s?\.)"
)
"""Longer rows of dots lead to the page numbers of a table of contents."""
_LABEL = r"(?:D\d{1,6})?[A-Z]{1,3}\d{1,6}"
_LEADING_LABEL = re.compile(
    rf"^[ \t\"'“‘*_`>-]*(?:[\[(]\s*{_LABEL}(?:\s*[-–,;]\s*{_LABEL})*\s*[\])]|{_LABEL}\s?[:)\]](?=\s))[\s:*]*",
    re.MULTILINE,
)
_INNER_LABEL = re.compile(rf"\[{_LABEL}\]|\(goes on\)")
_BLOCK_QUOTE = re.compile(r"^[ \t\"'“‘]*>+ ", re.MULTILINE)
_ROW = re.compile(r"(\d{1,9}),")
_HEADS_ROWS = re.compile(r", columns: row\b")


class Quotable:
    """The texts a quote may come from, made ready for searching."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Read the texts once, in time linear to their length.

        Args:
            texts: In reading order. Rows of sheets are told by their heading, or by the numbers of
                the rows beside them: commas between their cells part numbers.
        """
        self._gaps: list[Gap] = [INSIDE_WORD, INSIDE_NUMBER]
        self._between = array("I")
        self._starts = array("Q", [0])
        # By identity: a gap is made once for many places, and its hash is dear.
        codes = {id(INSIDE_WORD): 0, id(INSIDE_NUMBER): 1}
        words: list[str] = []
        for gap, word, inside, num_breaks in tokens(texts, _are_rows(texts)):
            if num_breaks:
                self._starts.extend([len(self._between)] * num_breaks)
            if (code := codes.setdefault(id(gap), len(codes))) == len(self._gaps):
                self._gaps.append(gap)
            self._between.append(code)
            if len(word) > 1:
                self._between.extend([codes[id(inside)]] * (len(word) - 1))
            words.append(word)
        self._chars = "".join(words)
        # A letter stands in every line, so it is told at once where it is no word at all.
        self._letters = {word for word in words if len(word) == 1}
        self._num_texts = len(texts)
        self._starts.append(len(self._chars))

    def find(self, quote: str, among: Collection[int] | None = None) -> range | None:
        """Return the indices of the consecutive texts that the quote stands in.

        Args:
            quote: As a model gives it, with or without a label and quotation marks.
            among: Only runs that touch at least one of these indices; None: all.

        Returns:
            The smallest run, of several the first; None where the quote does not stand.
        """
        asked = None
        if among is not None:
            asked = sorted({index for index in among if 0 <= index < self._num_texts})
            if not asked:
                return None
        forms = _forms(quote)
        for pieces in [[form] for form in forms] + [_pieces(form) for form in forms]:
            needles = [_Needle.of(piece) for piece in pieces]
            if not needles or not all(needle.chars for needle in needles):
                continue
            if len(needles) > 1 and not all(needle.is_piece for needle in needles):
                continue
            if (run := self._smallest(needles, asked)) is not None:
                return run
        return None

    def _smallest(self, needles: Sequence[_Needle], asked: Sequence[int] | None) -> range | None:
        best: range | None = None
        for low, high in self._windows(needles, asked):
            for place in self._places(needles[0], low, high):
                run = self._run(needles, place)
                if run is None or not _touches(run, asked):
                    continue
                if best is None or len(run) < len(best):
                    best = run
                if len(run) == 1:
                    return run
        return best

    def _windows(
        self, needles: Sequence[_Needle], asked: Sequence[int] | None
    ) -> Iterator[tuple[int, int]]:
        """Yield from where to where the first needle may stand, in order, without overlap."""
        if asked is None:
            yield 0, len(self._chars)
            return
        reach = sum(len(needle.chars) for needle in needles) - 1
        texts_apart = _MAX_TEXTS_APART * (len(needles) - 1)
        begun = 0
        for index in asked:
            low = max(begun, self._starts[max(0, index - texts_apart)] - reach)
            end = self._starts[index + 1]
            yield low, end + len(needles[0].chars) - 1
            begun = end

    def _run(self, needles: Sequence[_Needle], place: int) -> range | None:
        """Return the texts from where the first needle stands to where the last one does."""
        end = place + len(needles[0].chars)
        for needle in needles[1:]:
            last = min(self._text_at(end - 1) + _MAX_TEXTS_APART + 1, self._num_texts)
            found = next(self._places(needle, end, self._starts[last]), None)
            if found is None:
                return None
            end = found + len(needle.chars)
        return range(self._text_at(place), self._text_at(end - 1) + 1)

    def _text_at(self, place: int) -> int:
        return bisect_right(self._starts, place) - 1

    def _places(self, needle: _Needle, low: int, high: int) -> Iterator[int]:
        """Yield where the needle stands between two places, in order."""
        find, gaps, between = self._chars.find, self._gaps, self._between
        chars, size = needle.chars, len(needle.chars)
        if size == 1 and chars not in self._letters:
            return
        place = find(chars, low, high)
        while place >= 0:
            if (
                gaps[between[place]].begins
                and gaps[between[place + size]].ends
                and self._agrees(needle, place)
            ):
                yield place
            place = find(chars, place + 1, high)

    def _agrees(self, needle: _Needle, place: int) -> bool:
        """Tell whether what stands between the characters is the same there."""
        codes = self._between[place : place + len(needle.chars) + 1]
        first, last = self._gaps[codes[0]], self._gaps[codes[-1]]
        return (
            needle.gaps[0].may_begin(first, is_number=needle.chars[0].isdigit())
            and needle.gaps[-1].may_end(last)
            and all(
                wanted is source or wanted.agrees(source)
                for wanted, source in zip(
                    needle.gaps[1:-1], map(self._gaps.__getitem__, codes[1:-1]), strict=True
                )
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Needle:
    """What is looked for: its characters, and the gaps in front of, between and behind them."""

    chars: str
    gaps: Sequence[Gap]
    is_piece: bool
    """Whether it says enough to stand beside an ellipsis."""

    @classmethod
    def of(cls, piece: str) -> _Needle:
        """Return a part of a quote made ready."""
        words: list[str] = []
        gaps: list[Gap] = []
        has_number = False
        for gap, word, inside, _ in tokens([piece]):
            gaps.append(gap)
            gaps.extend([inside] * (len(word) - 1))
            words.append(word)
            has_number |= inside is INSIDE_NUMBER
        # The last token is empty.
        is_piece = has_number or len(words) > _MIN_PIECE_WORDS
        return cls(chars="".join(words), gaps=gaps, is_piece=is_piece)


def _forms(quote: str) -> list[str]:
    """Return the quote, and what else it may be: with less of what a model puts around it."""
    bare = _BLOCK_QUOTE.sub("", quote)
    unlabelled = _INNER_LABEL.sub(" ", _LEADING_LABEL.sub("", bare, count=1))
    # `A1:` may be the name of a cell in one line and a label in the next.
    lines = _INNER_LABEL.sub(" ", _LEADING_LABEL.sub("", bare))
    return list(dict.fromkeys([quote, bare, unlabelled, lines]))


def _pieces(quote: str) -> list[str]:
    """Return the parts between ellipses; nothing where there are fewer than two."""
    pieces = [piece for piece in _ELLIPSIS.split(quote) if any(map(str.isalnum, piece))]
    return pieces if len(pieces) > 1 else []


def _touches(run: range, asked: Sequence[int] | None) -> bool:
    if asked is None:
        return True
    at = bisect_left(asked, run.start)
    return at < len(asked) and asked[at] < run.stop


def _are_rows(texts: Sequence[str]) -> Iterator[bool]:
    """Yield of each text whether it is a row of a sheet, as readers write them."""
    numbers = [int(found[1]) if (found := _ROW.match(text)) else None for text in texts]
    is_headed = False
    for index, (text, number) in enumerate(zip(texts, numbers, strict=True)):
        if number is None:
            is_headed = _HEADS_ROWS.search(text) is not None
            yield False
            continue
        beside = [*numbers[max(0, index - 1) : index], *numbers[index + 1 : index + 2]]
        yield is_headed or (not {number - 1, number + 1}.isdisjoint(beside) and ", " not in text)
