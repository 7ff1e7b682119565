"""How many prompt tokens of a stage the engine's prefix cache will serve, as a plan expects it.

A cache keeps whole blocks: what is behind the last full one is computed anew. Their size is what the engine
tells, or what the hits of earlier runs have in common.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import polars as pl

from config.pipeline import StageConfig
from flows.run.layout import whole_blocks

if TYPE_CHECKING:
    from flows.stage_estimate import Load, Material

_LEAST_HITS = 2
"""Calls with hits from which a block's size is inferred: fewer may have a multiple of it in common."""


def planned_hits(
    stage: StageConfig,
    load: Load,
    instructions_tokens: int,
    *,
    material: Material,
) -> float:
    """Return the tokens of a stage's prompts that are planned to be hits.

    Args:
        stage: Of the pipeline.
        load: What it sends, with what it shares.
        instructions_tokens: What every prompt of the run begins with.
        material: What there is to ask about, and the blocks of the engine's cache.
    """
    block_tokens = material.cache_block_tokens
    if block_tokens is None:
        return load.requests * instructions_tokens + load.shared
    if stage.over == "chunk" and load.shared:
        shown = sum(instructions_tokens + size for size in material.chunk_sizes)
        kept = sum(
            whole_blocks(instructions_tokens + size, block_tokens) for size in material.chunk_sizes
        )
        return (load.requests * instructions_tokens + load.shared) * kept / max(1, shown)
    # Rows end anywhere in a block; on average in its middle.
    lost = load.requests * block_tokens / 2 if load.shared else 0.0
    return load.requests * whole_blocks(instructions_tokens, block_tokens) + max(
        0.0, load.shared - lost
    )


def measured_block(usage: pl.DataFrame) -> int | None:
    """Return the size of a block by the hits of earlier runs; None where there are too few."""
    # A request of several calls has the sum of their hits, which is whole blocks too.
    hits = [tokens for tokens in usage["cached_tokens"].drop_nulls() if tokens]
    if len(hits) < _LEAST_HITS:
        return None
    # Where all hits are alike it is a multiple of a block, and as good: they end where it does.
    size = math.gcd(*hits)
    return size if size > 1 else None
