"""Masks personal data in text before it leaves, and puts it back into answers.

Each value becomes a placeholder such as `EMAIL_QXZKTBWMRD`: the kind, and ten letters made from the value with
a key of the sink. So a value has one placeholder in all documents of a sink, and nobody without the key can
find the value by trying, not even a phone number.

What is found is what has a form (addresses of e-mail and IP, IBAN and card numbers by their check digits,
phone numbers as they are commonly written), and what is on a list. A name that is on no list is not found.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

MaskKind = Literal["email", "iban", "card", "ip", "phone"]
MASK_KINDS: tuple[MaskKind, ...] = ("email", "iban", "card", "ip", "phone")
"""What has a form, in the order in which it is looked for."""

_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"
"""No vowels, so that a placeholder is no word, and no digits, so that it is no number."""
_NUM_LETTERS = 10
_PLACEHOLDER = re.compile(rf"(?<!\w)[A-Z][A-Z0-9]{{0,30}}_[{_LETTERS}]{{{_NUM_LETTERS}}}(?!\w)")

_MIN_PHONE, _MAX_PHONE = 7, 15
"""Digits of a phone number; 15 is the most that ITU-T E.164 allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRules:
    """What is masked."""

    kinds: Sequence[MaskKind] = MASK_KINDS
    words: Sequence[str] = ()
    """Words and names as they stand in documents; case is ignored, and between them there may be several blanks,
    the end of a line, or underscores, as in names of files. The last may stand first, with a comma: `Lind, Ada`."""
    patterns: Mapping[str, str] = field(default_factory=dict)
    """Regular expressions by the name that their placeholders begin with."""


_Finder = tuple[str, re.Pattern[str], Callable[[str], int]]
"""Name of the placeholders, what finds a value, and how much of what was found belongs to it."""


class Masker:
    """Masks texts by rules; several threads may use it."""

    def __init__(self, rules: MaskRules, key: bytes) -> None:
        self._key = key
        self._patterns: list[_Finder] = [
            (name.upper(), re.compile(text), len) for name, text in rules.patterns.items()
        ]
        self._forms: list[_Finder] = [
            *((("WORD", _any_of(rules.words), len),) if rules.words else ()),
            *((kind.upper(), *_FORMS[kind]) for kind in MASK_KINDS if kind in rules.kinds),
        ]
        self._values: dict[str, str] = {}
        """What was masked so far, by placeholder."""

    def masked(self, text: str) -> str:
        """Return the text with placeholders for what the rules find; those that are there already stay."""
        pieces, start = [], 0
        for found in _PLACEHOLDER.finditer(text):
            pieces += [self._masked(text[start : found.start()]), found.group()]
            start = found.end()
        return "".join([*pieces, self._masked(text[start:])])

    def _masked(self, text: str) -> str:
        found: list[tuple[int, int, str]] = []
        taken = bytearray(len(text))
        # Patterns are the user's own, and find what they say.
        places = [(text, *one) for one in self._patterns]
        narrow = _narrow(text)
        places += [(narrow, *one) for one in self._forms]
        for seen, name, pattern, length in places:
            for start, end in _spans(pattern, length, seen):
                # A finder before may have it, such as a number inside an address.
                if 1 not in taken[start:end]:
                    taken[start:end] = b"\1" * (end - start)
                    found.append((start, end, self._placeholder(name, text[start:end])))
        pieces, at = [], 0
        for start, end, placeholder in sorted(found):
            pieces += [text[at:start], placeholder]
            at = end
        return "".join([*pieces, text[at:]])

    def _placeholder(self, name: str, value: str) -> str:
        number = int.from_bytes(
            hmac.digest(self._key, f"{name}\0{value}".encode(), hashlib.sha256), "big"
        )
        letters = []
        for _ in range(_NUM_LETTERS):
            number, letter = divmod(number, len(_LETTERS))
            letters.append(_LETTERS[letter])
        placeholder = f"{name}_{''.join(letters)}"
        self._values[placeholder] = value
        return placeholder

    def restored(self, text: str) -> str:
        """Return the text with the values of the placeholders that this masker has made.

        One that a model has changed stays as the model wrote it.
        """
        return _PLACEHOLDER.sub(lambda found: self._values.get(found.group(), found.group()), text)


def in_texts(change: Callable[[str], str], value: object) -> object:
    """Return a JSON value with all texts in it changed; keys of objects stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: in_texts(change, item) for key, item in value.items()}
    return [in_texts(change, item) for item in value] if isinstance(value, list | tuple) else value


_BETWEEN = r"[\s_]+"
"""Between the words of a name."""

_WIDE = re.compile(r"[\u3000\uff01-\uff5e]|(?![0-9])\d")
"""Full-width forms, as in Chinese and Japanese text, its blank among them, and the digits of other scripts."""


def _narrow(text: str) -> str:
    """Return the text with full-width forms and other digits as ASCII has them, each at its place."""
    return text if text.isascii() else _WIDE.sub(_in_ascii, text)


def _in_ascii(found: re.Match[str]) -> str:
    digit = unicodedata.digit(found.group(), None)
    return unicodedata.normalize("NFKC", found.group()) if digit is None else str(digit)


def _any_of(words: Sequence[str]) -> re.Pattern[str]:
    """Return what finds any of the words, the longer ones first."""
    # An accent may be a character of its own, as it often is in text out of a PDF.
    written = {
        unicodedata.normalize(form, _narrow(word)) for word in words for form in ("NFC", "NFD")
    }
    split = [parts for word in written if (parts := [re.escape(part) for part in word.split()])]
    ways = [_BETWEEN.join(parts) for parts in split]
    # As lists of people have them: the last name first.
    ways += [rf"{last},[\s_]*{_BETWEEN.join(first)}" for *first, last in split if first]
    ways.sort(key=lambda way: (-len(way), way))
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(ways)})(?![^\W_])", re.IGNORECASE)


def _spans(
    pattern: re.Pattern[str], length: Callable[[str], int], text: str
) -> Iterator[tuple[int, int]]:
    """Yield where what is to be masked begins and ends."""
    for found in pattern.finditer(text):
        taken = length(found.group())
        if taken:
            yield found.start(), found.start() + taken


def _iban(text: str) -> int:
    """Return how long the IBAN is that the text begins with; 0 where there is none.

    Capital words behind it look like more of it: the check digits tell where it ends (ISO 13616, mod 97).
    """
    ends = [at for at in range(len(text), 0, -1) if at == len(text) or not text[at].isalnum()]
    for end in ends:
        number = "".join(filter(str.isalnum, text[:end])).upper()
        if 15 <= len(number) <= 34 and _checks(number):
            return end
    return 0


def _checks(number: str) -> bool:
    digits = "".join(str(int(char, 36)) for char in number[4:] + number[:4])
    return int(digits) % 97 == 1


def _card(text: str) -> int:
    """Return the length of the text where its last digit is the check digit of a card number (Luhn)."""
    digits = [int(char) for char in text if char.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return len(text) if (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and any(digits) else 0


def _ip(text: str) -> int:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return 0
    return len(text)


def _phone(text: str) -> int:
    number = sum(char.isdigit() for char in text)
    return len(text) if _MIN_PHONE <= number <= _MAX_PHONE else 0


_BLANK = " \u00a0\u2009\u202f"
"""Between groups of digits: those that keep a line from ending there are common in print."""
_DASH = r"\-\u2010\u2011\u2013"
_DOT = r"(?:\.|[ ]?[(\[{][ ]?(?i:dot|punkt)[ ]?[)\]}][ ]?)"

_FORMS: Mapping[MaskKind, tuple[re.Pattern[str], Callable[[str], int]]] = {
    "email": (
        re.compile(
            rf"(?<![\w.%+'-])[\w.%+'-]+(?:@[\w-]+(?:{_DOT}[\w-]+)+"
            # ada(at)mail.example and ada [at] mail [dot] example hide from collectors of addresses only;
            # "measured (at) 3.5 bar" is none.
            rf"|[ ]?[(\[{{][ ]?(?i:at)[ ]?[)\]}}][ ]?(?:[\w-]+{_DOT})+[^\W\d_][\w-]*)"
        ),
        len,
    ),
    "iban": (
        re.compile(rf"(?<!\w)[A-Za-z]{{2}}\d{{2}}(?:[{_BLANK}{_DASH}]?[A-Za-z0-9]){{11,30}}(?!\w)"),
        _iban,
    ),
    "card": (
        re.compile(rf"(?<!\w)(?<!\d[.,])\d(?:[{_BLANK}{_DASH}]?\d){{12,18}}(?![\w]|[.,]\d)"),
        _card,
    ),
    "ip": (
        re.compile(
            r"(?<![\w.])(?:(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)"
            # Behind a colon of its own it would be a part of a longer one.
            r"|(?<![0-9A-Fa-f:]:)(?<!^:)[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:]))"
        ),
        _ip,
    ),
    "phone": (
        re.compile(
            r"(?<![\w-])(?<!\d[.,])(?:(?<!/)|(?=\+))(?:"
            rf"(?:\+|00)[1-9](?:[{_BLANK}().{_DASH}/]{{0,3}}\d){{6,14}}"  # +49 (30) 123 45-67
            # 030 1234567, (0171) 123 45 67
            rf"|\(?0[1-9]\d{{0,4}}\)?(?:[{_BLANK}{_DASH}/]{{0,3}}\d){{4,11}}"
            # (212) 555-0142
            rf"|\(?[2-9]\d{{2}}\)?[{_BLANK}.{_DASH}]{{1,2}}[2-9]\d{{2}}[{_BLANK}.{_DASH}]\d{{4}}"
            r")(?![\w]|[.,]\d)"
        ),
        _phone,
    ),
}
