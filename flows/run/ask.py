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
from connectors.document import Chunk, Document
from engine.endpoint import TEMPLATE_MARGIN_TOKENS, Endpoint
from engine.prompt import instructions, user_text
from engine.request import Request, content_key, request_key
from flows.run.labels import Line, bind_labels
from flows.run.prepare import PreparedStage, Way, prepare
from flows.run.rows import Answered, Inquiry, origin
from flows.run.units import WHEN, Input, Row, Subject, chunk_unit


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """What a question is about, as the model is shown it."""

    document: Document | None
    lines: Sequence[Line]
    tokens: int
    """Tokens of the lines, images included."""
    images: tuple[Path, ...] = ()


class Asker:
    """Turns units into inquiries, for one pipeline on one endpoint."""

    def __init__(self, pipeline: PipelineConfig, endpoint: Endpoint) -> None:
        """Make the stages ready.

        Raises:
            ConfigError: The engine cannot do what a stage wants.
        """
        self.endpoint = endpoint
        self._max_per_document = pipeline.chunk.max_per_document
        self.instructions = instructions(pipeline.shared)
        self.instructions_tokens = endpoint.counter.count(self.instructions)
        # Neighbours of many rows begin alike.
        self._weigh_beginning = lru_cache(maxsize=4096)(lambda t: endpoint.counter.weigh([t])[0])
        self.stages = {
            stage.name: prepare(stage, endpoint, self.instructions)
            for stage in pipeline.stages
            if stage.compute is None
        }

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
        lines = [
            Line(segment=s, origins=(origin(document, s),), shown=row.shown if row else None)
            for s in segments
        ]
        shown = _Shown(
            document=document,
            lines=lines,
            tokens=self.weigh(lines) if row else chunk.num_tokens,
            images=images,
        )
        outputs = {name: answered.output for name, answered in upstream.items()}
        inquiry = self._ask(
            stage,
            shown,
            unit=unit,
            question=self._render(stage, self.stages[stage.name].question, upstream=outputs),
            input_keys=[
                _row_key(row) if row else chunk.chunk_key,
                *_result_keys(upstream.values()),
            ],
        )
        saw = "text" if not images else "text+image" if readable else "image"
        shared_tokens = self._shared_tokens(row) if row else 0
        return replace(inquiry, chunk=chunk, saw=saw, shared_tokens=shared_tokens)

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
        missing = [name for name, answered in upstream.items() if answered.output is None]
        if missing:
            return "upstream_unanswered", f"stage {missing[0]!r} has no answer"
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
            shown = _Shown(
                document=unit.document,
                lines=lines,
                tokens=self.endpoint.counter.count(render(line.segment for line in lines)),
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
                ],
                advice="use larger chunks or shorter answers, or an engine with a longer context",
            )
            inquiry = replace(inquiry, saw="text")
        return replace(inquiry, num_inputs=num_inputs, num_answered=num_answered)

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

    def weigh(self, lines: Sequence[Line]) -> int:
        """Return the tokens of lines under the longest labels they may get."""
        segments = [line.as_shown.with_label("L99999") for line in lines]
        return self.endpoint.counter.weigh([render(segments)])[0] if segments else 0

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
            return template.render(upstream=_disarmed(upstream), group=disarm(group or ""))
        except jinja2.UndefinedError as exc:
            raise ConfigError(f"stage {stage.name!r}: prompt: {exc.message}") from exc

    def room(self, stage: StageConfig) -> int:
        """Return how many tokens of material fit beside instructions, question and answer."""
        longest = max(stage.prompt, stage.combine or "", key=len)
        overhead = self.endpoint.prompt_overhead(self.instructions, longest, stage.output)
        answer = self.stages[stage.name].answer_tokens
        return self.endpoint.context_tokens - overhead - answer

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
        request = self._request(prepared, shown, question=question)

        def by(way: Way, sample: int) -> Request:
            return replace(
                request,
                request_key=request_key(way.fingerprint, sample, input_keys),
                mode=way.mode,
                max_reasoning_tokens=way.max_reasoning_tokens,
            )

        inquiry = Inquiry(
            stage=stage,
            mode=prepared.way.mode,
            fingerprint=prepared.way.fingerprint,
            document=shown.document,
            chunk=None,
            unit=unit,
            input_keys=tuple(input_keys),
            requests=tuple(by(prepared.way, sample) for sample in range(stage.samples)),
            again=by(prepared.again, 0) if prepared.again else None,
            lines=shown.lines,
            material_tokens=shown.tokens,
        )
        too_long = self._too_long(prepared, request, advice)
        if too_long is not None:
            return replace(inquiry, requests=(), unasked=("rejected", "too_long", too_long))
        return inquiry

    def _request(self, prepared: PreparedStage, shown: _Shown, *, question: str) -> Request:
        """Return the question, without what differs from one way of asking to the other."""
        stage = prepared.config
        segments = [line.as_shown for line in shown.lines]
        schema = bind_labels(stage.output, segments)
        enforced = self.endpoint.profile.capabilities.structured_output
        tail = user_text("", question, None if enforced else schema)
        own_tokens = self.endpoint.counter.weigh([tail])[0] + TEMPLATE_MARGIN_TOKENS
        return Request(
            request_key="",
            stage=stage.name,
            mode=prepared.way.mode,
            instructions=self.instructions,
            material=render(segments),
            images=shown.images,
            question=question,
            schema=schema,
            max_output_tokens=stage.max_output_tokens,
            reasoning=stage.reasoning,
            temperature=stage.temperature,
            adapter=stage.adapter,
            prompt_tokens=self.instructions_tokens + shown.tokens + own_tokens,
        )

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


def _row_key(row: Row) -> str:
    """Return the key of a row: by what it says, in the table's order, whatever order it is shown in."""
    return content_key("row", row.fields or row.segment.text)


def _disarmed(value: object) -> object:
    """Return the value with the marks in all of its texts made harmless."""
    if isinstance(value, str):
        return disarm(value)
    if isinstance(value, Mapping):
        return {key: _disarmed(item) for key, item in value.items()}
    return [_disarmed(item) for item in value] if isinstance(value, list | tuple) else value


def _result_keys(answers: Iterable[Answered]) -> list[str]:
    """Return the keys of earlier answers: by what they say, so that a change asks anew and no other.

    An answer names lines by their labels, so it counts with what it was about.
    """
    return [
        content_key(
            "result",
            answered.inquiry.stage.name,
            answered.inquiry.input_keys,
            answered.result.output,
        )
        for answered in answers
    ]
