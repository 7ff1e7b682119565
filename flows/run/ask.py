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
from connectors.document import Chunk, Document, Segment
from engine.endpoint import Endpoint
from engine.prompt import instructions
from engine.request import Request, request_key, stage_fingerprint
from flows.run.labels import bind_labels
from flows.run.rows import Answered, Inquiry

_TEMPLATES = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)


@dataclass(frozen=True, slots=True)
class _Stage:
    config: StageConfig
    question: jinja2.Template
    fingerprint: str


class Asker:
    """Turns units into inquiries, for one pipeline on one endpoint."""

    def __init__(self, pipeline: PipelineConfig, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._max_per_document = pipeline.chunk.max_per_document
        self.instructions = instructions(pipeline.shared)
        self.instructions_tokens = endpoint.counter.count(self.instructions)
        self._stages = {stage.name: self._prepare(stage) for stage in pipeline.stages}

    def _prepare(self, stage: StageConfig) -> _Stage:
        try:
            question = _TEMPLATES.from_string(stage.prompt)
        except jinja2.TemplateSyntaxError as exc:
            raise ConfigError(
                f"stage {stage.name!r}: prompt line {exc.lineno}: {exc.message}"
            ) from exc
        settings = self._endpoint.profile.modes[stage.mode]
        fingerprint = stage_fingerprint(
            mode=stage.mode,
            model=self._endpoint.model,
            instructions=self.instructions,
            question=stage.prompt,
            schema=stage.output,
            sampling={**settings.sampling, **settings.wire, "max_tokens": stage.max_output_tokens},
        )
        return _Stage(stage, question, fingerprint)

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
        if images and not self._endpoint.profile.capabilities.images:
            return self._unasked(
                stage,
                document,
                chunk,
                error_class="no_modality",
                error=f"{len(images)} images without readable text, and engine"
                f" {self._endpoint.profile.name!r} reads text only",
            )
        outputs = {name: answered.output for name, answered in upstream.items()}
        inquiry = self._ask(
            stage,
            document,
            chunk.segments,
            input_keys=[chunk.chunk_key, *_request_keys(upstream.values())],
            outputs=outputs,
        )
        assert inquiry.request is not None
        saw = "text" if not images else "text+image" if readable else "image"
        return replace(
            inquiry,
            chunk=chunk,
            saw=saw,
            material_tokens=chunk.num_tokens,
            request=replace(inquiry.request, images=images),
        )

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
        inquiry = self._ask(
            stage, document, segments, input_keys=_request_keys(answers), outputs=outputs
        )
        num_tokens = self._endpoint.counter.count(render(segments))
        room = self.room(stage)
        if num_tokens > room:
            error = (
                f"the {len(segments)} quoted lines of {len(answers)} answers have {num_tokens:,}"
                f" tokens; the context leaves {room:,}; use larger chunks or a longer context"
            )
            return replace(inquiry, request=None, unasked=("failed", "too_many_inputs", error))
        return replace(inquiry, saw="text", material_tokens=num_tokens)

    def room(self, stage: StageConfig) -> int:
        """Return how many tokens of material fit beside instructions, question and answer."""
        overhead = self._endpoint.prompt_overhead(self.instructions, stage.prompt, stage.output)
        return self._endpoint.context_tokens - overhead - stage.max_output_tokens

    def _ask(
        self,
        stage: StageConfig,
        document: Document,
        segments: Sequence[Segment],
        *,
        input_keys: Sequence[str],
        outputs: Mapping[str, Any],
    ) -> Inquiry:
        prepared = self._stages[stage.name]
        try:
            question = prepared.question.render(upstream=outputs)
        except jinja2.UndefinedError as exc:
            raise ConfigError(f"stage {stage.name!r}: prompt: {exc.message}") from exc
        request = Request(
            request_key=request_key(prepared.fingerprint, 0, input_keys),
            stage=stage.name,
            mode=stage.mode,
            instructions=self.instructions,
            material=render(segments),
            question=question,
            schema=bind_labels(stage.output, segments),
            max_output_tokens=stage.max_output_tokens,
        )
        return Inquiry(
            stage=stage,
            fingerprint=prepared.fingerprint,
            document=document,
            chunk=None,
            request=request,
            segments={segment.label: segment for segment in segments},
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
        return Inquiry(
            stage=stage,
            fingerprint=self._stages[stage.name].fingerprint,
            document=document,
            chunk=chunk,
            request=None,
            unasked=("skipped", error_class, error),
        )


def _request_keys(answers: Iterable[Answered]) -> list[str]:
    return [answered.result.request_key for answered in answers]


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
