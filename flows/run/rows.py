"""From questions to records: what is asked about one chunk or document, and the row it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from config.pipeline import StageConfig
from connectors.document import Chunk, Document, Segment
from connectors.sinks import parquet
from connectors.sinks.columns import output_values
from engine.request import ModeName, Outcome, Request, Result, content_key
from flows.run.doubt import Settled
from flows.run.labels import Citation, resolve_labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiry:
    """One stage asked about one unit; it becomes exactly one record."""

    stage: StageConfig
    mode: ModeName
    """How it is asked; a stage's `auto` is settled here."""
    fingerprint: str
    document: Document
    chunk: Chunk | None
    """None for a stage over the whole document."""
    input_keys: tuple[str, ...] = ()
    """Keys of what the model is shown: of the chunk, and of earlier answers."""
    requests: tuple[Request, ...] = ()
    """One per sample; none where nothing is asked: `unasked` says why."""
    again: Request | None = None
    """What is asked where the answer is doubtful; None where the stage does not escalate."""
    segments: Mapping[str, Segment] = field(default_factory=dict)
    """What the model is shown, by label."""
    material_tokens: int = 0
    """Tokens of the material, which all stages about the same unit share."""
    saw: str = "nothing"
    unasked: tuple[Outcome, str, str] | None = None
    """Outcome, error class and message of an inquiry that is not sent."""

    @property
    def unit(self) -> str:
        """Return what is asked about, unique in the document."""
        return "document" if self.chunk is None else f"chunk-{self.chunk.ordinal:05d}"

    @property
    def row_key(self) -> str:
        """Return the key of the record: stage, relative source path and unit."""
        return content_key("row", self.stage.name, self.document.source.path, self.unit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An inquiry with its end."""

    inquiry: Inquiry
    result: Result
    """The result that counts."""
    results: Sequence[Result]
    """All results: every sample, and the one in Thinking where it was asked again."""
    agreement: float | None
    """Share of the samples that agree with `result`; None where there was one sample."""
    escalated: str | None
    """Why it was asked again in Thinking; None where it was not."""
    output: Mapping[str, Any] | None
    """The answer with labels replaced by text; None where there is none."""
    columns: Mapping[str, object]
    """The answer as typed column values; empty where there is none."""
    citations: Sequence[Citation]


def close(inquiry: Inquiry, settled: Settled | None) -> Answered:
    """Return the inquiry with its result; an inquiry that was not sent closes itself."""
    if settled is None:
        settled = Settled(result=_unasked_result(inquiry))
    result = settled.result
    if result.outcome != "succeeded" or result.output is None:
        return _answered(inquiry, settled)
    output, citations = resolve_labels(inquiry.stage.output, result.output, inquiry.segments)
    try:
        columns = output_values(inquiry.stage.output, output)
    except ValueError as exc:
        bad = replace(result, outcome="invalid_output", error_class="bad_value", error=str(exc))
        return _answered(inquiry, replace(settled, result=bad))
    return replace(_answered(inquiry, settled), output=output, columns=columns, citations=citations)


def _answered(inquiry: Inquiry, settled: Settled) -> Answered:
    return Answered(
        inquiry=inquiry,
        result=settled.result,
        results=settled.results,
        agreement=settled.agreement,
        escalated=settled.escalated,
        output=None,
        columns={},
        citations=(),
    )


def _unasked_result(inquiry: Inquiry) -> Result:
    assert inquiry.unasked is not None
    outcome, error_class, error = inquiry.unasked
    return Result(
        request_key="",
        stage=inquiry.stage.name,
        outcome=outcome,
        error_class=error_class,
        error=error,
        mode=inquiry.mode,
    )


def record_row(answered: Answered) -> dict[str, Any]:
    """Return the row of the stage's records table."""
    inquiry, result = answered.inquiry, answered.result
    document = inquiry.document
    row: dict[str, Any] = {
        "row_key": inquiry.row_key,
        "uri": document.source.uri,
        "path": document.source.path,
        "document_key": document.document_key,
        "chunk_key": inquiry.chunk.chunk_key if inquiry.chunk else None,
        "unit": inquiry.unit,
        "request_key": result.request_key if inquiry.requests else None,
        "outcome": result.outcome,
        "error_class": result.error_class,
        "error": result.error,
    }
    for name in inquiry.stage.output["properties"]:
        row[name] = answered.columns.get(name)
    asked = bool(inquiry.requests)
    return row | {
        "citations": [_citation_row(citation) for citation in answered.citations],
        "saw": inquiry.saw,
        "mode": result.mode,
        "mode_observed": result.mode_observed,
        "mode_notes": list(result.mode_notes) if asked else None,
        "thought": result.reasoning,
        "agreement": answered.agreement,
        "escalated": answered.escalated,
        "profile": result.engine or None,
        "fallback": result.fallback,
        "model": result.model or None,
        "fingerprint": inquiry.fingerprint,
        "prompt_tokens": _tokens(answered, "prompt_tokens") if asked else None,
        "completion_tokens": _tokens(answered, "completion_tokens") if asked else None,
    }


def _tokens(answered: Answered, name: str) -> int:
    return sum(getattr(result.usage, name) for result in answered.results)


def usage_row(row_key: str, result: Result) -> dict[str, Any]:
    """Return the row of the run's usage table for one request."""
    return {
        "request_key": result.request_key,
        "row_key": row_key,
        "stage": result.stage,
        "mode": result.mode,
        "profile": result.engine,
        "attempts": result.attempts,
        "seconds": result.seconds,
        "first_token_s": result.first_token_s,
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.usage.prompt_tokens,
        "cached_tokens": result.usage.cached_tokens,
        "completion_tokens": result.usage.completion_tokens,
        "reasoning_tokens": result.usage.reasoning_tokens,
        "usage_guessed": result.usage.num_guessed > 0,
        "cost_usd": result.cost_usd,
    }


def _citation_row(citation: Citation) -> dict[str, Any]:
    segment = citation.segment
    return {
        "field": citation.field,
        "label": segment.label,
        "quote": segment.text,
        "tier": segment.tier,
        "media": segment.media,
        "span": parquet.span_row(segment.span),
    }
