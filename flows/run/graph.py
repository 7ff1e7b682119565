"""The order of stages: those of one level need only answers of the levels before."""

from __future__ import annotations

from collections.abc import Sequence

from config.pipeline import StageConfig


def levels(stages: Sequence[StageConfig]) -> list[tuple[StageConfig, ...]]:
    """Return the stages by level, in pipeline order within a level.

    Chunk stages of one level are asked together, chunk by chunk, so that a chunk is prefilled once.
    """
    depth: dict[str, int] = {}
    for stage in stages:
        depth[stage.name] = 1 + max((depth[need] for need in stage.needs), default=-1)
    return [
        tuple(stage for stage in stages if depth[stage.name] == level)
        for level in range(1 + max(depth.values()))
    ]


_PREFIX = "stage-"


def stage_shard(stage: StageConfig) -> str:
    """Return the name under which a stage is claimed and committed."""
    return f"{_PREFIX}{stage.name}"


def is_stage_shard(shard: str) -> bool:
    """Tell whether this names a stage, and no shard of documents."""
    return shard.startswith(_PREFIX)
