"""The order of stages: those of one level need only answers of the levels before."""

from __future__ import annotations

from collections.abc import Sequence

from config.pipeline import StageConfig


def levels(stages: Sequence[StageConfig]) -> list[tuple[StageConfig, ...]]:
    """Return the stages by level, in pipeline order within a level; needs outside them are met."""
    depth: dict[str, int] = {}
    for stage in stages:
        depth[stage.name] = 1 + max((depth.get(need, -1) for need in stage.needs), default=-1)
    return [
        tuple(stage for stage in stages if depth[stage.name] == level)
        for level in range(1 + max(depth.values(), default=-1))
    ]


def phases(stages: Sequence[StageConfig]) -> list[tuple[StageConfig, ...]]:
    """Return the stages that can be asked chunk by chunk and document by document without a break.

    Which answers of a stage with `escalate` are asked again is known when all of them are there; what
    needs them is another phase.
    """
    number: dict[str, int] = {}
    escalates = {stage.name: stage.escalate is not None for stage in stages}
    for stage in stages:
        number[stage.name] = max(
            (number[need] + escalates[need] for need in stage.needs), default=0
        )
    return [
        tuple(stage for stage in stages if number[stage.name] == phase)
        for phase in range(1 + max(number.values(), default=-1))
    ]


_PREFIX = "stage-"


def stage_shard(stage: StageConfig) -> str:
    """Return the name under which a stage is claimed and committed."""
    return f"{_PREFIX}{stage.name}"


def is_stage_shard(shard: str) -> bool:
    """Tell whether this names a stage, and no shard of documents."""
    return shard.startswith(_PREFIX)
