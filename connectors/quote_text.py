# ruff: noqa: RUF001 - characters that look alike are what it is about
"""Makes text comparable for `connectors.citations`: what of it counts, and what stands between.

A text becomes a string of letters and digits without any spaces, beside a `Gap` for each place
between two of them: whether a quote may begin or end there, and the signs that change a meaning.
Pure, and linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

Kind = Literal["letters", "number", "sign", "edge"]
"""What stands beside a gap: `sign` is a word of one character, `edge` the begin or end of a text."""
Dash = Literal["none", "loose", "minus"]

_NOTHING: frozenset[str] = frozenset()


class Gap(NamedTuple):
    """What stands between two characters that count."""

    begins: bool = False
    """Whether a quote may begin behind it."""
    ends: bool = False
    """Whether a quote may end in front of it."""
    joins: frozenset[str] | None = None
    """Between two digits: the ways in which it may be read, such as `one` (of one number), `comma`."""
    compares: str = ""
    """The comparison signs in it, in order."""
    leads: str = ""
    """Those of them that stand in the same text and cell as what is behind it."""
    parts: bool = False
    """Whether it holds an ellipsis, so that no word goes on behind it."""
    dash: Dash = "none"
    """In front of a number: `minus` where it is its sign, `loose` where it may be."""
    left: frozenset[str] = _NOTHING
    """Percent and currency signs of the number in front of it."""
    right: frozenset[str] = _NOTHING
    """Percent and currency signs of the number behind it."""

    def agrees(self, source: Gap) -> bool:
        """Tell whether a quote with this gap may stand where the source has that one."""
        if self.joins is None or source.joins is None:
            is_same = self.has_dash_of(source)
        else:
            is_same = not self.joins.isdisjoint(source.joins)
        return (
            is_same
            and (source.ends or not self.parts)
            and self.compares == source.compares
            and self.left <= source.left
            and self.right <= source.right
        )

    def may_begin(self, source: Gap, *, is_number: bool) -> bool:
        """Tell whether a quote with this gap in front may begin behind that one."""
        if self.leads:
            is_same = source.leads.endswith(self.leads)
        else:
            is_same = not (is_number and source.leads.strip("="))
        return is_same and self.has_dash_of(source) and self.right <= source.right

    def may_end(self, source: Gap) -> bool:
        """Tell whether a quote with this gap behind it may end in front of that one."""
        return source.compares.startswith(self.compares) and self.left <= source.left

    def has_dash_of(self, source: Gap) -> bool:
        """Tell whether the number behind has the same sign in both, as far as can be told."""
        return self.dash == source.dash or "loose" in {self.dash, source.dash}


INSIDE_WORD = Gap()
INSIDE_NUMBER = Gap(joins=frozenset({"one"}))


class Token(NamedTuple):
    """A word or number as it is compared, with the gap in front of it."""

    gap: Gap
    text: str
    inside: Gap
    """The gap between any two of its characters."""
    num_breaks: int
    """How many texts end in front of it."""


def tokens(texts: Iterable[str], rows: Iterable[bool] | None = None) -> Iterator[Token]:
    """Yield the words and numbers of texts; the last token is empty, for the gap behind them.

    Args:
        texts: Anything; a number, but not a word, ends where a text ends.
        rows: Of each text, whether commas outside of quotation marks part its cells, as readers
            write the rows of sheets.
    """
    if rows is not None:
        texts = (
            _parted(text) if is_row else text for text, is_row in zip(texts, rows, strict=True)
        )
    shaped = [_shaped(text) for text in texts]
    plain = "\n".join(text for text, _ in shaped)
    shape = "\n".join(kinds for _, kinds in shaped)
    before: Kind = "edge"
    end = head = 0
    # Few gaps are unlike, and a call for each word would be half of the time.
    known: dict[tuple[Kind, str, Kind, bool], Gap] = {}
    for found in _TOKEN.finditer(shape):
        start, stop = found.span()
        kind = _KINDS.get(shape[start], "number")
        between, word = shape[end:start], plain[start:stop]
        inside, is_group = INSIDE_WORD, False
        if kind == "number":
            whole = word.partition(".")[0]
            is_group = 0 < head <= 3 == len(whole) and between in _GROUPING and before == "number"
            # Nothing goes on behind decimals, or behind a group that was no group.
            head = 0 if whole != word else 3 if is_group else len(whole)
            word, inside = _number(word), INSIDE_NUMBER
        key = (before, between, kind, is_group)
        if (gap := known.get(key)) is None:
            gap = known[key] = _gap(before, between, kind, is_group=is_group)
        yield Token(gap, word, inside, between.count("\n"))
        before, end = kind, stop
    between = shape[end:]
    yield Token(_gap(before, between, "edge"), "", INSIDE_WORD, between.count("\n"))


def _number(word: str) -> str:
    """Return a number without zeros that say nothing; versions and dates (1.2.10) keep theirs."""
    if word.count(".") != 1:
        return word
    whole, _, decimals = word.partition(".")
    decimals = decimals.rstrip("0")
    return f"{whole or '0'}.{decimals}" if decimals else whole or "0"


def _parted(row: str) -> str:
    """Return the row with bars in place of the commas between its cells."""
    if '"' not in row:
        return row.replace(",", "|")
    pieces = row.split('"')
    pieces[::2] = [piece.replace(",", "|") for piece in pieces[::2]]
    return '"'.join(pieces)


_KINDS: dict[str, Kind] = {"a": "letters", "c": "sign"}
_TOKEN = re.compile(r"(?<![9am.])\.9+|9+(?:\.9+)*|a[am]*|cm*")
_GROUPING = {",", "'", " "}
"""What may part the thousands of a number."""

# --- characters -----------------------------------------------------------------------------------

_RAISED = re.compile("[⁰¹²³⁴-⁹⁻]+")
_LOWERED = re.compile("[₀-₉]+")
_FRACTION = re.compile("[¼-¾⅐-⅞]")
_HARD_THOUSANDS = re.compile("(?<=[0-9])[\u00a0\u2007\u2009\u202f’](?=[0-9]{3}(?![0-9]))")
_BEFORE = dict.fromkeys(map(ord, "™®©℠"), " ") | {ord("´"): "'", ord("¨"): None, ord("¸"): None}
"""NFKC would make letters or marks of these."""

_SAME = {
    **dict.fromkeys("‐‑‒–−⁻﹣", "-"),
    **dict.fromkeys("—―⸺⸻", "—"),
    **dict.fromkeys("‘’‚‛`′ʼ", "'"),
    **dict.fromkeys("“”„‟«»‹›″", '"'),
    **dict.fromkeys("≦⩽", "≤"),
    **dict.fromkeys("≧⩾", "≥"),
    **dict.fromkeys("×✕", "x"),
    **dict.fromkeys("∕⁄", "/"),
    **dict.fromkeys("٫", "."),
    **dict.fromkeys("٬", ","),
    "٪": "%",
    "ـ": "",
}
_COMPARING = "<>≤≥=≠≈≡≪≫"
_MATH_PUNCTUATION = "∗∙∣∼⋅"


class _Plain(dict[int, str]):
    """Maps characters to those they are the same as; filled as they come."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if (same := _SAME.get(char)) is None:
            category = unicodedata.category(char)
            if category == "Nd":
                same = str(unicodedata.decimal(char))
            elif category == "Cf" or 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF:
                same = ""
            else:
                same = " " if category[0] in "ZC" else char
        self[code] = same
        return same


class _Shape(dict[int, str]):
    """Maps characters to their kind: letter, mark, digit, a word of its own; others to themselves."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        category = unicodedata.category(char)
        if "0" <= char <= "9":
            shape = "9"
        elif category[0] in "LN" or (category == "Sm" and "∀" <= char <= "⋿"):
            shape = char if char in _COMPARING + _MATH_PUNCTUATION else "a"
            if shape == "a" and _is_own_word(code):
                shape = "c"
        elif category[0] == "M":
            shape = "m"
        else:
            shape = char
        self[code] = shape
        return shape


_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x2200, 0x22FF),  # mathematics
    (0x2E80, 0x30FF),  # radicals, kana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


def _is_own_word(code: int) -> bool:
    return any(first <= code <= last for first, last in _UNSPACED)


_PLAIN = _Plain()
_SHAPE = _Shape()


def _shaped(text: str) -> tuple[str, str]:
    """Return the text as it is compared, and the kinds of its characters."""
    if text.isascii():
        plain = text.lower()
    else:
        raw = _HARD_THOUSANDS.sub("'", text.translate(_BEFORE))
        raw = _RAISED.sub(lambda found: "^" + found[0], raw)
        raw = _LOWERED.sub(lambda found: "_" + found[0], raw)
        raw = _FRACTION.sub(lambda found: " " + found[0], raw)
        # Folding may take a text out of its normal form.
        plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", raw).casefold())
    plain = plain.translate(_PLAIN)
    return plain, plain.translate(_SHAPE)


# --- gaps -----------------------------------------------------------------------------------------

_ARROW = re.compile(r"[-=]+>|<-+(?!-*9)|={3,}")
_SIGNS = re.compile("[%‰‱]|[$¢-¥֏؋৲৳৻૱௹฿៛₠-⃀]")
_MINUS = re.compile(rf"-(?:{_SIGNS.pattern} ?)?$")
"""Directly in front of the number, or of its currency sign."""
_BESIDE = " *_'\"()\\~"
"""What may stand between a number and its sign."""
_MEANING = re.compile(r"[-/:^+±÷]")
_HYPHENS = {"-", "_", "/"}


@lru_cache(maxsize=8192)
def _gap(before: Kind, between: str, behind: Kind, *, is_group: bool = False) -> Gap:
    leads = _comparisons(re.split(r"[\n|]", between)[-1])
    between = between.replace("\n", " ")
    left, right = _signs(before, between, behind)
    begins, ends = _borders(before, between, behind)
    return Gap(
        begins=begins,
        ends=ends,
        joins=_joins(between, is_group=is_group) if before == behind == "number" else None,
        compares=_comparisons(between),
        leads=leads,
        parts=".." in between,
        dash=_dash(before, between) if behind == "number" else "none",
        left=left,
        right=right,
    )


def _comparisons(between: str) -> str:
    signs = "".join(c for c in _ARROW.sub(" ", between) if c in _COMPARING)
    return signs.replace("<=", "≤").replace(">=", "≥").replace("==", "=")


def _borders(before: Kind, between: str, behind: Kind) -> tuple[bool, bool]:
    """Return whether a quote may begin behind the gap, and end in front of it."""
    if not {"edge", "sign"}.isdisjoint({before, behind}):
        return True, True
    if before == behind == "number":
        is_inside = between in {",", ":", "'", "^", ""} | _HYPHENS
        return not is_inside, not is_inside
    if between == "'":
        # "isn't" does not end with "is", while "l'homme" ends with "homme".
        return True, False
    if between == "^":
        return False, True
    is_inside = between == "" or between in _HYPHENS
    return not is_inside, not is_inside


def _joins(between: str, *, is_group: bool) -> frozenset[str]:
    """Return the ways to read what stands between two numbers."""
    meaning = "".join(_MEANING.findall(between))
    if between == "^-":
        return frozenset({meaning})
    if meaning and between.strip(_BESIDE) == meaning and not (meaning == ":" and between != ":"):
        is_minus = meaning == "-" and between[0] == " " and between[-1] == "-"
        return frozenset({meaning, "minus"} if is_minus else {meaning})
    if between.endswith("-"):
        return frozenset({"minus"})
    bare = between.strip(" ")
    ways = {"one"} if is_group else set()
    if "," in bare or "|" in bare:
        ways.add("comma")
    if between != ",":
        ways.add("space")
    return frozenset(ways)


def _dash(before: Kind, between: str) -> Dash:
    """Return what a dash in front of a number is."""
    if "-" not in between:
        return "none"
    found = _MINUS.search(between)
    if found is None or between[: found.start()].endswith(("-", ")", "]")):
        return "loose"
    return "loose" if found.start() == 0 and before != "edge" else "minus"


def _signs(before: Kind, between: str, behind: Kind) -> tuple[frozenset[str], frozenset[str]]:
    """Return the percent and currency signs of the numbers on both sides."""
    found = list(_SIGNS.finditer(between))
    if not found:
        return _NOTHING, _NOTHING
    first, last = found[0], found[-1]
    away_left = between[: first.start()]
    away_right = between[last.end() :]
    is_left = before == "number" and not away_left.strip(_BESIDE)
    is_right = behind == "number" and not away_right.strip(_BESIDE + "-")
    if is_left and is_right and len(found) == 1 and bool(away_left) != bool(away_right):
        is_left, is_right = not away_left, not away_right
    return (
        frozenset({first[0]}) if is_left else _NOTHING,
        frozenset({last[0]}) if is_right else _NOTHING,
    )
