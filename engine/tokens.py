"""Counts tokens as the model's own tokenizer does, without loading the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from engine.errors import PrerequisiteError

BYTES_PER_TOKEN = 3
"""Bytes of UTF-8 text per token that ByteCounter assumes. Common tokenizers have 3.5 to 4.5 on
European text and about 3 on Chinese and Japanese, so the estimate errs towards too many tokens."""


class TokenCounter(Protocol):
    """Counts tokens of text."""

    name: str
    """Names the tokenizer; enters chunk keys."""
    exact: bool
    """Whether counts are the model's own."""

    def count(self, text: str) -> int:
        """Return the tokens of `text`, without special tokens."""

    def count_many(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text."""

    def weigh(self, texts: Sequence[str]) -> list[int]:
        """Return counts that are cheap to have and not too small."""


class HuggingFaceCounter:
    """Counts with a `tokenizer.json`."""

    exact = True

    def __init__(self, path: Path, name: str) -> None:
        if not path.is_file():
            raise PrerequisiteError(
                f"tokenizer {str(path)!r} is missing; run `headrace engine install`"
            )
        self.name = name
        self._tokenizer = Tokenizer.from_file(str(path))

    def count(self, text: str) -> int:
        """Return the tokens of `text`, without special tokens."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def count_many(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text."""
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [len(item) for item in found]

    weigh = count_many


class ByteCounter:
    """Estimates from the length in bytes, for a tokenizer that is not known."""

    exact = False
    name = f"bytes/{BYTES_PER_TOKEN}"

    def count(self, text: str) -> int:
        """Return the estimate, at least one token for any text."""
        return -(-len(text.encode()) // BYTES_PER_TOKEN)

    def count_many(self, texts: Sequence[str]) -> list[int]:
        """Return the estimate of each text."""
        return [self.count(text) for text in texts]

    weigh = count_many


def image_tokens(width_px: int, height_px: int, *, cell_px: int, max_tokens: int) -> int:
    """Return the tokens of an image: one per cell, up to the cap that the host scales it down to."""
    return min(max_tokens, -(-width_px // cell_px) * -(-height_px // cell_px))
