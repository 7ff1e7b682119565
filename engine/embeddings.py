"""Texts as vectors: how the answer of `/embeddings` is read and checked."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.reply import read_usage
from engine.request import Usage

Vector = Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """What came back from one call."""

    vectors: Sequence[Vector]
    """One for each text, in the order in which they were sent; all of one length, all numbers finite."""
    usage: Usage | None
    """None where the host sent none, or one that cannot be."""
    cost_usd: float | None = None
    gpu_seconds: float | None = None
    engine: str = ""
    """Name of the profile that was asked."""
    first_token_s: None = None
    """There is no stream of them."""


def read_vectors(data: Mapping[str, Any], num_texts: int) -> Vectors:
    """Return what an answer holds, each vector at the place of its text.

    Raises:
        ValueError: It is none for so many texts; the message says what is wrong.
        KeyError: It is no answer of this kind.
        TypeError: It is no answer of this kind.
        OverflowError: A number is beyond all bounds.
    """
    items = data["data"]
    if len(items) != num_texts:
        raise ValueError(f"{len(items)} vectors for {num_texts} texts")
    found: list[Vector | None] = [None] * num_texts
    for place, item in enumerate(items):
        # A host may answer in another order; `index` says which text is meant.
        index = item.get("index", place)
        if not isinstance(index, int) or not 0 <= index < num_texts or found[index] is not None:
            raise ValueError(f"no text has the index {index!r}, or two vectors have it")
        vector = array("f", item["embedding"])
        if not all(map(math.isfinite, vector)):
            raise ValueError("a vector with a number that is not finite")
        found[index] = vector
    vectors = [one for one in found if one is not None]
    lengths = {len(one) for one in vectors}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"vectors of {sorted(lengths)} numbers")
    told = data.get("usage")
    # OpenAI's has no completion: nothing is generated.
    usage = {**told, "completion_tokens": 0} if isinstance(told, Mapping) else None
    return Vectors(vectors=vectors, usage=read_usage(usage, has_text=False))
