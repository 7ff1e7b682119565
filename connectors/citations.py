"""placeholder"""

from __future__ import annotations
from collections.abc import Collection, Sequence


class Quotable:
    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [" ".join(text.split()).casefold() for text in texts]

    def find(self, quote: str, among: Collection[int] | None = None) -> range | None:
        wanted = " ".join(quote.split()).casefold()
        for number, text in enumerate(self._texts):
            if wanted and wanted in text and (among is None or number in among):
                return range(number, number + 1)
        return None
