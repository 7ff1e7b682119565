"""Exact search among vectors: what a query takes, as passages grow, against one product of matrices in memory.

`python -m benchmarks.vector_search [--passages 100000] [--dims 1024]` puts random vectors into a sink by calls of
32, reads them again as a later run would, and searches. The limit is numpy's product with a matrix of the same
numbers that lies in memory in single precision.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import machine, show
from connectors.storage import open_storage
from connectors.vectors import Key, VectorStore, key_of

_PER_CALL = 32
_QUERIES = 15


def main() -> None:
    """Run, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--dims", type=int, default=1024)
    asked = parser.parse_args()
    measured_on = machine()
    arms = [_measured(number, asked.dims) for number in (asked.passages // 10, asked.passages)]
    ratio = arms[1]["search_ms"] / arms[1]["numpy_ms"]
    show("vector_search", measured_on, {"ms, search / numpy in memory": ratio}, arms)


def _measured(num_passages: int, num_dims: int) -> dict[str, Any]:
    pick = np.random.default_rng(4)
    vectors = pick.standard_normal((num_passages, num_dims), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = pick.standard_normal((_QUERIES, num_dims), dtype=np.float32)
    keys = [key_of(str(number)) for number in range(num_passages)]
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        storage = open_storage(str(folder / "sink"))
        store = VectorStore(
            storage, "vectors", folder / "a", num_dims=num_dims, texts_per_call=_PER_CALL
        )
        started = time.perf_counter()
        for at in range(0, num_passages, _PER_CALL):
            store.put(
                dict(zip(keys[at : at + _PER_CALL], vectors[at : at + _PER_CALL], strict=True))
            )
        put_s = time.perf_counter() - started
        later = VectorStore(
            storage, "vectors", folder / "b", num_dims=num_dims, texts_per_call=_PER_CALL
        )
        started = time.perf_counter()
        asyncio.run(_loaded(later, keys))
        numbers = later.numbers(keys)
        read_s = time.perf_counter() - started
        found = [later.nearest(query.tolist(), numbers, 50) for query in queries]
        right = [list(np.argsort(-(vectors @ query), kind="stable")[:10]) for query in queries]
        same = sum(
            len({place for place, _ in one[:10]} & set(best))
            for one, best in zip(found, right, strict=True)
        )
        return {
            "arm": f"{num_passages:,} passages",
            "put_s": put_s,
            "read_again_s": read_s,
            "search_ms": _median_ms(
                lambda query: later.nearest(query.tolist(), numbers, 50), queries
            ),
            "numpy_ms": _median_ms(lambda query: np.argsort(-(vectors @ query))[:50], queries),
            "same_of_ten": same / (10 * _QUERIES),
            "sink_mb": sum(item.size_bytes for item in storage.list("")) / 1e6,
        }


async def _loaded(store: VectorStore, keys: Sequence[Key]) -> None:
    """Have a store read the sink, as the first claim does.

    Raises:
        RuntimeError: Vectors are missing.
    """
    async with store.claiming(keys) as claimed:
        if claimed.own:
            raise RuntimeError(f"{len(claimed.own)} vectors are not found again")


def _median_ms(
    search: Callable[[NDArray[np.float32]], object], queries: NDArray[np.float32]
) -> float:
    return 1000 * statistics.median(_seconds(search, query) for query in queries)


def _seconds(search: Callable[[NDArray[np.float32]], object], query: NDArray[np.float32]) -> float:
    started = time.perf_counter()
    search(query)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
