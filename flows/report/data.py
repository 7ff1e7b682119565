"""What a report shows, gathered from the tables of a run; flows.report.page renders it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from connectors.document import Span
from flows.report.took import Took


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetRow:
    """One row of a sheet near a cited one, or the cited one itself."""

    cells: str
    text: str
    is_cited: bool


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
    path: str = ""
    """The document it stands in, below the source."""
    rows: tuple[SheetRow, ...] = ()
    """The cited row of a sheet between its neighbours; empty where it stands in no sheet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One output field of an answer."""

    name: str
    value: Any
    citation: Citation | None
    """Its first one, where there are several."""
    doubt: str = ""
    """What the check of its sentences found against them; empty where it found nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One record of one stage."""

    stage: str
    over: str
    """`chunk`, `rows` or `document`."""
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
    tiers: tuple[str, ...]
    """How its text was won, sorted: `native`, `ocr`, `speech`, `subtitle`."""
    answers: tuple[Answer, ...]
    """Records of the last document stage first, then chunk stages in reading order."""
    preview: str | None
    """Key of the picture that stands for the document: first page or first frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    """One source object that was not read, or in part."""

    path: str
    uri: str
    status: str
    """`partial` or `rejected`."""
    error_class: str | None
    error: str | None
    failed_units: tuple[str, ...]
    """Pages, sheets or frames that could not be read, each with its reason."""


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
    latencies_s: Sequence[float]
    """Seconds per answered request, in no order."""
    claims: Mapping[str, int] = field(default_factory=dict)
    """Sentences by what their check found: `verified`, `not_found`, `unsourced`."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Inputs that were not asked about, by the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """One value of an answer over several documents, with what it rests on."""

    name: str
    """Its name inside an object of a list; empty where the finding's name says it."""
    value: Any
    verdict: str | None
    """`verified`, `not_found` or `unsourced`; None where it is no cited claim."""
    references: tuple[int, ...]
    """Numbers in `ReportData.references`."""
    num_more: int
    """Citations beyond those in `references`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One output field of an answer over several documents."""

    name: str
    items: tuple[tuple[Sentence, ...], ...]
    """One per item of a list; a field that is no list has one."""
    is_list: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheredAnswer:
    """One record of a stage over a group or the corpus."""

    label: str
    """What the group has in common; empty for the corpus."""
    outcome: str
    error: str | None
    findings: tuple[Finding, ...]
    num_inputs: int | None
    num_answered: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The answers of one stage over groups or the corpus."""

    stage: str
    over: str
    by: str
    """The field that makes the groups; empty for the corpus."""
    rests_on: str
    """What its inputs are, in the singular: `document`, `chunk`, `row`, `group` or `answer`."""
    answers: tuple[GatheredAnswer, ...]
    num_hidden: int
    """Answers beyond those shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputedRow:
    """One row of a computed table."""

    values: tuple[Any, ...]
    references: tuple[int, ...]
    num_more: int
    """Citations beyond those in `references`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputedTable:
    """What one stage computed by SQL."""

    stage: str
    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    """By column, whether its values are numbers."""
    rows: tuple[ComputedRow, ...]
    num_hidden: int
    problem: str
    """Why there are no rows; empty where there are."""

    @property
    def has_references(self) -> bool:
        """Return whether a row shown cites something."""
        return any(row.references or row.num_more for row in self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One entry of the reference list."""

    number: int
    citation: Citation
    quotes: tuple[str, ...]
    """What answers quote from it, as they wrote it."""
    verdicts: tuple[str, ...]
    """What the check found of the sentences that cite it, each once."""


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
    """The first `MAX_CARDS` by path."""
    flawed: tuple[Flaw, ...]
    """The first `MAX_FLAWED` by path."""
    statuses: Mapping[str, int]
    """All documents by status."""
    stages: tuple[StageSummary, ...]
    planned_cached_ratio: float | None
    """Share of prompt tokens that the prompt layout lets the endpoint serve from its cache."""
    notes: tuple[str, ...]
    """Plain sentences the reader must know, such as that the embedded model only shows machinery."""
    previews: Mapping[str, bytes]
    """JPEG files by key, each at most 480 px on its long side."""
    versions: Mapping[str, str]
    """Package and engine versions behind the run."""
    corpus: tuple[Section, ...] = ()
    """Answers over the corpus, the last stage first."""
    groups: tuple[Section, ...] = ()
    tables: tuple[ComputedTable, ...] = ()
    references: tuple[Reference, ...] = ()
    num_unlisted: int = 0
    """Citations that the reference list has no room for."""
    took: Took = field(default_factory=Took)
    """Requests, tokens, cost and seconds per stage, beside what was planned."""
    routes: Mapping[str, str] = field(default_factory=dict)
    """What went by each route, who answered and why it may, by name; empty without a policy."""
    throughput: Mapping[str, str] = field(default_factory=dict)
    """Figures of speed and cost over the run, by name."""

    @property
    def num_documents(self) -> int:
        """Return how many documents the tables hold."""
        return sum(self.statuses.values())

    @property
    def num_hidden(self) -> int:
        """Return how many of them have no card."""
        return self.num_documents - len(self.documents)

    @property
    def num_hidden_flaws(self) -> int:
        """Return how many were not read, or in part, and are not in `flawed`."""
        return self.num_documents - self.statuses.get("read", 0) - len(self.flawed)
