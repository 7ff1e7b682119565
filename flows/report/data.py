"""What a report shows, gathered from the tables of a run; flows.report.page renders it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from connectors.document import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Citation:
    """One quoted segment and where it stands in the source."""

    quote: str
    span: Span
    tier: str
    """`native`, `ocr`, `subtitle` or `speech`: how the quoted text was won."""
    before: tuple[str, ...]
    """Up to two segments in front of the quote, for context."""
    after: tuple[str, ...]
    preview: str | None
    """Key into `ReportData.previews`; None for text and tables, whose context is enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One output field of an answer."""

    name: str
    value: Any
    citation: Citation | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One record of one stage."""

    stage: str
    over: str
    """`chunk` or `document`."""
    unit: str
    """What was asked: `pages 1-3`, `sheet Sales A1:F40`, `0:00-0:04`, or `document`."""
    outcome: str
    error: str | None
    saw: str
    """`text`, `image` or `nothing`: what the model was shown."""
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentCard:
    """One source object with everything the run says of it."""

    path: str
    uri: str
    media_type: str
    """Empty where the type is unknown."""
    status: str
    """`read`, `partial` or `rejected`."""
    error_class: str | None
    error: str | None
    num_chunks: int
    num_tokens: int
    failed_units: tuple[str, ...]
    """Pages, sheets or frames that could not be read, each with its reason."""
    tiers: tuple[str, ...]
    """How its text was won, sorted: `native`, `ocr`, `speech`, `subtitle`."""
    answers: tuple[Answer, ...]
    """Records of the last document stage first, then chunk stages in reading order."""
    preview: str | None
    """Key of the picture that stands for the document: first page or first frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSummary:
    """Counts and figures of one stage over the whole run."""

    name: str
    over: str
    mode: str
    modes: Mapping[str, str]
    """What is known of the modes that were observed, by a short name: flows.report.words.mode_story."""
    outcomes: Mapping[str, int]
    prompt_tokens: int
    cached_tokens: int | None
    """None where the endpoint does not report it."""
    completion_tokens: int
    latencies_s: tuple[float, ...]
    """Seconds per answered request, in no order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything on the page."""

    title: str
    run_id: str
    source: str
    sink: str
    engine: str
    model: str
    started: str
    """ISO 8601, UTC."""
    seconds: float
    verdict: str
    """`complete`, `over_failure_limit` or `incomplete`."""
    documents: tuple[DocumentCard, ...]
    stages: tuple[StageSummary, ...]
    planned_cached_ratio: float | None
    """Share of prompt tokens that the prompt layout lets the endpoint serve from its cache."""
    notes: tuple[str, ...]
    """Plain sentences the reader must know, such as that the embedded model only shows machinery."""
    previews: Mapping[str, bytes]
    """JPEG files by key, each at most 480 px on its long side."""
    versions: Mapping[str, str]
    """Package and engine versions behind the run."""
