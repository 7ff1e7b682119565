"""`headrace plan`: what a run would read, send and cost, before anything is sent.

The source is listed in full; a sample of its documents is read and cut as a run would, and the rest
is estimated from their sizes, type by type.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from connectors.document import Chunk, Document, SourceRef
from engine.endpoint import Endpoint
from flows.graph_drawing import graph_json
from flows.row_estimate import RowTokens, row_tokens
from flows.run.ask import Asker
from flows.run.bench import (
    chunk_rule,
    endpoint_facts,
    open_room,
    plan_engine,
)
from flows.run.job import Job
from flows.run.plan import list_sources, require_match
from flows.run.shard import read_chunks
from flows.stage_estimate import Material, estimate_stages, num_rows

_Read = Mapping[str, tuple[Document, list[Chunk]]]
"""What was read of the sample, by path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Documents with one suffix: all of them as listed, and what the sample says of them."""

    suffix: str
    count: int
    size_bytes: int
    num_sampled: int
    num_rejected: int
    """Of the sampled ones."""
    num_chunks: float
    """Of the whole group, estimated where not all were read."""
    num_tokens: float
    num_rows: float
    row_tokens: RowTokens


def estimate(job: Job, *, sample: int | None, notify: Callable[[str], None]) -> dict[str, Any]:
    """Return the plan of a run as one JSON object.

    Args:
        job: What would be run; nothing is written to its sink.
        sample: Most documents to read, spread over types; None reads all.
        notify: Called with a line per slow step.

    Raises:
        ConfigError: Nothing matches, or chunk, question and answer do not fit the context.
    """
    with plan_engine(job.pipeline.engine, notify) as endpoint:
        return _estimate(job, endpoint, sample=sample, notify=notify)


def _estimate(
    job: Job, endpoint: Endpoint, *, sample: int | None, notify: Callable[[str], None]
) -> dict[str, Any]:
    asker = Asker(job.pipeline, endpoint)
    rule = chunk_rule(job, endpoint, asker, job.open_lake())
    with (
        tempfile.TemporaryDirectory(prefix="headrace-plan-") as sink,
        open_room(replace(job, sink=sink)) as room,
    ):
        refs = list_sources(room.source, job.pipeline.include)
        if job.limit is not None:
            refs = refs[: job.limit]
        require_match(refs, job.source, job.pipeline.include)
        chosen = _sample(refs, sample)
        notify(f"reading {len(chosen)} of {len(refs)} documents")
        read = {ref.path: read_chunks(room, "plan", ref, rule)[:2] for ref in chosen}
    has_rows = any(stage.over == "rows" for stage in job.pipeline.stages)
    order = job.pipeline.rows.order
    weigh_rows = partial(row_tokens, counter=rule.counter, order=order) if has_rows else None
    groups = _groups(refs, read, weigh_rows)
    rejected = {
        path: f"{document.error_class}: {document.error}"
        for path, (document, _) in read.items()
        if document.status == "rejected"
    }
    return _plan(job, endpoint, asker, _material(groups, read)) | {
        "chunk_max_tokens": rule.max_tokens,
        "documents": [_group_json(group) for group in groups],
        "rejected": rejected,
    }


def _sample(refs: Sequence[SourceRef], sample: int | None) -> list[SourceRef]:
    """Return about `sample` documents: each type by its share, at least one, spread over the paths."""
    if sample is None or sample >= len(refs):
        return list(refs)
    chosen: list[SourceRef] = []
    for members in _by_suffix(refs).values():
        wanted = max(1, round(sample * len(members) / len(refs)))
        step = len(members) / wanted
        chosen += [members[int(index * step)] for index in range(wanted)]
    return chosen


def _by_suffix(refs: Iterable[SourceRef]) -> dict[str, list[SourceRef]]:
    found: dict[str, list[SourceRef]] = defaultdict(list)
    for ref in refs:
        found[PurePosixPath(ref.path).suffix.lower() or "(none)"].append(ref)
    return dict(sorted(found.items()))


def _groups(
    refs: Sequence[SourceRef],
    read: _Read,
    weigh_rows: Callable[[Sequence[Sequence[Chunk]]], RowTokens] | None,
) -> list[_Group]:
    """Return the documents by suffix; `weigh_rows` is for the rows of tables, where they are asked about."""
    groups = []
    for suffix, members in _by_suffix(refs).items():
        known = [read[ref.path] for ref in members if ref.path in read]
        sampled_bytes = sum(ref.size_bytes for ref in members if ref.path in read)
        size_bytes = sum(ref.size_bytes for ref in members)
        factor = size_bytes / sampled_bytes if sampled_bytes else 1.0
        chunks = [chunk for _, found in known for chunk in found]
        groups.append(
            _Group(
                suffix=suffix,
                count=len(members),
                size_bytes=size_bytes,
                num_sampled=len(known),
                num_rejected=sum(document.status == "rejected" for document, _ in known),
                num_chunks=len(chunks) * factor,
                num_tokens=sum(chunk.num_tokens for chunk in chunks) * factor,
                num_rows=num_rows(chunks) * factor,
                row_tokens=weigh_rows([found for _, found in known]).times(factor)
                if weigh_rows
                else RowTokens(),
            )
        )
    return groups


def _group_json(group: _Group) -> dict[str, Any]:
    return {
        "type": group.suffix,
        "count": group.count,
        "bytes": group.size_bytes,
        "sampled": group.num_sampled,
        "rejected_of_sampled": group.num_rejected,
        "chunks": round(group.num_chunks),
        "tokens": round(group.num_tokens),
    }


def _material(groups: Sequence[_Group], read: _Read) -> Material:
    return Material(
        num_documents=sum(
            group.count * (1 - group.num_rejected / max(1, group.num_sampled)) for group in groups
        ),
        num_chunks=sum(group.num_chunks for group in groups),
        chunk_tokens=sum(group.num_tokens for group in groups),
        num_rows=sum(group.num_rows for group in groups),
        row_tokens=sum((group.row_tokens for group in groups), start=RowTokens()),
        sampled=tuple(
            (len(chunks), num_rows(chunks))
            for document, chunks in read.values()
            if document.status != "rejected"
        ),
    )


def _plan(job: Job, endpoint: Endpoint, asker: Asker, material: Material) -> dict[str, Any]:
    stages = estimate_stages(job.pipeline, endpoint, asker, material)
    total = {
        name: sum(stage[name] for stage in stages)
        for name in ("requests", "prompt_tokens", "planned_cached_tokens", "output_tokens_at_most")
    }
    return {
        "pipeline": job.pipeline.name,
        "source": job.source,
        **endpoint_facts(endpoint),
        "graph": graph_json(job.pipeline),
        "stages": stages,
        "total": total,
        "cost_usd": _cost(endpoint, total),
        "seconds_at_most": _seconds(endpoint, total),
        "budget": job.pipeline.budget.model_dump(),
    }


def _cost(endpoint: Endpoint, total: Mapping[str, int]) -> dict[str, float] | None:
    prices = endpoint.profile.prices
    if prices is None:
        return None
    prompt, output = total["prompt_tokens"], total["output_tokens_at_most"]
    cached = total["planned_cached_tokens"]
    return {
        "with_planned_cache": round(prices.usd(prompt=prompt, cached=cached, output=output), 4),
        "without_cache": round(prices.usd(prompt=prompt, cached=0, output=output), 4),
    }


def _seconds(endpoint: Endpoint, total: Mapping[str, int]) -> float | None:
    pace = endpoint.profile.throughput
    if pace is None:
        return None
    computed = total["prompt_tokens"] - total["planned_cached_tokens"]
    return round(
        computed / pace.prompt_tokens_per_s
        + total["output_tokens_at_most"] / pace.output_tokens_per_s,
        1,
    )
