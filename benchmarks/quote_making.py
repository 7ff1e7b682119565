# ruff: noqa: RUF001 - characters that look alike are what it is about
"""Makes quotes of documents as models write them: true, altered and invented ones.

Knows nothing of how quotes are checked: what stands in a document is told by `Plain`, a naive
comparison of its own, and all else follows from how a quote was made.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Truth = Literal["true", "altered", "invented"]

_WORDS = re.compile(r"\w+|[%‰$€£¥<>≤≥=]")
_LETTERS = re.compile(r"[^\W\d_]{3,}")
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u9fff]")
_NUMBER = re.compile(r"(?<![\w.,])\d+(?:\.\d+)?(?![\w.,]*\d)")
_MONEY = re.compile(r"[$€£¥](?=\s?\d)")
_SHARES = {"true": 0.5, "altered": 0.35, "invented": 0.15}
_TRIES = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A document that was read: its texts in order."""

    name: str
    kind: str
    texts: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A quote, and whether it is one."""

    text: str
    truth: Truth
    how: str
    """What was done to it."""
    index: int
    """The text it was taken from, or a text of the document that a model might name."""


class Plain:
    """Tells naively whether words stand in a document one behind the other."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._words = self.of(" ".join(texts))

    @staticmethod
    def of(text: str) -> str:
        """Return the words of a text, and the signs of its numbers, between blanks."""
        return f" {' '.join(_WORDS.findall(text.casefold()))} "

    def holds(self, text: str) -> bool:
        """Tell whether they stand there."""
        return self.of(text) in self._words


class _Cut(NamedTuple):
    """Part of a document: `parts` are words, cells or characters, with `glue` between them."""

    parts: Sequence[str]
    glue: str
    at: int

    @property
    def text(self) -> str:
        return self.glue.join(self.parts)

    def with_parts(self, parts: Sequence[str]) -> _Cut:
        return self._replace(parts=parts)


def make_quotes(source: Source, others: Sequence[Source], num: int, seed: str) -> Iterator[Quote]:
    """Yield about `num` quotes; fewer where the document has nothing to alter.

    Args:
        source: The document that is quoted.
        others: Documents whose sentences are passed off as its own.
        num: How many.
        seed: The same seed gives the same quotes.
    """
    chance = random.Random(f"{seed}/{source.name}")
    plain = Plain(source.texts)
    filled = [i for i, text in enumerate(source.texts) if re.search(r"\w", text)]
    if not filled:
        return
    makers: dict[Truth, Callable[[], Quote | None]] = {
        "true": lambda: _true(source, filled, chance),
        "altered": lambda: _altered(source, filled, plain, chance),
        "invented": lambda: _invented(source, others, plain, chance),
    }
    seen: set[str] = set()
    for truth, make in makers.items():
        left = round(num * _SHARES[truth])
        for _ in range(left * 4):
            quote = make() if left else None
            if quote is not None and quote.text not in seen:
                seen.add(quote.text)
                left -= 1
                yield quote


def _true(source: Source, filled: Sequence[int], chance: random.Random) -> Quote | None:
    cut = _taken(source, filled, chance, min_parts=1)
    if cut is None:
        return None
    dresses = [*_DRESSES]
    chance.shuffle(dresses)
    if chance.random() < 0.4:
        # Few parts can be written so.
        dresses.sort(key=lambda how: how not in _SELDOM)
    if chance.random() < 0.2:
        cut = cut.with_parts([part.lower() for part in cut.parts])
    for how in dresses:
        if (text := _DRESSES[how](cut, chance)) is None:
            continue
        if how != "label" and chance.random() < 0.2:
            text = _label(_Cut([text], "", cut.at), chance)
        return Quote(text=text, truth="true", how=how, index=cut.at)
    return None


def _altered(
    source: Source, filled: Sequence[int], plain: Plain, chance: random.Random
) -> Quote | None:
    how = chance.choice([*_CHANGES])
    for _ in range(_TRIES):
        cut = _taken(source, filled, chance, min_parts=4)
        if cut is None:
            return None
        text = _CHANGES[how](cut, source, chance)
        # What was changed by chance into something that does stand there is left out.
        if text is not None and not plain.holds(text) and Plain.of(text) != Plain.of(cut.text):
            if chance.random() < 0.4:
                dress = chance.choice([_case, _label, _quoted, _hyphenated, _unfinished])
                text = dress(_Cut([text], "", cut.at), chance) or text
            return Quote(text=text, truth="altered", how=how, index=cut.at)
    return None


def _invented(
    source: Source, others: Sequence[Source], plain: Plain, chance: random.Random
) -> Quote | None:
    index = chance.randrange(len(source.texts))
    for _ in range(_TRIES):
        if others and chance.random() < 0.5:
            how, text = "other document", chance.choice(chance.choice(others).texts)
            text = " ".join(text.split()[:30])
        else:
            how = "word salad"
            text = " ".join(_word(source, chance) for _ in range(chance.randint(4, 9)))
        if len(_WORDS.findall(text)) >= 4 and not plain.holds(text):
            return Quote(text=text, truth="invented", how=how, index=index)
    return None


# --- what is quoted -------------------------------------------------------------------------------


def _taken(
    source: Source, filled: Sequence[int], chance: random.Random, *, min_parts: int
) -> _Cut | None:
    """Return a part of one text or of two that stand one behind the other, if there is one."""
    for _ in range(_TRIES):
        at = chance.randrange(len(filled))
        index = filled[at]
        parts, glue = _parts(source, index)
        if chance.random() < 0.25 and index + 1 in filled[at + 1 : at + 2]:
            more, other = _parts(source, index + 1)
            if glue == other == " ":
                tail = chance.randint(1, len(parts))
                sides = parts[-tail:], more[: chance.randint(1, len(more))]
                # A side without a word is no part of the quote.
                if all(re.search(r"\w", " ".join(side)) for side in sides):
                    parts = [*sides[0], *sides[1]]
        elif chance.random() < 0.7 and len(parts) > min_parts:
            first = chance.randrange(len(parts) - min_parts)
            parts = parts[first : first + chance.randint(min_parts, 25)]
        cut = _Cut(parts, glue, index)
        if len(parts) >= min_parts and re.search(r"\w", cut.text):
            return cut
    return None


def _parts(source: Source, index: int) -> tuple[list[str], str]:
    text = source.texts[index]
    if source.kind == "sheet" and '"' not in text and re.match(r"\d+,", text):
        return text.split(","), ","
    if len(_UNSPACED.findall(text)) > len(text) / 3:
        return re.findall(r"[!-~]+|.", text), ""
    return text.split(), " "


def _word(source: Source, chance: random.Random) -> str:
    for _ in range(_TRIES):
        words = _WORDS.findall(chance.choice(source.texts))
        if words:
            return str(chance.choice(words))
    return "nothing"


# --- how models reproduce what stands there -------------------------------------------------------


def _case(cut: _Cut, chance: random.Random) -> str:
    return chance.choice([str.lower, str.upper, str.capitalize])(cut.text)


def _spaces(cut: _Cut, chance: random.Random) -> str | None:
    if cut.glue != " ":
        return None
    return "".join(
        part + (chance.choice(["  ", "\n", "\u00a0", " "]) if i + 1 < len(cut.parts) else "")
        for i, part in enumerate(cut.parts)
    )


def _marks(cut: _Cut, chance: random.Random) -> str | None:
    """Return it with other quotation marks and dashes."""
    pairs: dict[str | int, str | int | None] = chance.choice([
        {"'": "’", '"': "”", "-": "–", "–": "-", "’": "'", "“": '"', "”": '"'},
        {"'": "‘", '"': "“", "-": "‑", "—": "–", "’": "`", "“": "„", "”": "“", "–": "‐"},
    ])
    text = cut.text.translate(str.maketrans(pairs))
    return text if text != cut.text else None


def _quoted(cut: _Cut, chance: random.Random) -> str:
    marks = chance.choice(["“”", '""', "''", "«»", "„“"])
    return f"{marks[0]}{cut.text}{marks[1]}"


def _unfinished(cut: _Cut, _: random.Random) -> str | None:
    text = cut.text.rstrip(".,;:!?")
    return text if text != cut.text and re.search(r"\w", text) else None


def _ellipsis(cut: _Cut, chance: random.Random) -> str | None:
    words = cut.parts
    if cut.glue != " " or len(words) < 7:
        return None
    first = chance.randint(2, len(words) - 5)
    second = chance.randint(first + 1, len(words) - 3)
    sides = " ".join(words[:first]), " ".join(words[second:])
    if any(len(_LETTERS.findall(side)) < 2 for side in sides):
        return None
    return chance.choice([" ... ", " … ", "... ", " [...] ", " […] "]).join(sides)


def _emphasis(cut: _Cut, chance: random.Random) -> str:
    parts = list(cut.parts)
    at = chance.randrange(len(parts))
    mark = chance.choice(["**", "*", "__", "`"])
    parts[at] = f"{mark}{parts[at]}{mark}"
    return cut.with_parts(parts).text


def _label(cut: _Cut, chance: random.Random) -> str:
    return f"[L{chance.randint(1, 999)}] {cut.text}"


def _thousands(cut: _Cut, _: random.Random) -> str | None:
    """Return it with thousands separators where there were none, or without."""
    text = cut.text
    if cut.glue != ",":
        text = re.sub(
            r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])", lambda m: m[0].replace(",", ""), text
        )
    if text == cut.text:
        before = r"(?<![\w./:-])" if cut.glue == "," else r"(?<![\w.,/:-])"
        text = re.sub(
            before + r"[1-9]\d{3,8}(?![\w/:-]|\.\d+\.)", lambda m: f"{int(m[0]):,}", cut.text
        )
    return text if text != cut.text else None


def _hyphenated(cut: _Cut, chance: random.Random) -> str | None:
    found = [m for m in _LETTERS.finditer(cut.text) if len(m[0]) >= 5]
    if not found:
        return None
    word = chance.choice(found)
    at = word.start() + chance.randint(2, len(word[0]) - 2)
    return cut.text[:at] + chance.choice(["- ", "-\n", "\u00ad"]) + cut.text[at:]


def _cells(cut: _Cut, chance: random.Random) -> str | None:
    if cut.glue != "," or len(cut.parts) < 2:
        return None
    return chance.choice([" | ", ", ", "; "]).join(cut.parts)


_SELDOM = {"ellipsis", "thousands", "cells", "marks", "end dropped"}
_DRESSES: dict[str, Callable[[_Cut, random.Random], str | None]] = {
    "verbatim": lambda cut, _: cut.text,
    "case": _case,
    "spaces": _spaces,
    "marks": _marks,
    "quotation marks": _quoted,
    "end dropped": _unfinished,
    "ellipsis": _ellipsis,
    "emphasis": _emphasis,
    "label": _label,
    "thousands": _thousands,
    "hyphenated": _hyphenated,
    "cells": _cells,
}

# --- how a quote becomes untrue -------------------------------------------------------------------


def _digit(cut: _Cut, _: Source, chance: random.Random) -> str | None:
    text = cut.text
    places = [m.start() for m in re.finditer("[0-9]", text)]
    if not places:
        return None
    at = chance.choice(places)
    return text[:at] + chance.choice([d for d in "0123456789" if d != text[at]]) + text[at + 1 :]


def _point(cut: _Cut, _: Source, chance: random.Random) -> str | None:
    found = [m for m in _NUMBER.finditer(cut.text) if "." in m[0] and float(m[0])]
    if not found:
        return None
    number = chance.choice(found)
    whole, _dot, decimals = number[0].partition(".")
    moved = f"{whole}{decimals[0]}.{decimals[1:]}".rstrip(".")
    return cut.text[: number.start()] + moved + cut.text[number.end() :]


def _sign(cut: _Cut, _: Source, chance: random.Random) -> str | None:
    money = list(_MONEY.finditer(cut.text))
    share = list(re.finditer(r"(?<=\d)\s?%", cut.text))
    if not money and not share:
        return None
    sign = chance.choice(money or share)
    new = chance.choice([c for c in "$€£¥" if c != sign[0]]) if money else chance.choice("‰€")
    return cut.text[: sign.start()] + new + cut.text[sign.end() :]


def _replaced(cut: _Cut, source: Source, chance: random.Random) -> str | None:
    found = list(_LETTERS.finditer(cut.text))
    word = _word(source, chance)
    if not found or not _LETTERS.fullmatch(word):
        return None
    old = chance.choice(found)
    if old[0].casefold() == word.casefold():
        return None
    return cut.text[: old.start()] + word + cut.text[old.end() :]


def _negated(cut: _Cut, _: Source, chance: random.Random) -> str | None:
    if cut.glue != " ":
        return None
    parts = list(cut.parts)
    places = [i for i, part in enumerate(parts[1:-1], start=1) if part in {"not", "no", "never"}]
    if places:
        del parts[chance.choice(places)]
    else:
        parts.insert(chance.randint(1, len(parts) - 1), "not")
    return cut.with_parts(parts).text


def _dropped(cut: _Cut, _: Source, chance: random.Random) -> str | None:
    inner = [i for i in range(1, len(cut.parts) - 1) if re.search(r"\w", cut.parts[i])]
    said = [i for i, part in enumerate(cut.parts) if re.search(r"\w", part)]
    inner = [i for i in inner if said[0] < i < said[-1]]
    if not inner:
        return None
    at = chance.choice(inner)
    return cut.with_parts([*cut.parts[:at], *cut.parts[at + 1 :]]).text


def _swapped(cut: _Cut, _: Source, chance: random.Random) -> str | None:
    parts = list(cut.parts)
    places = [
        i for i in range(len(parts) - 1) if all(re.search(r"\w", p) for p in parts[i : i + 2])
    ]
    if not places:
        return None
    at = chance.choice(places)
    parts[at], parts[at + 1] = parts[at + 1], parts[at]
    return cut.with_parts(parts).text


_CHANGES: dict[str, Callable[[_Cut, Source, random.Random], str | None]] = {
    "digit": _digit,
    "decimal point": _point,
    "currency, percent": _sign,
    "word replaced": _replaced,
    "negation": _negated,
    "word dropped": _dropped,
    "words swapped": _swapped,
}
