"""Counts with the model's own vocabulary, from a file on this machine."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import tiktoken
from tokenizers import Tokenizer

from engine.errors import PrerequisiteError
from engine.tokens.counter import LocalCounter

TEXT_CHARS = 400_000
RUN_CHARS = 25_000
"""Kimi's tokenizer encodes at most so many characters at once, and within them at most so many of a
run of blanks or of anything else: `encode` of tokenization_kimi.py in moonshotai/Kimi-K2.5."""

_LETTER_CASES = (
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]",
)
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
KIMI_PATTERN = "|".join([
    r"[\p{Han}]+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_LETTER_CASES[0]}*{_LETTER_CASES[1]}+{_CONTRACTION}",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_LETTER_CASES[0]}+{_LETTER_CASES[1]}*{_CONTRACTION}",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
])
"""How Kimi's tokenizer splits text before it merges bytes: `pat_str` of tokenization_kimi.py."""

_NUM_BYTES = 256
_BLANK, _INK = re.compile(r"\s"), re.compile(r"\S")
# Not with a least length in the pattern: that looks again from each character of a shorter run.
_RUN = re.compile(r"\s+|\S+")


class HuggingFaceCounter(LocalCounter):
    """Counts with a `tokenizer.json`."""

    exact = True

    def __init__(self, path: Path, name: str) -> None:
        """Read the vocabulary.

        Raises:
            PrerequisiteError: It is no tokenizer.
        """
        self.name = name
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as exc:  # the library raises nothing more precise
            raise PrerequisiteError(f"{str(path)!r} should be a tokenizer.json: {exc}") from exc

    def count(self, text: str) -> int:
        """Return the tokens of `text`, without special tokens."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def count_many(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text."""
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [len(item) for item in found]


class TiktokenCounter(LocalCounter):
    """Counts with a `tiktoken.model`, split as Kimi's tokenizer does.

    Names of special tokens in the text are counted as the plain text that they are.
    """

    exact = True

    def __init__(self, path: Path, name: str) -> None:
        """Read the vocabulary.

        Raises:
            PrerequisiteError: It cannot be read, or is no vocabulary of bytes.
        """
        self.name = name
        shown = repr(str(path))
        try:
            ranks = _read_ranks(path)
        except OSError as exc:
            raise PrerequisiteError(f"{shown} cannot be read: {exc.strerror}") from exc
        except ValueError as exc:
            raise PrerequisiteError(f"{shown} is not a tiktoken vocabulary: {exc}") from exc
        lacking = sum(bytes([value]) not in ranks for value in range(_NUM_BYTES))
        if lacking:
            raise PrerequisiteError(
                f"{shown} is not a tiktoken vocabulary: it lacks {lacking} of the 256 bytes"
            )
        self._encoding = tiktoken.Encoding(
            name=name, pat_str=KIMI_PATTERN, mergeable_ranks=ranks, special_tokens={}
        )

    def count(self, text: str) -> int:
        """Return the tokens of `text`, without special tokens."""
        return sum(len(self._encoding.encode_ordinary(piece)) for piece in _pieces(text))

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`."""
        return [token for piece in _pieces(text) for token in self._encoding.encode_ordinary(piece)]


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Return the rank of each token: lines of its bytes in base64, a blank and the rank.

    Not by tiktoken's own loader, which keeps a copy by name and misses a file that has changed.
    """
    pairs = (line.split() for line in path.read_bytes().splitlines() if line)
    return {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}


def _pieces(text: str) -> Iterable[str]:
    """Return the text as Kimi's tokenizer cuts it, so that no run takes minutes to merge."""
    if len(text) <= RUN_CHARS:
        return (text,)
    cuts = (text[start : start + TEXT_CHARS] for start in range(0, len(text), TEXT_CHARS))
    return chain.from_iterable(
        _short_runs(cut) if _may_hold_long_run(cut) else (cut,) for cut in cuts
    )


def _may_hold_long_run(text: str) -> bool:
    """Say whether a window of half a run's limit is all blanks or has none.

    Any run over the limit fills one such window; ordinary text ends each look after a word.
    """
    window = RUN_CHARS // 2
    return any(
        (_BLANK if _INK.match(text, start) else _INK).search(text, start, start + window) is None
        for start in range(0, len(text) - window + 1, window)
    )


def _short_runs(text: str) -> Iterator[str]:
    start = 0
    for run in _RUN.finditer(text):
        for cut in range(run.start() + RUN_CHARS, run.end(), RUN_CHARS):
            yield text[start:cut]
            start = cut
    yield text[start:]
