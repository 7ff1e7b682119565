"""A model on the side that answers by a function, and keeps what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.embedding_server import vector_of


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
        self.embedded: list[tuple[list[str], bool]] = []
        """Texts of each call for vectors, and whether they were queries."""
        self._answer = answer

    async def embed(
        self, texts: Sequence[str], *, are_queries: bool = False
    ) -> Sequence[Sequence[float]]:
        # A while, so that others come in between.
        await asyncio.sleep(0.01)
        self.embedded.append((list(texts), are_queries))
        return [vector_of(text) for text in texts]

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
