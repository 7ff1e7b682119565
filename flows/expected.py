"""What a run will probably send and get, where earlier answers of the pipeline's stages are known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from config.pipeline import REDUCES, PipelineConfig, StageConfig
from flows.calibrate import Calibration
from flows.planned_hits import planned_hits
from flows.run.ask import Asker
from flows.run.layout import whole_blocks
from flows.stage_estimate import (
    ANSWERS_PER_GROUP,
    Load,
    Material,
    document_trees,
    overhead_tokens,
    sharing,
    tree,
)

TOKENS = ("requests", "prompt_tokens", "planned_cached_tokens", "output_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What one stage will probably take."""

    requests: float
    prompt_tokens: float
    planned_cached_tokens: float
    output_tokens: float
    num_records: int
    """Records that this rests on."""


def expect_stages(
    pipeline: PipelineConfig,
    asker: Asker,
    material: Material,
    *,
    known: Mapping[str, Calibration],
    lost: Mapping[str, int],
) -> dict[str, Expected]:
    """Return by stage what it will probably take; stages are missing where nothing is known.

    Args:
        pipeline: What is asked.
        asker: The pipeline on its engine.
        material: What there is to ask about.
        known: What earlier answers say of each stage.
        lost: Material tokens by stage that it cannot share with the stages before it.
    """
    overs = {stage.name: stage.over for stage in pipeline.stages}
    units: dict[str, float] = {}
    found: dict[str, Expected] = {}
    is_first = True
    for stage in pipeline.stages:
        told = known.get(stage.name)
        leads, is_first = is_first, is_first and stage.over != "chunk"
        if told is None or (stage.over in REDUCES and not _reads(stage, pipeline) <= known.keys()):
            units[stage.name] = _all_units(stage, material, units)
            continue
        load = _load(stage, material, told, units=units, overs=overs, room=asker.room(stage))
        units[stage.name] = load.units
        load = sharing(stage, load, lost, leads=leads)
        found[stage.name] = _expected(asker, stage, told, load, material=material, leads=not found)
    return found


def _reads(stage: StageConfig, pipeline: PipelineConfig) -> set[str]:
    """Return the stages whose answers it is shown, but for computed ones."""
    computed = {one.name for one in pipeline.stages if one.compute is not None}
    return {*stage.needs} - computed


def _all_units(stage: StageConfig, material: Material, units: Mapping[str, float]) -> float:
    """Return the units of a stage of which no answer is known."""
    known = {
        "chunk": material.num_chunks,
        "rows": material.num_rows,
        "document": material.num_documents,
    }
    inputs = sum(units[need] for need in stage.needs)
    return known.get(stage.over, inputs / ANSWERS_PER_GROUP)


def _load(
    stage: StageConfig,
    material: Material,
    told: Calibration,
    *,
    units: Mapping[str, float],
    overs: Mapping[str, str],
    room: int,
) -> Load:
    share = told.asked_share
    if stage.over == "chunk":
        chunks = material.num_chunks
        return Load(chunks, chunks * share, material.chunk_tokens * share)
    if stage.over == "rows":
        weight, num = material.row_tokens.times(share), material.num_rows
        is_first = all(overs[name] != "rows" for name in units)
        return Load(num, num * share, weight.total, weight.shared if is_first else weight.total)
    inputs = sum(units[need] for need in stage.needs)
    tokens = inputs * told.input_tokens
    if stage.over == "document":
        each, growth = document_trees(
            stage, material, overs=overs, room=room, answer_tokens=told.input_tokens
        )
        documents = material.num_documents
        return Load(documents, documents * share * each, tokens * growth)
    if stage.over == "corpus":
        return Load(1.0, *tree(inputs, room, told.input_tokens))
    groups = max(1, math.ceil(inputs * told.units_per_input))
    requests, of_each = tree(inputs / groups, room, told.input_tokens)
    return Load(groups, groups * requests * share, groups * of_each)


def _expected(
    asker: Asker,
    stage: StageConfig,
    told: Calibration,
    load: Load,
    *,
    material: Material,
    leads: bool,
) -> Expected:
    if told.turns is not None:
        asked = load.units * told.asked_share
        return Expected(
            requests=asked,
            prompt_tokens=asked * told.turns.prompt_tokens,
            planned_cached_tokens=asked * told.turns.cached_tokens,
            output_tokens=asked * told.output_tokens,
            num_records=told.num_records,
        )
    hits = planned_hits(stage, load, asker.instructions_tokens, material=material)
    overhead = told.overhead_tokens or overhead_tokens(asker, stage, stage.prompt)
    once = load.requests * overhead + load.tokens
    again = load.requests * told.again_share
    times = stage.samples + told.again_share
    if material.cache_block_tokens is None and told.hit_share is not None:
        # What was measured stands for what is not known of the cache.
        hits = once * told.hit_share
    elif leads:
        # The first prompt of the run meets an empty cache.
        hits -= whole_blocks(asker.instructions_tokens, material.cache_block_tokens)
    later, later_hits = 0.0, 0.0
    if told.later is not None:
        later = once * times * told.later.share
        # They show the prompt again, which the cache still has, with what was answered to it.
        shown = max(0.0, later - load.requests * told.output_tokens)
        hit_share = told.later.hit_share
        later_hits = shown if hit_share is None else later * hit_share
    return Expected(
        requests=load.requests * stage.samples + again,
        prompt_tokens=once * times + later,
        planned_cached_tokens=max(0.0, hits) + once * (times - 1) + later_hits,
        output_tokens=load.requests * told.output_tokens,
        num_records=told.num_records,
    )


def as_columns(expected: Expected | None, *, computed: bool) -> dict[str, Any]:
    """Return what a stage's entry in a plan says of it; a computed one takes nothing, for certain."""
    if expected is None:
        nothing = 0 if computed else None
        return {f"{name}_expected": nothing for name in TOKENS} | {"calibrated_by": 0}
    return {f"{name}_expected": round(getattr(expected, name)) for name in TOKENS} | {
        "calibrated_by": expected.num_records
    }
