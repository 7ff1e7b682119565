"""Makes requests out of chunks, documents and earlier answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2

from config.errors import ConfigError
from config.pipeline import PipelineConfig, StageConfig
from connectors.chunker import render
from connectors.control_marks import disarm
from connectors.document import Chunk, Document, Segment
from connectors.masking import in_texts
from engine.endpoint import TEMPLATE_MARGIN_TOKENS, Endpoint
from engine.prompt import instructions
from engine.request import Request, content_key, request_key
from engine.wire import opening_text, prompt_overhead
from flows.run.labels import Line
from flows.run.lines import DocumentLines
from flows.run.masked import Mask
from flows.run.prepare import PreparedStage, Way, prepare_all
from flows.run.routes import RouteName
from flows.run.rows import Answered, Inquiry
from flows.run.units import UNPAID, UPSTREAM_OVER_BUDGET, WHEN, Input, Row, Subject, chunk_unit


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """What a question is about, as the model is shown it."""

    document: Document | None
    lines: Sequence[Line]
    segments: Sequence[Segment]
    """The lines as the model is shown them."""
    tokens: int
    """Tokens of the lines, images included."""
    material: str
    """The lines as one text."""
    images: tuple[Path, ...] = ()
    chunk: Chunk | None = None
    """The chunk that the lines are of, or that a row lies in."""
    saw: str = "text"


_RECENT = 16
"""Chunks whose lines are kept ready for the next stage: more than are in work at once in two shards."""


class Asker:
    """Turns units into inquiries, for one pipeline on one endpoint."""

    def __init__(
        self,
        pipeline: PipelineConfig,
        endpoint: Endpoint,
        *,
        route: RouteName = "open",
        mask: Mask | None = None,
        maker: Endpoint | None = None,
    ) -> None:
        """Make the stages ready.

        Args:
            pipeline: The stages.
            endpoint: Who is asked.
            route: By which route; answers of one count for no other.
            mask: What is masked in all that is said of documents; None: nothing.
            maker: Makes vectors for searches by meaning; None: nothing is searched so.

        Raises:
            ConfigError: The engine cannot do what a stage wants.
        """
        self.endpoint = endpoint
        self.route, self._mask = route, mask
        self.is_routed = pipeline.policy is not None
        self._max_per_document = pipeline.chunk.max_per_document
        self._lines: dict[tuple[str, str], tuple[Sequence[Line], str, str]] = {}
        self._questions: dict[str, str] = {}
        self._tails: dict[str, int] = {}
        self.instructions = instructions(pipeline.shared)
        self.instructions_tokens = endpoint.counter.count(self.instructions)
        # Neighbours of many rows begin alike.
        self._weigh_beginning = lru_cache(maxsize=4096)(lambda t: endpoint.counter.weigh([t])[0])
        key = "" if route == "open" else f"{route}:{mask.key if mask else ''}"
        self.stages = prepare_all(pipeline, endpoint, self.instructions, route_key=key, maker=maker)
        # By the question: a stage that shares it with a fresh one has the same answer.
        self._fresh = {
            prepared.way.fingerprint for prepared in self.stages.values() if prepared.config.fresh
        }

    @property
    def restores(self) -> bool | None:
        """Tell whether masked answers are given their values back; None where nothing is masked."""
        return self._mask.restore if self._mask else None

    def about_chunk(
        self,
        stage: StageConfig,
        document: Document,
        chunk: Chunk,
        *,
        upstream: Mapping[str, Answered],
        media_dir: Path,
        row: Row | None = None,
    ) -> Inquiry:
        """Return the inquiry of a stage about one chunk, or one row of a table in it.

        Args:
            stage: The stage that asks.
            document: The chunk's document.
            chunk: What is asked about.
            upstream: The answers of `stage.needs` about the same chunk or row, by stage.
            media_dir: Where the JPEGs lie that the chunk's segments name.
            row: The row; None for the whole chunk.
        """
        unit = row.unit if row else chunk_unit(chunk)
        reason = self._why_not(stage, chunk, upstream)
        if reason is not None:
            return self._unasked(
                stage, document, chunk, unit=unit, error_class=reason[0], error=reason[1]
            )
        segments = (row.segment,) if row else chunk.segments
        images = tuple(
            media_dir / segment.media
            for segment in segments
            if segment.kind == "image" and segment.media
        )
        readable = any(segment.kind != "image" for segment in segments)
        if images and not self.endpoint.profile.capabilities.images:
            return self._unasked(
                stage,
                document,
                chunk,
                unit=unit,
                error_class="no_modality",
                error=f"{len(images)} images without readable text, and engine"
                f" {self.endpoint.profile.name!r} reads text only",
            )
        if row:
            as_shown = row.shown
            lines: Sequence[Line] = DocumentLines(document, segments, as_shown)
            segments, material, key = (as_shown,), self._rendered([as_shown]), _row_key(row)
        else:
            lines, material, key = self._lines_of(document, chunk, images)
        shown = _Shown(
            document=document,
            lines=lines,
            segments=segments,
            material=material,
            tokens=self.weigh(lines) if row else chunk.num_tokens,
            images=images,
            chunk=chunk,
            saw="text" if not images else "text+image" if readable else "image",
        )
        outputs = {name: answered.output for name, answered in upstream.items()}
        question = self._question(stage, outputs)
        inquiry = self._ask(
            stage,
            shown,
            unit=unit,
            question=question,
            input_keys=[
                key,
                *([content_key("question", question)] if stage.needs else []),
                # An agent may read all of the document.
                *([content_key("scope", document.document_key)] if stage.tools else []),
            ],
        )
        if row is None:
            return inquiry
        return replace(inquiry, shared_tokens=self._shared_tokens(row))

    def _lines_of(
        self, document: Document, chunk: Chunk, images: Sequence[Path]
    ) -> tuple[Sequence[Line], str, str]:
        """Return a chunk's lines, alone and as one text, and their key; all stages ask about them in turn."""
        key = (document.source.path, chunk.chunk_key)
        found = self._lines.get(key)
        if found is None:
            lines = DocumentLines(document, chunk.segments)
            material = self._rendered(chunk.segments)
            found = (lines, material, _chunk_key(chunk, material, images))
            if len(self._lines) >= _RECENT:
                self._lines.clear()
            self._lines[key] = found
        return found

    def _shared_tokens(self, row: Row) -> int:
        """Return the tokens of a row's material that the row asked before it begins with too."""
        if not row.num_shared:
            return 0
        beginning = replace(row.segment, text=row.beginning)
        return self._weigh_beginning(render([beginning]).rstrip("\n"))

    def _why_not(
        self, stage: StageConfig, chunk: Chunk, upstream: Mapping[str, Answered]
    ) -> tuple[str, str] | None:
        """Return the class and the reason why a chunk is not asked about; None where it is."""
        limit = self._max_per_document
        if limit is not None and chunk.ordinal >= limit:
            return "beyond_limit", f"beyond the first {limit} of a document"
        left_out = [n for n, answered in upstream.items() if answered.result.error_class == WHEN]
        if left_out:
            return WHEN, f"stage {left_out[0]!r} has left it out"
        if missing := _missing(upstream):
            return missing
        outputs = {name: answered.output for name, answered in upstream.items()}
        when = self.stages[stage.name].when
        if when is not None and not when(outputs):
            return WHEN, f"not where {stage.when}"
        return None

    def about_lines(
        self,
        unit: Subject,
        lines: Sequence[Line],
        *,
        counts: tuple[int, int],
        combines: bool,
        outputs: Mapping[str, Any],
    ) -> Inquiry:
        """Return the inquiry of a stage about earlier answers.

        Args:
            unit: Document, group or corpus that they are about.
            lines: What they say, labelled.
            counts: How many inputs there are, and how many of them had an answer.
            combines: Whether they are this stage's own answers, to parts of the unit.
            outputs: The answers by stage, for the prompt's `upstream`.
        """
        stage = unit.stage
        num_inputs, num_answered = counts
        if not lines:
            inquiry = self._unasked(
                stage,
                unit.document,
                None,
                unit=unit.name,
                error_class=WHEN if unit.left_out else "no_input",
                error=f"nothing of it where {stage.when}"
                if unit.left_out
                else "no earlier stage has an answer for it",
            )
        else:
            prepared = self.stages[stage.name]
            template = prepared.combine if combines else prepared.question
            material = self._rendered(line.segment for line in lines)
            shown = _Shown(
                document=unit.document,
                lines=lines,
                segments=[line.as_shown for line in lines],
                material=material,
                tokens=self.endpoint.counter.count(material),
            )
            question = self._render(stage, template, upstream=outputs, group=unit.group)
            inquiry = self._ask(
                stage,
                shown,
                unit=unit.name,
                question=question,
                input_keys=[
                    content_key("lines", [line.segment.text for line in lines]),
                    content_key("question", question),
                    *([content_key("scope", _scope(unit))] if stage.tools else []),
                ],
                advice="use larger chunks or shorter answers, or an engine with a longer context",
            )
        return replace(inquiry, num_inputs=num_inputs, num_answered=num_answered)

    def unpaid(self, unit: Subject, num_inputs: int) -> Inquiry:
        """Return the inquiry of a unit that needs answers which wait for a larger budget, a person or a batch."""
        inquiry = self._unasked(
            unit.stage,
            unit.document,
            None,
            unit=unit.name,
            error_class=UPSTREAM_OVER_BUDGET,
            error="not all answers it needs are there yet: over budget, in a batch, or waiting for approval",
        )
        return replace(inquiry, num_inputs=num_inputs, num_answered=0)

    def too_many(self, unit: Subject, inputs: Sequence[Input]) -> Inquiry:
        """Return the inquiry of a unit whose parts' answers are too long to be put together."""
        inquiry = self._unasked(unit.stage, unit.document, None, unit=unit.name)
        error = (
            f"answers to {len(inputs)} parts do not fit the context of engine"
            f" {self.endpoint.profile.name!r} two by two; lower max_output_tokens, or take an engine"
            " with a longer context"
        )
        return replace(
            inquiry,
            unasked=("rejected", "too_many_inputs", error),
            num_inputs=sum(one.num_inputs for one in inputs),
            num_answered=0,
        )

    def _rendered(self, segments: Iterable[Segment]) -> str:
        """Return segments as one text, as it may be sent."""
        text = render(segments)
        return self._mask.shown(text) if self._mask else text

    def _harmless(self, text: str) -> str:
        """Return what a document says, or an answer repeats of it, as it may be put into a question."""
        return disarm(self._mask.shown(text) if self._mask else text)

    def weigh(self, lines: Sequence[Line]) -> int:
        """Return the tokens of lines under the longest labels they may get."""
        segments = [line.as_shown.with_label("L99999") for line in lines]
        return self.endpoint.counter.weigh([render(segments)])[0] if segments else 0

    def _question(self, stage: StageConfig, upstream: Mapping[str, Any]) -> str:
        """Return a stage's question; it is always the same where it shows no earlier answers."""
        if upstream:
            return self._render(stage, self.stages[stage.name].question, upstream=upstream)
        if stage.name not in self._questions:
            template = self.stages[stage.name].question
            self._questions[stage.name] = self._render(stage, template, upstream={})
        return self._questions[stage.name]

    def _render(
        self,
        stage: StageConfig,
        template: jinja2.Template,
        *,
        upstream: Mapping[str, Any],
        group: str | None = None,
    ) -> str:
        try:
            # Earlier answers repeat what documents say.
            return template.render(
                upstream=in_texts(self._harmless, upstream), group=self._harmless(group or "")
            )
        except jinja2.UndefinedError as exc:
            raise ConfigError(f"stage {stage.name!r}: prompt: {exc.message}") from exc

    def room(self, stage: StageConfig) -> int:
        """Return how many tokens of material fit beside instructions, question and answer."""
        longest = max(stage.prompt, stage.combine or "", key=len)
        prepared = self.stages[stage.name]
        asked = self.instructions, longest, prepared.schema_of_many
        overhead = prompt_overhead(self.endpoint, *asked, mode=prepared.way.mode)
        return self.endpoint.context_tokens - overhead - prepared.answer_tokens

    def _ask(
        self,
        stage: StageConfig,
        shown: _Shown,
        *,
        unit: str,
        question: str,
        input_keys: Sequence[str],
        advice: str = "lower chunk.max_tokens, or put less of the upstream answers into the prompt",
    ) -> Inquiry:
        prepared = self.stages[stage.name]
        request = self._request(
            prepared,
            shown,
            question=question,
            key=request_key(prepared.way.fingerprint, 0, input_keys),
        )
        samples = [request]
        for sample in range(1, stage.samples):
            key = request_key(prepared.way.fingerprint, sample, input_keys)
            samples.append(replace(request, request_key=key))
        inquiry = Inquiry(
            stage=stage,
            mode=prepared.way.mode,
            fingerprint=prepared.way.fingerprint,
            document=shown.document,
            chunk=shown.chunk,
            unit=unit,
            requests=tuple(samples),
            again=_again(request, prepared.again, input_keys) if prepared.again else None,
            lines=shown.lines,
            material_tokens=shown.tokens,
            saw=shown.saw,
            route=self.route,
            mask=self._mask,
            is_fresh=prepared.way.fingerprint in self._fresh,
        )
        too_long = self._too_long(prepared, request, advice)
        if too_long is not None:
            return replace(inquiry, requests=(), unasked=("rejected", "too_long", too_long))
        return inquiry

    def _request(
        self, prepared: PreparedStage, shown: _Shown, *, question: str, key: str
    ) -> Request:
        """Return the question in the stage's own way of asking."""
        stage = prepared.config
        schema = prepared.binding.to(shown.segments)
        mode = prepared.way.mode
        tail = opening_text("", question, schema, mode=mode, profile=self.endpoint.profile)
        own_tokens = self._weigh_tail(tail) + TEMPLATE_MARGIN_TOKENS
        return Request(
            request_key=key,
            stage=stage.name,
            mode=mode,
            max_reasoning_tokens=prepared.way.max_reasoning_tokens,
            instructions=self.instructions,
            material=shown.material,
            images=shown.images,
            question=question,
            schema=schema,
            max_output_tokens=stage.max_output_tokens,
            reasoning=stage.reasoning,
            temperature=stage.temperature,
            adapter=stage.adapter,
            prompt_tokens=self.instructions_tokens + shown.tokens + own_tokens,
            limits=stage.limits.for_engine(stage.on_drift) if stage.tools else None,
            batch_api=stage.batch_api.for_engine() if stage.batch_api else None,
        )

    def _weigh_tail(self, tail: str) -> int:
        """Return the tokens of what follows the material; most questions of a stage are the same."""
        found = self._tails.get(tail)
        if found is None:
            found = self.endpoint.counter.weigh([tail])[0]
            if len(self._tails) >= _RECENT:
                self._tails.clear()
            self._tails[tail] = found
        return found

    def _too_long(self, prepared: PreparedStage, request: Request, advice: str) -> str | None:
        """Return why the request does not fit the context, such as a question full of answers."""
        needed = request.prompt_tokens + prepared.answer_tokens
        limit = self.endpoint.context_tokens
        if needed <= limit:
            return None
        return (
            f"the prompt has {request.prompt_tokens:,} tokens and the answer may have"
            f" {prepared.answer_tokens:,}; engine {self.endpoint.profile.name!r} allows {limit:,};"
            f" {advice}"
        )

    def _unasked(
        self,
        stage: StageConfig,
        document: Document | None,
        chunk: Chunk | None,
        *,
        unit: str,
        error_class: str = "",
        error: str = "",
    ) -> Inquiry:
        way = self.stages[stage.name].way
        return Inquiry(
            stage=stage,
            mode=way.mode,
            fingerprint=way.fingerprint,
            document=document,
            chunk=chunk,
            unit=unit,
            unasked=("skipped", error_class, error),
        )


def _again(request: Request, way: Way, input_keys: Sequence[str]) -> Request:
    """Return the request as it is asked where its answer is doubtful."""
    return replace(
        request,
        request_key=request_key(way.fingerprint, 0, input_keys),
        mode=way.mode,
        max_reasoning_tokens=way.max_reasoning_tokens,
    )


def _scope(unit: Subject) -> str:
    """Return the key of the documents that an agent may read about a unit."""
    return unit.document.document_key if unit.document else unit.scope


def _missing(upstream: Mapping[str, Answered]) -> tuple[str, str] | None:
    """Return the class and the reason where an answer is missing; None where all are there."""
    missing = [name for name, answered in upstream.items() if answered.output is None]
    unpaid = [name for name in missing if upstream[name].result.error_class in UNPAID]
    if unpaid:
        why = f"stage {unpaid[0]!r} has no answer yet: over budget, in a batch, or waiting for approval"
        return UPSTREAM_OVER_BUDGET, why
    return ("upstream_unanswered", f"stage {missing[0]!r} has no answer") if missing else None


def _row_key(row: Row) -> str:
    """Return the key of a row: by what it says, in the table's order, whatever order it is shown in."""
    return content_key("row", row.fields or row.segment.text)


def _chunk_key(chunk: Chunk, material: str, images: Sequence[Path]) -> str:
    """Return the key of what the model is shown of a chunk, whichever document it stands in."""
    # Pictures are no text: they are what the document's reader made of it.
    pictures = chunk.chunk_key if images else None
    kinds = " ".join(segment.kind for segment in chunk.segments)
    return content_key("chunk", material, kinds, pictures)
