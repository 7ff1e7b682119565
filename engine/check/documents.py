"""Made-up documents of any length, the same for the same seed, in the lines and words of a real prompt."""

from __future__ import annotations

import random

from engine.endpoint import Endpoint

SHARED_SHARE = 0.25
"""Share of a long prompt that all of them begin with. The rest is each one's own and takes room of the KV
cache, as chunks of different documents do."""

_SAMPLE_LINES = 64
_FILL = 0.98
"""Share of the room that is filled by the average line: real ones are longer and shorter."""
_MAX_TRIES = 4

_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
KINDS = ("mooring", "pilotage", "dredging", "fuel", "repairs", "insurance", "storage", "cranes")
_PLACES = ("Bergen", "Antwerp", "Genoa", "Piraeus", "Gdansk", "Bilbao", "Le Havre", "Constanta")
_FIRMS = (
    "Nord Line",
    "Hansa Freight",
    "Iberia Cargo",
    "Aegean Bulk",
    "Delta Tugs",
    "Meridian Ships",
)
_STATES = ("paid in full", "paid in part", "still open", "in dispute", "cancelled", "under review")


def lines_of(seed: str, num_lines: int, first: int = 1) -> list[str]:
    """Return labelled lines; the same seed gives the same ones, and more of them begin with fewer."""
    made = random.Random(seed)
    return [f"[L{first + number}] {_sentence(made)}" for number in range(num_lines)]


def _sentence(made: random.Random) -> str:
    day, month, place = made.randint(1, 28), made.choice(_MONTHS), made.choice(_PLACES)
    return (
        f"On {day} {month} the harbour office of {place} booked {made.randint(100, 99_999):,} euros from"
        f" {made.choice(_FIRMS)} for {made.choice(KINDS)}, invoice {made.randint(10_000, 99_999)},"
        f" {made.choice(_STATES)}."
    )


class LongDocuments:
    """Documents that fill a prompt: a beginning that all share, and an end of each one's own."""

    def __init__(self, endpoint: Endpoint, *, seed: int, room_tokens: int) -> None:
        """Make the first, and count it.

        Args:
            endpoint: Counts the tokens.
            seed: Another one, another text from the first line on.
            room_tokens: Most tokens of a document.
        """
        self._seed = seed
        counter = endpoint.counter
        sample = "\n".join(lines_of(f"{seed}/shared", _SAMPLE_LINES))
        self.line_tokens = max(1, counter.count(sample)) / _SAMPLE_LINES
        """Tokens of a line, on average."""
        self._num_lines = int(_FILL * room_tokens / self.line_tokens)
        for _ in range(_MAX_TRIES):
            self.num_tokens = counter.count(self.text(0))
            if self.num_tokens <= room_tokens:
                break
            self._num_lines = int(self._num_lines * room_tokens / self.num_tokens * _FILL)
        self.shared_tokens = counter.count(self._shared())
        """Tokens of the beginning."""

    def text(self, number: int) -> str:
        """Return a document by its number."""
        num_own = max(1, self._num_lines - self._num_shared)
        own = lines_of(f"{self._seed}/{number}", num_own, first=1 + self._num_shared)
        return "\n".join([self._shared(), *own]) + "\n"

    @property
    def _num_shared(self) -> int:
        return max(1, int(SHARED_SHARE * self._num_lines))

    def _shared(self) -> str:
        return "\n".join(lines_of(f"{self._seed}/shared", self._num_shared))
