"""What every way of counting tokens offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

BYTES_PER_TOKEN = 3
"""Bytes of UTF-8 text per token, for a quick bound on a whole prompt. Common tokenizers have 3.5 to
4.5 on European text and about 3 on Chinese and Japanese; digits and base64 have fewer."""


class TokenCounter(Protocol):
    """Counts tokens of text. Safe to use from several threads at once."""

    name: str
    """Names the method and the vocabulary; enters chunk keys and the manifest."""
    exact: bool
    """Whether counts are those of the served model's tokenizer."""
    weighs_exactly: bool
    """Whether `weigh` gives the same numbers as `count`."""

    def count(self, text: str) -> int:
        """Return the tokens of `text`, without special tokens."""

    def count_many(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text."""

    def weigh(self, texts: Sequence[str]) -> list[int]:
        """Return cheap counts that choose a cut; a count of the finished text decides."""

    def close(self) -> None:
        """Close the connections that counting needed; nothing where it needs none."""


class LocalCounter(ABC):
    """A counter that needs no call, so its cheap counts are its counts."""

    weighs_exactly = True

    @abstractmethod
    def count(self, text: str) -> int:
        """Return the tokens of `text`, without special tokens."""

    def count_many(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text."""
        return [self.count(text) for text in texts]

    def weigh(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text."""
        return self.count_many(texts)

    def close(self) -> None:  # noqa: B027 - there is nothing to close
        """Do nothing."""
