"""The part of `headrace plan` that looks for what breaks the prefix cache, by calls as a run makes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from config.pipeline import PipelineConfig, StageConfig
from connectors.document import Chunk, Document
from engine.endpoint import Endpoint
from engine.server import CacheFacts
from engine.wire import body_of, opening
from flows.run import layout
from flows.run.ask import Asker
from flows.run.layout import Finding, Sent
from flows.run.units import Row, rows_of
from flows.stage_estimate import Material


class Read(NamedTuple):
    """One document of the sample."""

    document: Document
    chunks: Sequence[Chunk]
    media_dir: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What was seen of the layout."""

    findings: tuple[Finding, ...]
    lost: Mapping[str, int]
    """Material tokens by the stage that cannot share them."""


def lost_usd(endpoint: Endpoint, finding: Finding) -> float | None:
    """Return what a finding costs; None where the profile has no prices.

    What could have come from the cache is paid at the price of a miss; what is asked anew, in full.
    """
    prices = endpoint.profile.prices
    if prices is None:
        return None
    hit = 0.0 if finding.kind == "volatile" else prices.cached_input_usd
    return round(finding.tokens_lost * (prices.input_usd - hit) / 1e6, 6)


def specimens(
    pipeline: PipelineConfig, endpoint: Endpoint, read: Sequence[Read]
) -> list[list[Sent]]:
    """Return the first calls of all stages about a chunk, and about a row, of the sample.

    Where a question depends on earlier answers, its template stands for it: it comes last in a prompt.
    """
    bare = pipeline.model_copy(update={"stages": tuple(map(_bare, pipeline.stages))})
    asker = Asker(bare, endpoint)
    return [
        [sent for stage in stages if (sent := _sent(asker, stage, one, chunk, row=row)) is not None]
        for over in ("chunk", "rows")
        if (stages := [stage for stage in bare.stages if stage.over == over])
        for one, chunk, row in _units(read, over, pipeline, endpoint)
    ]


def look(
    pipeline: PipelineConfig,
    asker: Asker,
    sent: Sequence[Sequence[Sent]],
    *,
    material: Material,
    cache: CacheFacts | None,
) -> Looked:
    """Return what breaks the prefix between stages, and what the KV cache cannot hold.

    Args:
        pipeline: Its stages are compared.
        asker: Knows what stands in front of every chunk.
        sent: What `specimens` returned.
        material: What there is to ask about.
        cache: The engine's KV cache; None where it does not tell.
    """
    block = cache.block_tokens if cache else layout.BLOCK_TOKENS
    overs = {stage.name: stage.over for stage in pipeline.stages}
    found: dict[str, Finding] = {}
    for calls in sent:
        is_rows = bool(calls) and overs[calls[0].stage] == "rows"
        corpus = material.row_tokens.total if is_rows else material.chunk_tokens
        for finding in layout.compare(calls, round(corpus), block):
            found.setdefault(finding.where, finding)
    lost = {finding.stage: finding.tokens_lost for finding in found.values()}
    asked = [stage.name for stage in pipeline.stages if stage.over == "chunk"]
    large = layout.too_large(
        material.chunk_sizes,
        round(material.chunk_tokens),
        room=cache.num_tokens - asker.instructions_tokens if cache else None,
        num_stages=len(asked),
    )
    if large is not None:
        each = large.tokens_lost // (len(asked) - 1)
        lost = {**lost, **{name: max(each, lost.get(name, 0)) for name in asked[1:]}}
    findings = [*found.values(), *([large] if large else [])]
    return Looked(findings=tuple(findings), lost=lost)


def volatile(pipeline: PipelineConfig, asker: Asker, prompt_tokens: int) -> list[Finding]:
    """Return the shared texts whose edit would have everything asked anew, `prompt_tokens` in all."""
    return [
        *layout.volatile(
            pipeline.shared, prompt_tokens, asker.instructions_tokens, layout.BLOCK_TOKENS
        )
    ]


def _bare(stage: StageConfig) -> StageConfig:
    """Return the stage as if it needed no answers; its prompt is shown as it is written."""
    if stage.over not in {"chunk", "rows"} or not stage.needs:
        return stage
    prompt = f"{{% raw %}}{stage.prompt.replace('endraw', 'end raw')}{{% endraw %}}"
    return stage.model_copy(update={"needs": (), "when": None, "prompt": prompt})


def _units(
    read: Sequence[Read], over: str, pipeline: PipelineConfig, endpoint: Endpoint
) -> Iterator[tuple[Read, Chunk, Row | None]]:
    """Yield a unit of text, and one with an image where the engine is shown images."""
    most = pipeline.chunk.max_per_document
    wanted = {False, endpoint.profile.capabilities.images}
    for one in read:
        rows = rows_of(one.chunks, pipeline.rows.order).rows if over == "rows" else ()
        for number, chunk in enumerate(one.chunks[:most]):
            row = next((row for row in rows if row.chunk == number), None)
            segments = chunk.segments if row is None else (row.segment,)
            seen = any(segment.kind == "image" for segment in segments)
            if seen in wanted and (over == "chunk" or row is not None):
                wanted.discard(seen)
                yield one, chunk, row
            if not wanted:
                return


def _sent(
    asker: Asker, stage: StageConfig, one: Read, chunk: Chunk, *, row: Row | None
) -> Sent | None:
    inquiry = asker.about_chunk(
        stage, one.document, chunk, upstream={}, media_dir=one.media_dir, row=row
    )
    if not inquiry.requests:
        return None
    request = inquiry.requests[0]
    return Sent(
        stage=stage.name,
        body=body_of(opening(request, asker.endpoint), request, asker.endpoint),
        material=request.material,
        material_tokens=inquiry.material_tokens,
    )
