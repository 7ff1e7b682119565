"""Whether the first question about some material is waited for before the others are sent.

vLLM computes a prefix once for all questions of a burst, also while it is being computed. A host may
know finished prompts only: there each question of the burst is computed, and paid, in full. The
answers tell which it is by the cached tokens that they report; a host that reports none is sent
everything at once. (docs/decisions/0011-chunk-by-chunk.md)
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Literal

NUM_SEEN = 6
"""Answers from which the host is judged: those of two chunks or three."""
MOST_STRAY = 1
"""Answers among them that may tell otherwise, such as one whose prefix had to make room."""
LEAST_SHARED_TOKENS = 1024
"""Prefixes shorter than that tell little: caches keep whole blocks, of up to 256 tokens as seen."""

Sent = Literal["first", "beside", "after"]
"""How a question was sent: as the first about its material, beside the first, or after its answer."""


class Leaders:
    """Says whether first questions lead, from what the answers of a run's own engine report."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state: Literal["watching", "trying", "settled"] = "watching"
        self._hits: deque[bool] = deque(maxlen=NUM_SEEN)
        self._leads = False

    @property
    def leads(self) -> bool:
        """Tell whether others wait for the first question about the same material."""
        return self._leads

    def note(self, sent: Sent, *, shared_tokens: int, cached_tokens: int | None) -> None:
        """Take note of an answer.

        Args:
            sent: How its question was sent.
            shared_tokens: Tokens that it has in common with the first about the same material.
            cached_tokens: Tokens that the host found in its cache; None where it does not say.
        """
        telling = "after" if self._leads else "beside"
        if (
            self._state == "settled"
            or sent != telling
            or cached_tokens is None
            or shared_tokens < LEAST_SHARED_TOKENS
        ):
            return
        with self._lock:
            self._hits.append(cached_tokens >= shared_tokens / 2)
            if len(self._hits) == NUM_SEEN:
                self._judge(sum(self._hits))

    def _judge(self, num_hits: int) -> None:
        if self._state == "watching" and num_hits <= MOST_STRAY:
            # Bursts miss; whether waiting helps is to be seen.
            self._state, self._leads = "trying", True
            self._hits.clear()
        elif self._state == "trying":
            self._state = "settled"
            self._leads = num_hits >= NUM_SEEN - MOST_STRAY
