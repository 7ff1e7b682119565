"""A pipeline as a typed document: what to read, what to ask of it, where to put the answers.

The loader (config.load) replaces the names of prompt and schema files by their contents before it
validates, so a PipelineConfig is complete in itself and its JSON is the resolved configuration that
a run's manifest keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import jinja2
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from config.agents import LimitsConfig, SearchConfig
from config.batch_api import BatchApiConfig
from config.graph import Problem, problems
from config.model import Model
from config.output import check_output, formats_in
from config.policy import PolicyConfig
from config.storage import StorageConfig
from config.templates import nearest
from connectors.readers import ReaderOptions
from connectors.sinks.parquet import LABEL_FORMAT
from connectors.storage import Access
from engine.request import DriftAction, ReasoningPolicy
from tools.mcp_config import ServerConfig
from tools.registry import TOOLS

ModeChoice = Literal["instant", "thinking", "agent", "swarm", "auto"]
Over = Literal["chunk", "rows", "document", "group", "corpus"]
EnvironmentName = Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]{0,127}$")]
StageName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]


DEFAULT_ENGINE = "embedded"

REDUCES: frozenset[Over] = frozenset({"document", "group", "corpus"})
"""What is asked about through earlier answers, reduced as a tree where they exceed the context."""

_COMPUTED_FIELDS = frozenset({"name", "over", "needs", "compute", "tables", "output"})


class ReaderConfig(Model):
    """How documents are read."""

    ocr: Literal["rapidocr", "tesseract", "off"] = "rapidocr"
    """Where text on scans and frames comes from: rapidocr ships its weights; tesseract is about
    three times faster and must be installed; off leaves them to a model that takes images."""
    frame_interval_s: float = Field(default=2.0, gt=0)
    """Seconds between sampled video frames; hard cuts are sampled besides. 2 s tells scenes apart
    at 30 frames a minute."""
    frames_per_minute: int = Field(default=30, ge=1)
    """Most frames of one minute of video: cuts first, then those at the interval, far from each other. A
    frame of 16:9 costs a vision model about 1,800 tokens."""
    max_frames: int = Field(default=32, ge=1)
    """Most frames of one video, shared out over its length. The units name cuts that were left out."""
    speech: Literal["off", "whisper"] = "off"
    """Whether what is said in a film becomes text with its times: English only, by Whisper tiny, in
    a tenth of the sound's length on one core. Its packages are an extra, which must be installed."""
    max_speech_s: float = Field(default=600.0, gt=0)
    """Most seconds of a film's sound that are heard; the units name what was left out."""
    max_pages: int = Field(default=2000, ge=1)
    """Most pages of one PDF; a longer one is read in part, and its units name the rest."""
    max_ocr_pages: int = Field(default=16, ge=0)
    """Most pages of one document that OCR reads, at 2 to 10 s a page; the images of the others
    are kept, for a model that takes images."""
    pdf_tables: Literal["off", "auto"] = "off"
    """auto gives tables of PDFs that are drawn with ruling lines cell by cell, each row under the names
    of its columns. Found by pdfplumber, at about 9 pages a second; off gives rows as lines of text."""
    max_table_pages: int = Field(default=100, ge=1)
    """Most pages of one PDF whose tables are looked for; rows of the others are lines of text, and its
    units name them."""
    pdf_figures: bool = False
    """Give pictures and drawings on pages of text as images with their box, from 3 % of the page on.
    Text on them that the page has not as text is read by OCR, within max_ocr_pages."""
    max_figures: int = Field(default=64, ge=1)
    """Most figures of one PDF, in the order of its pages; its units count the others. Each costs a model
    that takes images up to about 2,500 tokens."""
    max_rows: int = Field(default=100_000, ge=1)
    """Most rows of one workbook, CSV or Parquet file; the units name what was left out."""
    tables: bool = True
    """Write each table of a workbook, CSV or Parquet file into the sink as a typed Parquet file too,
    `media/<document_key>/t0001.parquet`; column `tables` of the documents table lists them."""
    formulas: bool = False
    """Give the formulas of xlsx and xlsm files too, as `=A1+B1 -> 3`. Read by openpyxl,
    about a ninth as fast as values are read."""
    timeout_s: float = Field(default=300.0, gt=0)
    """Most seconds for one document; then its reader is killed and it is rejected."""
    passwords: Mapping[str, EnvironmentName] = Field(default_factory=dict)
    """Passwords of encrypted PDFs: a glob on the path below the source, and the name (in capitals)
    of the environment variable with the password: `{"contracts/**/*.pdf": CONTRACTS_PASSWORD}`. The
    first glob that matches counts."""

    def options(self) -> ReaderOptions:
        """Return the part that readers see."""
        return ReaderOptions(
            ocr=self.ocr,
            frame_interval_s=self.frame_interval_s,
            frames_per_minute=self.frames_per_minute,
            max_frames=self.max_frames,
            speech=self.speech,
            max_speech_s=self.max_speech_s,
            max_pages=self.max_pages,
            max_ocr_pages=self.max_ocr_pages,
            pdf_tables=self.pdf_tables,
            max_table_pages=self.max_table_pages,
            pdf_figures=self.pdf_figures,
            max_figures=self.max_figures,
            max_rows=self.max_rows,
            tables=self.tables,
            formulas=self.formulas,
        )


class ChunkConfig(Model):
    """How documents are cut."""

    max_tokens: int | None = Field(default=None, ge=64)
    """Most tokens of one chunk as sent, labels included. None: what the engine's context leaves
    beside instructions, question and answer."""
    overlap_tokens: int = Field(default=0, ge=0)
    """Most tokens of running text that a chunk repeats from the end of the one before it, up to a
    quarter of it: for questions whose answer may lie across a border. Repeated text is paid twice."""
    max_per_document: int | None = Field(default=None, ge=1)
    """Most chunks of one document that are asked about; the others become `skipped` records with the
    reason `beyond_limit`. None: all."""


class RowsConfig(Model):
    """How rows of tables are asked about, by stages `over: rows`."""

    order: Literal["shared", "given"] = "shared"
    """`shared` puts rows that say the same one after the other, and what they share in front in each of
    them, so that an engine's prefix cache serves it; `given` asks row by row as the table has them.
    Records, citations and keys of answers are the same either way."""


class EscalateConfig(Model):
    """When an Instant answer is doubtful, the question is asked again in Thinking."""

    when: tuple[Literal["invalid", "empty", "disagreement"], ...] = (
        "invalid",
        "empty",
        "disagreement",
    )
    """What makes an answer doubtful: it is `invalid` where it does not follow the schema or was cut;
    `empty` where every field is null or empty; `disagreement` where too few samples agree."""
    min_agreement: float = Field(default=1.0, gt=0, le=1)
    """Share of the samples that must agree; below it an answer is doubtful."""
    max_share: float = Field(default=0.25, gt=0, le=1)
    """Most of a shard's questions that may be asked again, first come in reading order, so that a
    weak prompt cannot turn a cheap stage into a costly one. One question is always allowed."""


class StageBudgetConfig(Model):
    """What one stage may spend, within the run's own budget.

    When a call of the stage does not fit any more, only the stage's questions end there: other stages go
    on, and what depends on the missing answers is skipped until a run with more goes on.
    """

    usd: float | None = Field(default=None, gt=0)
    """US dollars, by the profile's prices. None: no limit."""
    tokens: int | None = Field(default=None, gt=0)
    """Prompt and answer tokens together. None: no limit."""
    gpu_seconds: float | None = Field(default=None, gt=0)
    """Seconds of GPU time: the engine's `gpus` times the time that the tokens take at its `throughput`,
    which the profile must both have. None: no limit."""


class BudgetConfig(StageBudgetConfig):
    """What a run may spend.

    Each call reserves its worst case before it is sent; when that does not fit any more, the run
    stops with what it has and can be resumed.
    """

    seconds: float | None = Field(default=None, gt=0)
    """Time from when the engine is open until the last call is begun; each `--resume` has it anew. None:
    no limit."""


class StageConfig(Model):
    """One question to the model."""

    name: StageName
    """Names the records table: `records/stage=<name>/`, or `<name>@2` once its output columns changed."""
    over: Over = "chunk"
    """What is asked about: each `chunk`; each of the `rows` of tables in it; or, through the answers of
    `needs`, each `document`, each `group` of answers that say the same in the field `by`, or the whole
    `corpus`. Where the answers exceed the context, they are reduced as a tree."""
    needs: tuple[StageName, ...] = ()
    """Stages whose answers this one builds on; they come earlier in the list."""
    when: str | None = None
    """Which answers of `needs` it builds on: an expression such as `upstream.kind.kind == 'invoice'`.
    A chunk, row or document for which it is false becomes a `skipped` record."""
    by: str | None = None
    """Output field of one of `needs` that makes groups, for `over: group`: `FIELD` or `STAGE.FIELD`."""
    mode: ModeChoice = "instant"
    """How the model works on it: `instant` answers at once, `thinking` reasons first, `agent` works with
    `tools` step by step, `swarm` gives the work out to agents side by side, `auto` is the cheapest that the
    stage's shape needs; `headrace plan` shows which, and why."""
    tools: tuple[str, ...] = ()
    """What an agent may call, tools of `mcp` servers as `SERVER__TOOL`; nothing else can be called, whatever a
    document says. A stage over the corpus
    or groups has all documents before it, any other one its own; docs/agents.md says what there is."""
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    """How far an agent or a swarm may go."""
    on_drift: tuple[DriftAction, ...] = Field(default=("reorient", "stop"), min_length=1)
    """What is done when an agent goes round in circles, learns nothing new or loses its goal, the first time,
    the second, and so on: `reorient` reminds it, `smaller_profile` hands its work to the next engine of
    `fallback`, `stop` has it answer with what it has. The last one holds from then on."""
    approval: Literal["required"] | None = None
    """`required`: none of its requests goes out before a person has agreed to it in this run; None: at once."""
    approve_calls: tuple[str, ...] = ()
    """Tools whose every call waits until a person has agreed to it."""
    prompt: str = ""
    """The question, a Jinja2 template; `upstream.<stage>.<field>` are the answers of `needs`
    for the same chunk, `group` is what a group has in common. The chunk itself, or the answers that
    are reduced, are placed by the engine in front of the question."""
    combine: str | None = None
    """The question where answers of this stage to parts are put together; None: the same question."""
    compute: str | None = None
    """SQL in place of a prompt, or the name of a file with it: no model is asked. Tables are the `needs`
    and `tables` by their names; the columns of the result are the fields of `output`. A column `row_keys`
    (`ARRAY_AGG(row_key)`, or `row_key`) says which records a row rests on, and takes over what they cite."""
    tables: Mapping[str, str] = Field(default_factory=dict)
    """Tables of the corpus that `compute` reads, by name: the path of a workbook, CSV or Parquet file below
    the source, `#SHEET` behind it where there are several: `{suppliers: "lists/suppliers.xlsx#2026"}`."""
    output: Mapping[str, Any]
    """What the answer holds: fields in short, `{party: string, amount: decimal?, tags: [string]}`,
    or a JSON Schema of an object, or the name of a file with one. Type words: string, integer,
    number, decimal, boolean, date, line, cited; `a|b` for a choice, `[type]` for a list, `?` behind a
    type that may be null. A `line` (JSON Schema: a string of format `segment-label`) is answered with a
    line of the document and stored as its text, with its citation. `cited` (format `cited-claim`) is the
    model's own sentence, with the lines it rests on and a quote from them, which is checked."""
    max_output_tokens: int = Field(default=256, ge=8)
    """Most tokens of one answer, so that a talkative model cannot run away."""
    max_reasoning_tokens: int | None = Field(default=None, ge=16)
    """Most tokens of thinking in front of an answer, in Thinking mode. None: the profile's."""
    reasoning: ReasoningPolicy = "drop"
    """What becomes of the thinking: `drop`, `keep` in the column `thought`, or `summary`: one more
    Instant call puts it into a sentence or two there."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """In place of the profile's; refused where the host fixes it."""
    fresh: bool = False
    """Ask anew in every run: answers of earlier runs and of the cache are not replayed, whatever has not
    changed. Going on with a run asks nothing twice."""
    samples: int = Field(default=1, ge=1, le=16)
    """How often each question is asked. The answer of the record is one that most samples agree on;
    the column `agreement` says how many of them do."""
    agree: tuple[str, ...] = ()
    """Output fields that samples are compared by; empty: all of them."""
    escalate: EscalateConfig | None = None
    """Ask again in Thinking where the answer is doubtful; None: never. `escalate: {}` has the
    defaults."""
    require: Literal["images"] | None = None
    """What the engine must be able to see: with `images` a text-only engine is refused."""
    adapter: str | None = None
    """LoRA adapter that answers this stage, by a name in the profile's `adapters`."""
    budget: StageBudgetConfig = Field(default_factory=StageBudgetConfig)
    batch_api: BatchApiConfig | None = None
    """Send the stage through the host's batch API, for less, where answers can wait; None: each question is
    a call at once. `batch_api: {}` has the defaults. Records and keys are the same either way."""

    @model_validator(mode="after")
    def _check_output(self) -> Self:
        check_output(self.output)
        strange = [name for name in self.agree if name not in self.output["properties"]]
        if strange:
            raise ValueError(f"agree names {strange[0]!r}, which is no output field")
        if self.escalate is not None and self.mode == "thinking":
            raise ValueError("escalate goes from instant to thinking; drop it or set mode: instant")
        return self

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        if self.compute is None:
            self._check_asked()
        else:
            self._check_computed()
        # An agent can look for itself.
        looks = self.over == "corpus" and bool(self.tools)
        if self.over in REDUCES and not self.needs and not looks:
            raise ValueError(f"a stage over {self.over} needs at least one stage in `needs`")
        if (self.over == "group") != (self.by is not None):
            raise ValueError(
                "`by` names the field that makes the groups of a stage `over: group`; give both or none"
            )
        if self.when is not None and not self.needs:
            raise ValueError("`when` looks at answers of `needs`, and there are none; add a stage")
        return self

    def _check_asked(self) -> None:
        if not self.prompt.strip():
            raise ValueError("a stage has a `prompt`, or `compute` with SQL; this one has neither")
        if self.tables:
            raise ValueError("`tables` are for `compute`; a prompt cannot read them")
        if self.combine is not None and self.over not in REDUCES:
            raise ValueError("`combine` is for stages over document, group or corpus")
        self._check_agent()

    def _check_agent(self) -> None:
        if self.mode in {"agent", "swarm"} and not self.tools:
            raise ValueError(f"mode {self.mode} works with `tools`, and there are none; list some")
        if self.tools and self.mode not in {"agent", "swarm", "auto"}:
            raise ValueError(f"mode {self.mode} calls no `tools`; set mode: agent, or drop them")
        if self.tools and self.escalate is not None:
            raise ValueError("an agent does not escalate; drop `escalate`")
        if self.tools and self.batch_api is not None:
            raise ValueError("an agent's turns cannot wait for `batch_api`; drop it")
        if self.tools and LABEL_FORMAT in formats_in(self.output):
            raise ValueError(
                "an agent finds its lines itself, so that `line` cannot be checked; make the field `cited`"
            )
        unknown = sorted(name for name in {*self.tools} - TOOLS.keys() if "__" not in name)
        if unknown:
            raise ValueError(
                f"there is no tool {unknown[0]!r}{nearest(unknown[0], [*TOOLS])}; tools: {', '.join(TOOLS)}"
            )
        strange = sorted(set(self.approve_calls) - set(self.tools))
        if strange:
            raise ValueError(f"approve_calls names {strange[0]!r}, which is none of `tools`")

    def _check_computed(self) -> None:
        fields = type(self).model_fields
        asked = sorted(
            name
            for name in self.model_fields_set - _COMPUTED_FIELDS
            if getattr(self, name) != fields[name].get_default(call_default_factory=True)
        )
        if asked:
            raise ValueError(
                f"`compute` asks no model, so it has no {asked[0]!r}; it may have"
                f" {', '.join(sorted(_COMPUTED_FIELDS))}"
            )
        if self.over != "corpus":
            raise ValueError("a stage with `compute` is over the whole corpus; set over: corpus")
        if not self.needs:
            raise ValueError("a stage with `compute` needs at least one stage in `needs`")

    def asked(self) -> dict[str, Any]:
        """Return what the stage's records follow from: not what it may spend, nor when and how it is sent."""
        return self.model_dump(mode="json", exclude={"budget", "batch_api", "approval"})

    @property
    def is_gathered(self) -> bool:
        """Return whether it can begin only when all documents have been asked about."""
        return self.over in {"group", "corpus"}


class ReportTemplate(Model):
    """The texts of a template of one's own; what is left out is the shipped one."""

    html: str | None = None
    """Jinja2 template of the page."""
    markdown: str | None = None
    """Jinja2 template of the Markdown."""
    stylesheet: str | None = None
    """CSS of the page."""

    @field_validator("html", "markdown")
    @classmethod
    def _check_syntax(cls, text: str | None) -> str | None:
        if text is not None:
            try:
                jinja2.Environment(autoescape=True).parse(text)
            except jinja2.TemplateSyntaxError as exc:
                raise ValueError(f"line {exc.lineno}: {exc.message}") from exc
        return text


class ReportConfig(Model):
    """What the report says besides the figures, and its form."""

    title: str | None = None
    """Headline; the pipeline's name where there is none."""
    notes: tuple[str, ...] = ()
    """Sentences a reader must know."""
    template: Literal["briefing"] | ReportTemplate = "briefing"
    """Form of the report: `briefing`, or a folder with any of `report.html.j2`, `report.md.j2` and
    `report.css`; `headrace report --write-template FOLDER` gives the shipped ones to start from. They
    run in a sandbox, and what comes from documents is escaped."""

    def own_template(self) -> ReportTemplate | None:
        """Return the pipeline's own template; None where it uses the shipped one."""
        return None if isinstance(self.template, str) else self.template


class PipelineConfig(Model):
    """The whole pipeline."""

    name: StageName
    """What runs, tables and the run page call it. A sink keeps to one pipeline by this name."""
    source: str | None = None
    """Folder or bucket to read; `--source` overrides it. A relative path in the file is relative to the
    file, on the command line to the folder one is in. Besides `s3://`, what fsspec opens can be read:
    `gs://`, `az://`, `sftp://` with their packages installed, a ZIP archive as `zip://::/data/papers.zip`."""
    sink: str | None = None
    """Folder or `s3://` address to write; `--sink` overrides it. Others have no conditional put."""
    cache: str | None = None
    """Folder or `s3://` address of answers that any number of pipelines and sinks share; `--cache`
    overrides it. A question that one of them has had answered (same text, question, output, model and
    sampling) costs the others nothing. None: the answers in the sink itself are all there is."""
    storage: Mapping[str, StorageConfig] = Field(default_factory=dict)
    """How source, sink and cache are reached where the environment is not enough, by the beginning of their
    address; the longest one counts: `{"s3://open-data/": {anonymous: true}, "s3://archive/":
    {profile: archive}}`."""
    include: tuple[str, ...] = ("**/*",)
    """Globs on the path below the source; what matches none is not listed at all."""
    engine: str = DEFAULT_ENGINE
    """A profile's name or the path of its file, or the URL of an OpenAI-compatible endpoint."""
    fallback: tuple[str, ...] = ()
    """Engines that stand in, in this order, for requests that `engine` refuses or cannot answer. The
    record says which one answered and why. They see the same documents: name only engines that
    may."""
    policy: PolicyConfig | None = None
    """Where documents may go, and what is masked before it leaves; None: everything goes to `engine`."""
    shared: Mapping[str, str] = Field(default_factory=dict)
    """Texts put in front of every request, by name: one prefix for all stages."""
    mcp: tuple[ServerConfig, ...] = ()
    """MCP servers whose tools agents may call, as `SERVER__TOOL` in a stage's `tools`. They see the arguments of
    calls, and with them whatever an agent has read: name only servers that may."""
    reader: ReaderConfig = Field(default_factory=ReaderConfig)
    chunk: ChunkConfig = Field(default_factory=ChunkConfig)
    rows: RowsConfig = Field(default_factory=RowsConfig)
    search: SearchConfig = Field(default_factory=SearchConfig)
    budget: BudgetConfig = Field(default_factory=BudgetConfig)
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    documents_per_shard: int = Field(default=16, ge=1)
    """Documents one shard owns for life: large enough that a shard is at least half a minute of
    work, small enough that a lost shard is cheap."""
    failure_limit: float = Field(default=0.05, ge=0, le=1)
    """Share of requests that may end without an answer; above it the run exits with 3.
    Rejected and skipped documents are counted apart."""
    report: ReportConfig = Field(default_factory=ReportConfig)

    @property
    def has_agents(self) -> bool:
        """Tell whether a stage calls tools."""
        return any(stage.tools for stage in self.stages)

    def access_to(self, url: str) -> Access | None:
        """Return how the place at `url` is reached; None: by the environment."""
        found = [place for place in self.storage if _is_below(url, place)]
        return self.storage[max(found, key=len)].access() if found else None

    @field_validator("cache")
    @classmethod
    def _check_cache(cls, url: str | None) -> str | None:
        if url and "://" in url and not url.startswith(("s3://", "file://")):
            raise ValueError("a cache is a folder or an s3:// address")
        return url

    @field_validator("storage")
    @classmethod
    def _check_places(cls, storage: Mapping[str, StorageConfig]) -> Mapping[str, StorageConfig]:
        strange = [place for place in storage if not place.startswith("s3://")]
        if strange:
            raise ValueError(f"{strange[0]!r} is no place in S3; it begins with s3://")
        return storage

    @model_validator(mode="after")
    def _check_servers(self) -> Self:
        names = [server.name for server in self.mcp]
        if len(set(names)) < len(names):
            raise ValueError("mcp: two servers have the same name; rename one")
        offered = {f"{server.name}__{tool}" for server in self.mcp for tool in server.allow}
        for stage in self.stages:
            missing = [name for name in stage.tools if "__" in name and name not in offered]
            if missing:
                known = ", ".join(sorted(offered)) or "none"
                raise ValueError(
                    f"stage {stage.name!r}: tools: {missing[0]!r} is no tool that a server of `mcp`"
                    f" allows; there are: {known}"
                )
        return self

    @model_validator(mode="after")
    def _check_graph(self) -> Self:
        found = problems(self.stages)
        if found:
            # Not a ValueError: its place would be the whole pipeline.
            raise ValidationError.from_exception_data(
                type(self).__name__, [_line_error(problem) for problem in found], hide_input=True
            )
        return self


def _line_error(problem: Problem) -> InitErrorDetails:
    error = PydanticCustomError("graph", "{message}", {"message": problem.message})
    return InitErrorDetails(type=error, loc=problem.key, input=None)


def _is_below(url: str, place: str) -> bool:
    """Tell whether `url` is `place` or lies below it; `s3://a` is not below `s3://ab`."""
    return f"{url.rstrip('/')}/".startswith(f"{place.rstrip('/')}/")
