"""Token counts without the model's vocabulary: by kinds of characters, with a margin on top.

The rates were fitted to two vocabularies, the 49,152 tokens of SmolLM2 and the 163,584 of Kimi K2.5;
`tests/engine/test_tokens.py` holds them to both.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter

from engine.tokens.counter import LocalCounter

MARGIN = 1.15
"""Factor on top of the rates: tokenizers differ by 3 to 10 % on the same text."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rates:
    """Tokens that each kind of character takes."""

    digits_per_token: int
    latin: float
    """Each letter of a word beyond the third, in a language other than English."""
    accented: float
    """A letter such as é or ł, beside its share in the word."""
    random: float
    """Each character of base64, of hex and of codes that mix letters and digits."""
    capital: float
    """Each letter beyond the second of a word in capitals."""
    han: float
    kana: float
    hangul: float
    other_byte: float
    """Each UTF-8 byte of a letter of any other script."""
    symbol_byte: float
    """Each UTF-8 byte of an emoji or another sign outside ASCII."""


CAREFUL = Rates(
    digits_per_token=1,
    latin=0.38,
    accented=1.1,
    random=0.8,
    capital=0.42,
    han=1.8,
    kana=1.7,
    hangul=2.5,
    other_byte=0.6,
    symbol_byte=0.65,
)
"""For a model that is not known: the larger number of the two vocabularies."""

KIMI = Rates(
    digits_per_token=3,
    latin=0.33,
    accented=0.8,
    random=0.66,
    capital=0.4,
    han=0.62,
    kana=0.75,
    hangul=0.85,
    other_byte=0.31,
    symbol_byte=0.45,
)
"""For Kimi's vocabulary, which holds words of many languages and digits by three."""

_PIECE = re.compile(r" [0-9]+|[^\W_]+|\s+|[!-/:-@\[-`{-~]+|[^\w\s]+")
_SHORT = 1_000_000
"""Characters of a text whose pieces may be in memory at once."""
_ENGLISH = frozenset(["the", "of", "and", "to", "is", "for", "that", "with", "by", "this", "from"])
_ENGLISH_SHARE = 0.22
"""Share of those words among the words of English prose."""
_RANDOM = re.compile(r"[a-z][A-Z]|[A-Za-z][0-9]|[0-9][A-Za-z]")
_MARKS = ((0x2010, 0x2027), (0x3000, 0x3030), (0xFF00, 0xFF20))
"""Dashes, quotation marks, and the punctuation of Chinese and Japanese: most are tokens."""
_SCRIPTS = (
    (0x3040, 0x3100, "kana"),
    (0x3400, 0x4DC0, "han"),
    (0x4E00, 0xA000, "han"),
    (0xAC00, 0xD7B0, "hangul"),
)
_LONGEST_WORD = 20


class EstimateCounter(LocalCounter):
    """Estimates tokens for a vocabulary that is not at hand; rather too many than too few."""

    exact = False

    def __init__(self, model: str = "") -> None:
        is_kimi = "kimi" in model.lower() or "moonshot" in model.lower()
        self.name = "estimate-kimi/1" if is_kimi else "estimate/1"
        self._rates = KIMI if is_kimi else CAREFUL

    def count(self, text: str) -> int:
        """Return the estimate: at least one token for any text, never more than its bytes."""
        if not text:
            return 0
        # A piece is counted once however often it occurs, so long text is cheap.
        is_short = len(text) <= _SHORT
        # A list is counted faster, and takes twenty times the memory of the text.
        found = _PIECE.findall(text) if is_short else map(itemgetter(0), _PIECE.finditer(text))
        pieces = Counter(found)
        words = 0
        plain = foreign = 0.0
        for piece, times in pieces.items():
            num_words, known, unknown = _weight(piece, self._rates)
            words += num_words * times
            plain += known * times
            foreign += unknown * times
        common = sum(pieces[word] for word in _ENGLISH & pieces.keys())
        english = min(1.0, common / (words * _ENGLISH_SHARE)) if words else 0.0
        tokens = english * plain + (1 - english) * foreign
        return max(1, min(len(text.encode("utf-8", "surrogatepass")), math.ceil(tokens * MARGIN)))


@lru_cache(maxsize=65_536)
def _weight(piece: str, rates: Rates) -> tuple[int, float, float]:
    """Return how many words a piece is, one or none, and its tokens: in English prose, and elsewhere."""
    is_word = piece.isalpha()
    if is_word and piece.isascii():
        return (1, *_ascii_word(piece, rates))
    tokens = _other(piece, rates)
    return int(is_word), tokens, tokens


def _ascii_word(word: str, rates: Rates) -> tuple[float, float]:
    """Return the tokens of a word of ASCII letters: in English prose, and elsewhere."""
    length = len(word)
    if length > _LONGEST_WORD or _RANDOM.search(word):
        tokens = max(1.0, rates.random * length)
        return tokens, tokens
    if length > 1 and word.isupper():
        tokens = 1.0 + rates.capital * max(0, length - 2)
        return tokens, tokens
    known = 1.0 + 0.025 * max(0, length - 4) + 0.2 * max(0, length - 12)
    if word[0].isupper():
        known += 0.08 * max(0, length - 3)
    return known, max(known, 1.0 + rates.latin * max(0, length - 3))


def _other(piece: str, rates: Rates) -> float:
    """Return the tokens of blanks, digits, punctuation, mixed runs and other scripts."""
    if piece.isspace():
        # A single blank belongs to the word after it.
        return 0.0 if piece == " " else 1.0 + 0.15 * (len(piece) - 1)
    if not piece.isascii():
        return sum(_character(character, rates) for character in piece) + 0.3
    digits = piece.strip()
    if digits.isdigit():
        # A blank in front of digits is a token of its own.
        return len(piece) - len(digits) + math.ceil(len(digits) / rates.digits_per_token)
    if piece[0].isalnum():
        return rates.random * len(piece) + 0.5
    changes = sum(a != b for a, b in itertools.pairwise(piece))
    return 1.0 + 0.6 * changes + 0.1 * (len(piece) - 1 - changes)


@lru_cache(maxsize=8192)
def _character(character: str, rates: Rates) -> float:
    """Return the tokens of one character of a run that is not all ASCII."""
    code, num_bytes = ord(character), len(character.encode("utf-8", "surrogatepass"))
    if num_bytes == 1:
        return rates.latin
    for start, stop, script in _SCRIPTS:
        if start <= code < stop:
            return float(getattr(rates, script))
    if character.isalpha():
        is_latin = code < 0x250 or 0x1E00 <= code < 0x1F00
        accented = rates.latin + rates.accented * (num_bytes - 1)
        return accented if is_latin else rates.other_byte * num_bytes
    is_mark = code < 0x100 or any(start <= code < stop for start, stop in _MARKS)
    return 1.2 if is_mark else rates.symbol_byte * num_bytes
