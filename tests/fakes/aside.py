"""A model on the side that answers by a function, and keeps what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question."""

    question: str
    material: str
    images: Sequence[Path]
    max_tokens: int


class FakeAside:
    """Answers every question; `asked` keeps them in order."""

    def __init__(self, answer: Callable[[Asked], str] = lambda _: "An answer.") -> None:
        self.asked: list[Asked] = []
        self._answer = answer

    async def embed(self, texts, *, are_queries=False):
        raise AssertionError((texts, are_queries))

    async def ask(
        self,
        question: str,
        material: str = "",
        *,
        images: Sequence[Path] = (),
        max_tokens: int = 800,
    ) -> str:
        one = Asked(question=question, material=material, images=images, max_tokens=max_tokens)
        self.asked.append(one)
        return self._answer(one)
