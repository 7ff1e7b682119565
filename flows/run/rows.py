"""From questions to records: what is asked about one chunk or document, and the row it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from config.pipeline import StageConfig
from connectors.document import Chunk, Document, Segment
from connectors.sinks import parquet
from connectors.sinks.columns import output_values
from engine.request import ModeName, Outcome, Request, Result, content_key
from flows.run.doubt import Settled
from flows.run.labels import Citation, Claim, Line, Origin, resolve_labels
from flows.run.lines import Given
from flows.run.masked import Mask
from flows.run.routes import RouteName


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiry:
    """One stage asked about one unit; it becomes exactly one record."""

    stage: StageConfig
    mode: ModeName
    """How it is asked; a stage's `auto` is settled here."""
    fingerprint: str
    document: Document | None
    """None for what spans documents."""
    chunk: Chunk | None
    """The chunk asked about, or that a row lies in; None for what spans chunks."""
    unit: str
    """What is asked about, unique in the document, or in the stage where there is none."""
    requests: tuple[Request, ...] = ()
    """One per sample; none where nothing is asked: `unasked` says why."""
    withheld: tuple[Request, ...] = ()
    """Those that a person has not agreed to, not yet or not at all."""
    again: Request | None = None
    """What is asked where the answer is doubtful; None where the stage does not escalate."""
    lines: Sequence[Line] = ()
    """What the model is shown."""
    num_inputs: int | None = None
    """Inputs that a reduce is about, those of its parts included; None for others."""
    num_answered: int | None = None
    """How many of them had an answer to show."""
    material_tokens: int = 0
    """Tokens of the material, which all stages about the same unit share."""
    is_fresh: bool = False
    """Whether answers of earlier runs do not count."""
    shared_tokens: int = 0
    """Tokens of the material that the question asked before it, about another row, begins with too."""
    saw: str = "nothing"
    route: RouteName = "open"
    mask: Mask | None = None
    """What is masked in all that the model is shown; None: nothing."""
    unasked: tuple[Outcome, str, str] | None = None
    """Outcome, error class and message of an inquiry that is not sent."""

    @property
    def row_key(self) -> str:
        """Return the key of the record: stage, relative source path and unit."""
        path = self.document.source.path if self.document else None
        return content_key("row", self.stage.name, path, self.unit)


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
    claims: Sequence[Claim]

    @property
    def given(self) -> Given | None:
        """Return the answer as later stages are shown it; None where there is none."""
        if self.output is None:
            return None
        inquiry, begins = self.inquiry, None
        if inquiry.chunk is not None and inquiry.lines:
            begins = inquiry.lines[0].origins[0]
        return Given(
            output=self.output, citations=self.citations, claims=self.claims, begins=begins
        )


def close(inquiry: Inquiry, settled: Settled | None) -> Answered:
    """Return the inquiry with its result; an inquiry that was not sent closes itself."""
    if settled is None:
        settled = Settled(result=_unasked_result(inquiry))
    result = settled.result
    if result.outcome != "succeeded" or result.output is None:
        return _answered(inquiry, settled)
    mask = inquiry.mask
    # Quotes are checked against what the document says.
    output = mask.revealed(result.output) if mask else result.output
    found = resolve_labels(inquiry.stage.output, output, inquiry.lines)
    if mask and not mask.restore:
        found = mask.hidden(found)
    try:
        columns = output_values(inquiry.stage.output, found.output)
    except ValueError as exc:
        bad = replace(result, outcome="invalid_output", error_class="bad_value", error=str(exc))
        return _answered(inquiry, replace(settled, result=bad))
    return replace(
        _answered(inquiry, settled),
        output=found.output,
        columns=columns,
        citations=found.citations,
        claims=found.claims,
    )


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
        claims=(),
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
        "uri": document.source.uri if document else None,
        "path": document.source.path if document else None,
        "document_key": document.document_key if document else None,
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
        "citations": [citation_row(citation) for citation in answered.citations],
        "claims": [asdict(claim) for claim in answered.claims],
        "num_inputs": inquiry.num_inputs,
        "num_answered": inquiry.num_answered,
        "saw": inquiry.saw,
        "mode": result.mode,
        "mode_observed": result.mode_observed,
        "mode_notes": list(result.mode_notes) if asked else None,
        "thought": inquiry.mask.told(result.reasoning) if inquiry.mask else result.reasoning,
        "agreement": answered.agreement,
        "escalated": answered.escalated,
        "profile": result.engine or None,
        "policy_route": inquiry.route if asked else None,
        "served_by": result.host or None,
        "fallback": result.fallback,
        "model": result.model or None,
        "fingerprint": inquiry.fingerprint,
        "prompt_tokens": _tokens(answered, "prompt_tokens") if asked else None,
        "completion_tokens": _tokens(answered, "completion_tokens") if asked else None,
    }


def _tokens(answered: Answered, name: str) -> int:
    return sum(getattr(result.usage, name) for result in answered.results)


def usage_row(inquiry: Inquiry, result: Result) -> dict[str, Any]:
    """Return the row of the run's usage table for one request."""
    work = result.work
    return {
        "request_key": result.request_key,
        "row_key": inquiry.row_key,
        "stage": result.stage,
        "mode": result.mode,
        "profile": result.engine,
        "batch_ids": list(result.batch_ids),
        "policy_route": inquiry.route,
        "served_by": result.host or None,
        "attempts": result.attempts,
        "seconds": result.seconds,
        "queued_s": result.queued_s,
        "first_token_s": result.first_token_s,
        "decoding_s": result.decoding_s,
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.usage.prompt_tokens,
        "cached_tokens": result.usage.cached_tokens,
        "completion_tokens": result.usage.completion_tokens,
        "reasoning_tokens": result.usage.reasoning_tokens,
        "later_prompt_tokens": result.usage.later_prompt_tokens,
        "later_cached_tokens": result.usage.later_cached_tokens,
        "embedded_tokens": result.usage.embedded_tokens,
        "usage_guessed": result.usage.num_guessed > 0,
        "cost_usd": result.cost_usd,
        # Of agents; null where there were none.
        "steps": work and work.num_steps,
        "tool_calls": work and work.num_calls,
        "failed_calls": work and work.num_failed_calls,
        "subagents": work and work.num_subagents,
        "critical_steps": work and work.critical_steps,
        "stopped": work and work.stopped,
    }


def citation_row(citation: Citation) -> dict[str, Any]:
    """Return the row of a record's citations."""
    origin, segment = citation.origin, citation.origin.segment
    return {
        "field": citation.field,
        "label": citation.label,
        "quote": segment.text,
        "tier": segment.tier,
        "media": segment.media,
        "span": parquet.span_row(segment.span),
        "path": origin.path,
        "document_key": origin.document_key,
    }


def given_of_row(row: Mapping[str, Any], names: Sequence[str]) -> Given:
    """Return the answer that a record holds.

    Args:
        row: Of a records table.
        names: The stage's output fields.
    """
    return Given(
        output={name: row[name] for name in names},
        citations=[_citation(cited) for cited in row["citations"] or ()],
        claims=[Claim(**claim) for claim in row["claims"] or ()],
    )


def _citation(row: Mapping[str, Any]) -> Citation:
    # What kind of segment it is has no column; nothing that is shown depends on it.
    segment = Segment(
        kind="paragraph",
        text=row["quote"],
        span=parquet.span_from_row(row["span"]),
        tier=row["tier"],
        media=row["media"],
    )
    place = Origin(path=row["path"], document_key=row["document_key"], segment=segment)
    return Citation(field=row["field"], label=row["label"], origin=place)
