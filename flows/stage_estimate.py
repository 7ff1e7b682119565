"""What each stage of a pipeline would send, from what a sample says of the corpus.

Every answer is taken to quote QUOTED_TOKENS, and every `when` to hold: a plan is rather too high than
too low. What earlier answers teach of both is in flows.expected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from config.pipeline import PipelineConfig, StageConfig
from connectors.document import Chunk, Segment
from engine.wire import opening_text
from flows.planned_hits import planned_hits
from flows.row_estimate import RowTokens
from flows.run.ask import Asker
from flows.run.prepare import PreparedStage
from flows.run.vectors import vectors_of

QUOTED_TOKENS = 40
"""Tokens that one answer adds to a later stage's prompt: a quoted line with its label, about."""

ANSWERS_PER_GROUP = 10
"""Answers that a group is taken to have: how many say the same is not known before they are there."""

_GROUPED = f"one group per {ANSWERS_PER_GROUP} answers"
_COMPUTED = f"one row per {ANSWERS_PER_GROUP} records"
_BY_BATCH = (
    "sent through the host's batch API at its price: answers come within {window}, at no pace that is known,"
    " and whether its cache lowers the price there is not known either"
)
_VECTORS = (
    "vectors are not counted: about {tokens:,.0f} tokens for the engine that makes them where an agent searches"
    " all of it, once for the sink"
)
_ALL_PASS = "`when` holds for all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What there is to ask about, estimated where not all was read."""

    num_documents: float
    num_chunks: float
    chunk_tokens: float
    num_rows: float
    row_tokens: RowTokens
    sampled: tuple[tuple[int, int], ...]
    """Chunks and rows of each document that was read."""
    chunk_sizes: tuple[int, ...] = ()
    """Tokens of each chunk that was read."""
    cache_block_tokens: int | None = None
    """Of the engine's prefix cache; None: not known, and it is taken to keep every token."""


class Load(NamedTuple):
    """What one stage sends."""

    units: float
    """Chunks, rows, documents or groups; it gives as many answers."""
    requests: float
    """More than units, where the answers about one exceed the context."""
    tokens: float
    """Material of all requests."""
    shared: float = 0.0
    """Tokens of it that another stage has sent before."""


def num_rows(chunks: Iterable[Chunk]) -> int:
    """Return how many rows of tables the chunks hold; what a cut row goes on with is no row more."""
    return sum(not segment.is_rest for segment in _table_lines(chunks))


def _table_lines(chunks: Iterable[Chunk]) -> Iterator[Segment]:
    return (segment for chunk in chunks for segment in chunk.segments if segment.kind == "table")


def estimate_stages(
    pipeline: PipelineConfig, asker: Asker, material: Material, lost: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Return each stage's estimate, in the order of the pipeline.

    Args:
        pipeline: What is asked.
        asker: The pipeline on its engine.
        material: What there is to ask about.
        lost: Material tokens by stage that it cannot share with the stages before it.
    """
    overs = {stage.name: stage.over for stage in pipeline.stages}
    loads: dict[str, Load] = {}
    found, is_first = [], True
    for stage in pipeline.stages:
        if stage.compute is not None:
            inputs = sum(loads[need].units for need in stage.needs)
            loads[stage.name] = Load(inputs / ANSWERS_PER_GROUP, 0.0, 0.0)
            found.append(_computed(stage))
            continue
        room = asker.room(stage)
        load = _load(stage, material, loads=loads, overs=overs, room=room)
        load = sharing(stage, load, lost, leads=is_first)
        is_first = is_first and stage.over != "chunk"
        loads[stage.name] = load
        overhead = overhead_tokens(asker, stage, stage.prompt)
        found.append(
            _asked(
                asker.stages[stage.name],
                load,
                prompt_tokens=load.requests * overhead + load.tokens,
                cached_tokens=planned_hits(
                    stage,
                    load,
                    asker.instructions_tokens,
                    material=material,
                ),
            )
        )
        if stage.over == "rows" and material.num_rows:
            found[-1]["assumed"].append(_row_order(pipeline.rows.order, material.row_tokens))
        if vectors_of(pipeline, stage) is not None:
            found[-1]["assumed"].append(_VECTORS.format(tokens=material.chunk_tokens))
    return found


def sharing(stage: StageConfig, load: Load, lost: Mapping[str, int], *, leads: bool) -> Load:
    """Return the load with what it shares with the stages before it.

    Args:
        stage: Whose load it is.
        load: With what rows share among themselves.
        lost: Material tokens by stage that it cannot share.
        leads: Whether no stage before it is about chunks.
    """
    if stage.over == "chunk":
        shared = 0.0 if leads else load.tokens - lost.get(stage.name, 0)
    else:
        shared = load.shared - lost.get(stage.name, 0)
    return load._replace(shared=max(0.0, shared))


def overhead_tokens(asker: Asker, stage: StageConfig, question: str) -> int:
    """Return the tokens of a prompt beside its material, as they are sent."""
    endpoint, prepared = asker.endpoint, asker.stages[stage.name]
    asked = "", question, prepared.schema_of_many
    text = opening_text(*asked, mode=prepared.way.mode, profile=endpoint.profile)
    return asker.instructions_tokens + endpoint.counter.count(text) + endpoint.chat_tokens


def largest_request(pipeline: PipelineConfig, asker: Asker, chunk_tokens: int) -> int:
    """Return the tokens of the longest chunk with its question and its longest answer, over all stages."""
    return max(
        overhead_tokens(asker, stage, stage.prompt)
        + (chunk_tokens if stage.over == "chunk" else 0)
        + stage.max_output_tokens
        + asker.stages[stage.name].way.max_reasoning_tokens
        for stage in pipeline.stages
        if stage.compute is None
    )


def _row_order(order: str, tokens: RowTokens) -> str:
    """Return in words how much rows share in their order, and how much as the tables have them."""
    total = max(1.0, tokens.total)
    said = f"rows in {order} order begin alike in {tokens.shared / total:.0%} of their tokens"
    as_given = f", {tokens.shared_as_given / total:.0%} as given"
    return said if order == "given" else said + as_given


def _load(
    stage: StageConfig,
    material: Material,
    *,
    loads: Mapping[str, Load],
    overs: Mapping[str, str],
    room: int,
) -> Load:
    if stage.over == "chunk":
        return Load(material.num_chunks, material.num_chunks, material.chunk_tokens)
    if stage.over == "rows":
        is_first = all(overs[name] != "rows" for name in loads)
        weight = material.row_tokens
        shared = weight.shared if is_first else weight.total
        return Load(material.num_rows, material.num_rows, weight.total, shared)
    inputs = sum(loads[need].units for need in stage.needs)
    if stage.over == "document":
        requests, growth = document_trees(stage, material, overs=overs, room=room)
        documents = material.num_documents
        return Load(documents, documents * requests, inputs * QUOTED_TOKENS * growth)
    if stage.over == "corpus":
        return Load(1.0, *tree(inputs, room))
    groups = math.ceil(inputs / ANSWERS_PER_GROUP)
    requests, tokens = tree(inputs / max(1, groups), room)
    return Load(groups, groups * requests, groups * tokens)


def document_trees(
    stage: StageConfig,
    material: Material,
    *,
    overs: Mapping[str, str],
    room: int,
    answer_tokens: float = QUOTED_TOKENS,
) -> tuple[float, float]:
    """Return requests per document, and how much more is read than the answers by themselves.

    By the documents of the sample: the mean of all would hide the few that are long.
    """
    counts = []
    for chunks, rows in material.sampled:
        units = {"chunk": chunks, "rows": rows, "document": 1}
        counts.append(sum(units.get(overs[need], 0) for need in stage.needs))
    trees = [tree(count, room, answer_tokens) for count in counts]
    plain = sum(counts) * answer_tokens
    if not plain:
        return 1.0, 1.0
    requests = sum(requests for requests, _ in trees) / len(trees)
    return requests, sum(tokens for _, tokens in trees) / plain


def tree(
    num_answers: float, room: int, answer_tokens: float = QUOTED_TOKENS
) -> tuple[float, float]:
    """Return requests and material tokens of one question about so many answers.

    Where they exceed the room for material, each part gets an answer, and those are put together the
    same way until one is left.
    """
    tokens = num_answers * answer_tokens
    requests, total = 0.0, 0.0
    # A question about two answers at least, or no level would be smaller than the one below it.
    room = max(room, math.ceil(2 * answer_tokens), 1)
    while True:
        parts = max(1, math.ceil(tokens / room))
        requests, total = requests + parts, total + tokens
        if parts == 1:
            return requests, total
        tokens = parts * answer_tokens


def _of_agents(stage: StageConfig, mode: str) -> list[str]:
    """Return how far an agent's work may go beyond the one turn that can be counted."""
    if not stage.tools:
        return []
    limits = stage.limits
    below = ""
    if mode == "swarm":
        below = (
            f"; any of the calls may be a sub-agent, {limits.subagents:,} of them at once, each of up to"
            f" {limits.subagent_steps:,} turns and {limits.calls:,} calls{_bound(limits.subagent_tokens)}"
        )
    return [
        f"one turn is counted; an agent may take {limits.steps:,} turns and {limits.calls:,} calls"
        f"{_bound(limits.tokens)}{below},"
        " and each turn reads what came before it: limits and budget bound it"
    ]


def _bound(tokens: int | None) -> str:
    return "" if tokens is None else f", {tokens:,} tokens in all"


def _assumed(stage: StageConfig) -> list[str]:
    """Return what the estimate of a stage takes for granted, in words."""
    said = [_GROUPED] if stage.over == "group" else []
    said += [_COMPUTED] if stage.compute is not None else []
    if stage.batch_api is not None:
        said.append(_BY_BATCH.format(window=stage.batch_api.window))
    return [*said, _ALL_PASS] if stage.when is not None else said


def _computed(stage: StageConfig) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "over": stage.over,
        "mode": "sql",
        "sent": "not at all",
        "mode_reason": "computed from records; no model is asked",
        "requests": 0,
        "escalated_at_most": 0,
        "approval": None,
        "approve_calls": [],
        "prompt_tokens": 0,
        "planned_cached_tokens": 0,
        "output_tokens_at_most": 0,
        "assumed": _assumed(stage),
    }


def _asked(
    prepared: PreparedStage, load: Load, *, prompt_tokens: float, cached_tokens: float
) -> dict[str, Any]:
    """Return one stage's estimate: its samples, and at most as much asked again as it allows."""
    stage, requests = prepared.config, load.requests
    again = 0.0
    if prepared.again is not None and stage.escalate is not None:
        again = requests * stage.escalate.max_share
    factor = stage.samples + (again / requests if requests else 0.0)
    repeated = (factor - 1) * prompt_tokens
    output = (
        requests * stage.samples * (stage.max_output_tokens + prepared.way.max_reasoning_tokens)
        + again * prepared.answer_tokens
    )
    return {
        "stage": stage.name,
        "over": stage.over,
        "mode": prepared.choice.mode,
        "mode_reason": prepared.choice.reason,
        "sent": "batch_api" if stage.batch_api else "at once",
        "requests": round(requests * stage.samples),
        "escalated_at_most": math.ceil(again),
        "approval": stage.approval,
        "approve_calls": [*stage.approve_calls],
        "prompt_tokens": round(prompt_tokens * factor),
        "planned_cached_tokens": round(cached_tokens + repeated),
        "output_tokens_at_most": round(output),
        "assumed": [*_assumed(stage), *_of_agents(stage, prepared.choice.mode)],
    }
