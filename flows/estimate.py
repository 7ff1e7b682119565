"""`headrace plan`: what a run would read, send and cost, before anything is sent.

The source is listed in full; a sample of its documents is read and cut as a run would, and the rest
is estimated from their sizes, type by type.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from connectors.document import Chunk, SourceRef
from engine.endpoint import Endpoint
from engine.profile import Profile
from flows.calibrate import Calibration, calibrate
from flows.capacity import pipeline_capacity
from flows.expected import as_columns, expect_stages
from flows.graph_drawing import graph_json
from flows.layout_lint import Looked, Read, look, lost_usd, specimens, volatile
from flows.plan_totals import cost, for_run, totals, with_seconds
from flows.planned_hits import measured_block
from flows.row_estimate import RowTokens, row_tokens
from flows.run.ask import Asker
from flows.run.bench import endpoint_facts, open_room, plan_asker
from flows.run.chunk_size import cache_of, chunk_rule
from flows.run.job import Job
from flows.run.masked import open_mask
from flows.run.plan import list_sources, require_match
from flows.run.plans import keep_plan
from flows.run.reading import read_chunks
from flows.run.routes import Passage, routes_of
from flows.stage_estimate import Material, estimate_stages, largest_request, num_rows
from flows.usage_records import load_usage

_Sample = Mapping[str, Read]
"""What was read of the sample, by path."""


class _Learned(NamedTuple):
    """What earlier runs on the sink say."""

    known: Mapping[str, Calibration]
    """Of each stage."""
    block_tokens: int | None
    """Of the engine's prefix cache."""


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


def estimate(
    job: Job,
    *,
    sample: int | None,
    notify: Callable[[str], None],
    pilot: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the plan of a run as one JSON object, and keep it for the run that follows.

    Args:
        job: What would be run; nothing is written to its sink. Answers that are there say how long
            those to come will be.
        sample: Most documents to read, spread over types; None reads all.
        notify: Called with a line per slow step.
        pilot: What a pilot took; None where there was none.

    Raises:
        ConfigError: Nothing matches, or chunk, question and answer do not fit the context.
    """
    plans = [
        (with_seconds({**plan, "pilot": pilot}, profile), profile)
        for plan, profile in _plan_routes(job, sample=sample, notify=notify)
    ]
    (plan, profile), *others = plans
    if others:
        return {**plan, "sensitive": others[0][0]}
    keep_plan(job, for_run(plan, profile.prices))
    return plan


def plan_on_engine(
    job: Job, *, sample: int | None, notify: Callable[[str], None]
) -> tuple[dict[str, Any], Profile]:
    """Return the plan of a run without its times, and its engine; kept nowhere. See `estimate`.

    Where some documents are sensitive, it is the plan of the others.
    """
    return next(_plan_routes(job, sample=sample, notify=notify))


def _plan_routes(
    job: Job, *, sample: int | None, notify: Callable[[str], None]
) -> Iterator[tuple[dict[str, Any], Profile]]:
    """Yield the plan of each route that documents take, and the engine that they go to."""
    routes = routes_of(job.pipeline)
    refs = list_sources(job.open_source(), job.pipeline.include)
    refs = refs if job.limit is None else refs[: job.limit]
    require_match(refs, job.source, job.pipeline.include)
    for passage in routes.passages:
        of_it = [ref for ref in refs if routes.find([ref.path]) is passage]
        if of_it:
            is_last = passage is routes.of_gathered
            yield _of_route(job, passage, of_it, is_last=is_last, sample=sample, notify=notify)


def _of_route(
    job: Job,
    passage: Passage,
    refs: Sequence[SourceRef],
    *,
    is_last: bool,
    sample: int | None,
    notify: Callable[[str], None],
) -> tuple[dict[str, Any], Profile]:
    if not is_last:
        # What rests on all documents goes the last way.
        own = tuple(stage for stage in job.pipeline.stages if not stage.is_gathered)
        job = replace(job, pipeline=job.pipeline.model_copy(update={"stages": own}))
    lake = job.open_lake()
    mask = open_mask(job.pipeline.policy, lake)
    with plan_asker(job, passage, mask, notify) as asker:
        # Records of sensitive documents are not counted at the engine of the others.
        usage = load_usage(lake)
        known = calibrate(lake, asker, job.pipeline.stages, usage) if is_last else {}
        learned = _Learned(known, measured_block(usage))
        plan = _estimate(job, asker, refs, sample=sample, learned=learned, notify=notify)
        return {"route": passage.name, **plan}, asker.endpoint.profile


def _estimate(
    job: Job,
    asker: Asker,
    refs: Sequence[SourceRef],
    *,
    sample: int | None,
    learned: _Learned,
    notify: Callable[[str], None],
) -> dict[str, Any]:
    endpoint = asker.endpoint
    rule = chunk_rule(job, endpoint, asker, job.open_lake())
    with (
        tempfile.TemporaryDirectory(prefix="headrace-plan-") as sink,
        open_room(replace(job, sink=sink)) as room,
    ):
        chosen = _sample(refs, sample)
        notify(f"reading {len(chosen)} of {len(refs)} documents")
        read = {ref.path: Read(*read_chunks(room, "plan", ref, rule)) for ref in chosen}
        # While the pictures are there.
        sent = specimens(job.pipeline, endpoint, [*read.values()])
    has_rows = any(stage.over == "rows" for stage in job.pipeline.stages)
    read = {path: _asked_about(job, endpoint, one) for path, one in read.items()}
    order = job.pipeline.rows.order
    weigh_rows = partial(row_tokens, counter=rule.counter, order=order) if has_rows else None
    groups = _groups(refs, read, weigh_rows)
    cache = cache_of(endpoint)
    material = _material(groups, read, cache.block_tokens if cache else learned.block_tokens)
    looked = look(job.pipeline, asker, sent, material=material, cache=cache)
    rejected = {
        path: f"{one.document.error_class}: {one.document.error}"
        for path, one in read.items()
        if one.document.status == "rejected"
    }
    return _plan(job, asker, material, looked=looked, known=learned.known) | {
        "capacity": pipeline_capacity(
            endpoint.profile, largest_request(job.pipeline, asker, rule.max_tokens)
        ),
        "chunk_max_tokens": rule.max_tokens,
        "documents": [_group_json(group) for group in groups],
        "rejected": rejected,
    }


def _asked_about(job: Job, endpoint: Endpoint, one: Read) -> Read:
    """Return the document with the chunks that are asked about."""
    chunks = one.chunks[: job.pipeline.chunk.max_per_document]
    if not endpoint.profile.capabilities.images:
        chunks = [chunk for chunk in chunks if not _has_image(chunk)]
    return one._replace(chunks=chunks)


def _has_image(chunk: Chunk) -> bool:
    return any(segment.kind == "image" and segment.media for segment in chunk.segments)


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
    read: _Sample,
    weigh_rows: Callable[[Sequence[Sequence[Chunk]]], RowTokens] | None,
) -> list[_Group]:
    """Return the documents by suffix; `weigh_rows` is for the rows of tables, where they are asked about."""
    groups = []
    for suffix, members in _by_suffix(refs).items():
        known = [read[ref.path] for ref in members if ref.path in read]
        sampled_bytes = sum(ref.size_bytes for ref in members if ref.path in read)
        size_bytes = sum(ref.size_bytes for ref in members)
        factor = size_bytes / sampled_bytes if sampled_bytes else 1.0
        chunks = [chunk for one in known for chunk in one.chunks]
        groups.append(
            _Group(
                suffix=suffix,
                count=len(members),
                size_bytes=size_bytes,
                num_sampled=len(known),
                num_rejected=sum(one.document.status == "rejected" for one in known),
                num_chunks=len(chunks) * factor,
                num_tokens=sum(chunk.num_tokens for chunk in chunks) * factor,
                num_rows=num_rows(chunks) * factor,
                row_tokens=weigh_rows([one.chunks for one in known]).times(factor)
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


def _material(groups: Sequence[_Group], read: _Sample, block: int | None) -> Material:
    return Material(
        num_documents=sum(
            group.count * (1 - group.num_rejected / max(1, group.num_sampled)) for group in groups
        ),
        num_chunks=sum(group.num_chunks for group in groups),
        chunk_tokens=sum(group.num_tokens for group in groups),
        num_rows=sum(group.num_rows for group in groups),
        row_tokens=sum((group.row_tokens for group in groups), start=RowTokens()),
        sampled=tuple(
            (len(one.chunks), num_rows(one.chunks))
            for one in read.values()
            if one.document.status != "rejected"
        ),
        cache_block_tokens=block,
        chunk_sizes=tuple(chunk.num_tokens for one in read.values() for chunk in one.chunks),
    )


def _plan(
    job: Job,
    asker: Asker,
    material: Material,
    *,
    looked: Looked,
    known: Mapping[str, Calibration],
) -> dict[str, Any]:
    endpoint, pipeline, lost = asker.endpoint, job.pipeline, looked.lost
    expected = expect_stages(pipeline, asker, material, known=known, lost=lost)
    stages = [
        stage | as_columns(expected.get(stage["stage"]), computed=stage["mode"] == "sql")
        for stage in estimate_stages(pipeline, asker, material, lost)
    ]
    total = totals(stages)
    findings = [*looked.findings, *volatile(job.pipeline, asker, total["prompt_tokens"] or 0)]
    return {
        "pipeline": job.pipeline.name,
        "source": job.source,
        **endpoint_facts(endpoint),
        "graph": graph_json(job.pipeline),
        "stages": stages,
        "total": total,
        "cost_usd": cost(endpoint.profile.prices, stages),
        "budget": job.pipeline.budget.model_dump(),
        "layout": [asdict(one) | {"usd_lost": lost_usd(endpoint, one)} for one in findings],
    }
