"""Makes requests out of chunks, documents and earlier answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2

from config.errors import ConfigError
from config.pipeline import PipelineConfig, StageConfig
from connectors.chunker import render
from connectors.control_marks import disarm
from connectors.document import Chunk, Document, Segment
from engine.endpoint import TEMPLATE_MARGIN_TOKENS, Endpoint
from engine.prompt import instructions, user_text
from engine.request import Request, content_key, request_key
from flows.report.words import counted
from flows.run.labels import bind_labels
from flows.run.prepare import PreparedStage, Way, prepare
from flows.run.rows import Answered, Inquiry


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """What a question is about, as the model is shown it."""

    document: Document
    segments: Sequence[Segment]
    tokens: int
    """Tokens of the segments, images included."""
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
        self.stages = {
            stage.name: prepare(stage, endpoint, self.instructions) for stage in pipeline.stages
        }

    def about_chunk(
        self,
        stage: StageConfig,
        document: Document,
        chunk: Chunk,
        *,
        upstream: Mapping[str, Answered],
        media_dir: Path,
    ) -> Inquiry:
        """Return the inquiry of a stage about one chunk.

        Args:
            stage: The stage that asks.
            document: The chunk's document.
            chunk: What is asked about.
            upstream: The answers of `stage.needs` about the same chunk, by stage.
            media_dir: Where the JPEGs lie that the chunk's segments name.
        """
        limit = self._max_per_document
        if limit is not None and chunk.ordinal >= limit:
            return self._unasked(
                stage,
                document,
                chunk,
                error_class="beyond_limit",
                error=f"beyond the first {limit} of a document",
            )
        missing = [name for name, answered in upstream.items() if answered.output is None]
        if missing:
            return self._unasked(
                stage,
                document,
                chunk,
                error_class="upstream_unanswered",
                error=f"stage {missing[0]!r} has no answer",
            )
        images = tuple(
            media_dir / segment.media
            for segment in chunk.segments
            if segment.kind == "image" and segment.media
        )
        readable = any(segment.kind != "image" for segment in chunk.segments)
        if images and not self.endpoint.profile.capabilities.images:
            return self._unasked(
                stage,
                document,
                chunk,
                error_class="no_modality",
                error=f"{len(images)} images without readable text, and engine"
                f" {self.endpoint.profile.name!r} reads text only",
            )
        inquiry = self._ask(
            stage,
            _Shown(
                document=document, segments=chunk.segments, tokens=chunk.num_tokens, images=images
            ),
            input_keys=[chunk.chunk_key, *_result_keys(upstream.values())],
            outputs={name: answered.output for name, answered in upstream.items()},
        )
        saw = "text" if not images else "text+image" if readable else "image"
        return replace(inquiry, chunk=chunk, saw=saw)

    def about_document(
        self,
        stage: StageConfig,
        document: Document,
        upstream: Mapping[str, Sequence[Answered]],
    ) -> Inquiry:
        """Return the inquiry of a stage about a whole document, through earlier answers.

        Args:
            stage: The stage that asks.
            document: What is asked about.
            upstream: The answers of `stage.needs`, in reading order, by stage.
        """
        answers = [
            answered
            for group in _by_chunk(upstream.values())
            for answered in group
            if answered.output is not None
        ]
        if not answers:
            return self._unasked(
                stage,
                document,
                None,
                error_class="no_input",
                error="no earlier stage has an answer for it",
            )
        segments = _quoted(answers)
        outputs = {
            name: [answered.output for answered in group if answered.output is not None]
            for name, group in upstream.items()
        }
        num_tokens = self.endpoint.counter.count(render(segments))
        shown = _Shown(document=document, segments=segments, tokens=num_tokens)
        inquiry = self._ask(
            stage,
            shown,
            input_keys=_result_keys(answers),
            outputs=outputs,
            advice=f"it holds the {counted(len(segments), 'line')} that"
            f" {counted(len(answers), 'answer')} quoted: use larger chunks, so that there are fewer,"
            " or an engine with a longer context",
        )
        return replace(inquiry, saw="text")

    def room(self, stage: StageConfig) -> int:
        """Return how many tokens of material fit beside instructions, question and answer."""
        overhead = self.endpoint.prompt_overhead(self.instructions, stage.prompt, stage.output)
        answer = self.stages[stage.name].answer_tokens
        return self.endpoint.context_tokens - overhead - answer

    def _ask(
        self,
        stage: StageConfig,
        shown: _Shown,
        *,
        input_keys: Sequence[str],
        outputs: Mapping[str, Any],
        advice: str = "lower chunk.max_tokens, or put less of the upstream answers into the prompt",
    ) -> Inquiry:
        prepared = self.stages[stage.name]
        try:
            # Earlier answers repeat what documents say.
            question = prepared.question.render(upstream=_disarmed(outputs))
        except jinja2.UndefinedError as exc:
            raise ConfigError(f"stage {stage.name!r}: prompt: {exc.message}") from exc
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
            input_keys=tuple(input_keys),
            requests=tuple(by(prepared.way, sample) for sample in range(stage.samples)),
            again=by(prepared.again, 0) if prepared.again else None,
            segments={segment.label: segment for segment in shown.segments},
            material_tokens=shown.tokens,
        )
        too_long = self._too_long(prepared, request, advice)
        if too_long is not None:
            return replace(inquiry, requests=(), unasked=("rejected", "too_long", too_long))
        return inquiry

    def _request(self, prepared: PreparedStage, shown: _Shown, *, question: str) -> Request:
        """Return the question, without what differs from one way of asking to the other."""
        stage = prepared.config
        schema = bind_labels(stage.output, shown.segments)
        enforced = self.endpoint.profile.capabilities.structured_output
        tail = user_text("", question, None if enforced else schema)
        own_tokens = self.endpoint.counter.weigh([tail])[0] + TEMPLATE_MARGIN_TOKENS
        return Request(
            request_key="",
            stage=stage.name,
            mode=prepared.way.mode,
            instructions=self.instructions,
            material=render(shown.segments),
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
        document: Document,
        chunk: Chunk | None,
        *,
        error_class: str,
        error: str,
    ) -> Inquiry:
        way = self.stages[stage.name].way
        return Inquiry(
            stage=stage,
            mode=way.mode,
            fingerprint=way.fingerprint,
            document=document,
            chunk=chunk,
            unasked=("skipped", error_class, error),
        )


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


def _by_chunk(groups: Iterable[Sequence[Answered]]) -> list[list[Answered]]:
    """Return the answers chunk by chunk, stages in order within a chunk; documents' come last."""
    rows: dict[int, list[Answered]] = {}
    last = 1 << 31
    for group in groups:
        for answered in group:
            chunk = answered.inquiry.chunk
            rows.setdefault(chunk.ordinal if chunk else last, []).append(answered)
    return [rows[ordinal] for ordinal in sorted(rows)]


def _quoted(answers: Sequence[Answered]) -> list[Segment]:
    """Return what the answers quote, labelled anew; an answer without quotes is quoted itself."""
    found: dict[tuple[object, ...], Segment] = {}
    for answered in answers:
        for segment in [citation.segment for citation in answered.citations] or [_whole(answered)]:
            found.setdefault((segment.text, segment.span), segment)
    return [
        replace(segment, label=f"L{number}")
        for number, segment in enumerate(found.values(), start=1)
    ]


def _whole(answered: Answered) -> Segment:
    """Return an answer as one line, standing where its chunk begins."""
    assert answered.output is not None
    text = "; ".join(f"{name}: {value}" for name, value in answered.output.items())
    first = next(iter(answered.inquiry.segments.values()))
    return Segment(kind="paragraph", text=" ".join(text.split()), span=first.span, tier=first.tier)
