"""`headrace try`: one document through a pipeline, with every prompt, answer and price to look at."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.errors import ConfigError
from config.pipeline import PipelineConfig
from connectors.document import Document, SourceRef
from connectors.storage import open_source
from engine.endpoint import Endpoint
from engine.wire import body_of, opening, opening_text
from flows.run.ask import Asker
from flows.run.asking import ask_all
from flows.run.bench import endpoint_facts, open_bench, open_room, plan_asker
from flows.run.chunk_size import chunk_rule
from flows.run.job import Job, new_run_id
from flows.run.manifest import spent_json
from flows.run.masked import open_mask
from flows.run.plan import ShardPlan, list_sources
from flows.run.progress import Progress
from flows.run.reading import ReadDocument, read_chunks
from flows.run.routes import routes_of
from flows.run.rows import Answered, Inquiry
from flows.run.shard import open_shard, read
from flows.run.units import rows_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What is tried: one document, and which of its requests are shown."""

    pipeline: PipelineConfig
    document: str
    """Path below the source, or of a local file."""
    stage: str | None = None
    """Show this stage only; None: all."""
    chunk: int = 0
    """Show requests about this chunk, from 0."""


def try_document(trial: Trial, *, dry_run: bool, notify: Callable[[str], None]) -> dict[str, Any]:
    """Return what would be sent about a document, and unless `dry_run` also what came back.

    Nothing is written to the pipeline's sink.

    Raises:
        ConfigError: There is no such document, stage or chunk.
        DocumentRejected: The document cannot be read.
    """
    names = [stage.name for stage in trial.pipeline.stages]
    if trial.stage is not None and trial.stage not in names:
        raise ConfigError(f"--stage {trial.stage!r}: no such stage; stages: {', '.join(names)}")
    source, ref = _find(trial)
    with tempfile.TemporaryDirectory(prefix="headrace-try-") as sink:
        job = Job(run_id=new_run_id(), pipeline=trial.pipeline, source=source, sink=sink)
        if dry_run:
            return _dry(job, trial, ref, notify)
        return _live(job.at_once(), trial, ref, notify)


def _find(trial: Trial) -> tuple[str, SourceRef]:
    """Return the source and the document in it.

    Raises:
        ConfigError: There is no such document, or nothing tells whether it is sensitive.
    """
    source, path = trial.pipeline.source, trial.document
    if Path(path).expanduser().is_file():
        file = Path(path).expanduser().resolve()
        # Its path below the source decides where it may go, not its name alone.
        below = _below(source, file)
        if below is None:
            _check_outside(trial)
            source, below = str(file.parent), file.name
        path = below
    if source is None:
        raise ConfigError(
            f"--document {path!r} is no local file, and the pipeline names no source to look in;"
            " give --source"
        )
    refs = list_sources(open_source(source, trial.pipeline.access_to(source)), ("**/*",))
    found = [ref for ref in refs if ref.path == path]
    if not found:
        near = [ref.path for ref in refs if path.lower() in ref.path.lower()] or [
            ref.path for ref in refs[:3]
        ]
        raise ConfigError(
            f"--document {path!r} is not in source {source!r}; there is for example"
            f" {', '.join(near[:3]) or 'nothing'}"
        )
    return source, found[0]


def _below(source: str | None, file: Path) -> str | None:
    """Return the path of a file below the source; None where it lies elsewhere."""
    folder = None if source is None else Path(source).expanduser().resolve()
    return file.relative_to(folder).as_posix() if folder and file.is_relative_to(folder) else None


def _check_outside(trial: Trial) -> None:
    """Check that a file from elsewhere than the source has one way to go.

    Raises:
        ConfigError: Its path below the source would decide.
    """
    if len(routes_of(trial.pipeline).passages) > 1:
        raise ConfigError(
            f"--document {trial.document!r} does not lie below the pipeline's source, by whose paths"
            " policy.sensitive says what may leave; name a document of the source, or give the folder that"
            " it would be read from with --source"
        )


def _dry(job: Job, trial: Trial, ref: SourceRef, notify: Callable[[str], None]) -> dict[str, Any]:
    passage = routes_of(job.pipeline).find([ref.path])
    mask = open_mask(job.pipeline.policy, job.open_lake())
    with plan_asker(job, passage, mask, notify) as asker:
        return _planned(job, trial, ref, asker)


def _planned(job: Job, trial: Trial, ref: SourceRef, asker: Asker) -> dict[str, Any]:
    endpoint = asker.endpoint
    with open_room(job) as room:
        document, chunks, media_dir = read_chunks(
            room, "try", ref, chunk_rule(job, endpoint, asker, room.lake)
        )
    _check_chunk(trial, len(chunks))
    shown = []
    for stage in job.pipeline.stages:
        if trial.stage not in {None, stage.name}:
            continue
        if stage.needs:
            shown.append({"stage": stage.name, "waits_for": list(stage.needs)})
            continue
        rows = [
            row for row in rows_of(chunks, job.pipeline.rows.order).rows if row.chunk == trial.chunk
        ]
        for chunk in chunks[trial.chunk : trial.chunk + 1]:
            for row in rows if stage.over == "rows" else [None]:
                inquiry = asker.about_chunk(
                    stage, document, chunk, upstream={}, media_dir=media_dir, row=row
                )
                shown.append(_request(inquiry, endpoint))
    return _head(asker, document, len(chunks)) | {"requests": shown}


def _live(job: Job, trial: Trial, ref: SourceRef, notify: Callable[[str], None]) -> dict[str, Any]:
    with (
        open_bench(job, Progress(), notify) as opened,
        open_shard(opened.at([ref]), ShardPlan(shard="try", sources=(ref,))) as shard,
    ):
        bench = shard.bench
        reading: Future[ReadDocument] = Future()
        reading.set_result(read(shard, ref))
        done = reading.result()
        _check_chunk(trial, len(done.chunks))
        asyncio.run(ask_all(shard, [reading]))
        shard.ledger.remove_journal()
        shown = [
            _request(answered.inquiry, bench.endpoint) | _answer(answered)
            for stage in job.pipeline.stages
            if trial.stage in {None, stage.name}
            for answered in _of_chunk(done.ends(stage.name), trial.chunk)
        ]
        head = _head(bench.asker, done.document, len(done.chunks))
        return head | {"spent": spent_json(bench), "requests": shown}


def _check_chunk(trial: Trial, num_chunks: int) -> None:
    if trial.chunk and trial.chunk >= num_chunks:
        raise ConfigError(
            f"--chunk {trial.chunk}: the document has {num_chunks} chunks, numbered from 0"
        )


def _of_chunk(group: Sequence[Answered], ordinal: int) -> list[Answered]:
    """Return the answers about this chunk, or about the document as a whole."""
    return [a for a in group if a.inquiry.chunk is None or a.inquiry.chunk.ordinal == ordinal]


def _head(asker: Asker, document: Document, num_chunks: int) -> dict[str, Any]:
    return {
        "document": document.source.uri,
        "status": document.status,
        "error": document.error,
        "chunks": num_chunks,
        "route": asker.route,
        **endpoint_facts(asker.endpoint),
    }


def _request(inquiry: Inquiry, endpoint: Endpoint) -> dict[str, Any]:
    if not inquiry.requests:
        assert inquiry.unasked is not None
        outcome, error_class, error = inquiry.unasked
        return {
            "stage": inquiry.stage.name,
            "unit": inquiry.unit,
            "not_sent": f"{outcome}: {error_class}: {error}",
        }
    request = inquiry.requests[0]
    asked = "", request.question, request.schema
    tail = opening_text(*asked, mode=request.mode, profile=endpoint.profile)
    first = opening(request, endpoint)
    system, user = first.messages
    text = user["content"] if isinstance(user["content"], str) else user["content"][-1]["text"]
    parts = endpoint.counter.count_many([request.instructions, request.material, tail])
    return {
        "stage": inquiry.stage.name,
        "unit": inquiry.unit,
        "mode": request.mode,
        "messages": [
            {"role": "system", "content": system["content"]},
            {"role": "user", "content": text, "images": len(request.images)},
        ],
        "schema": dict(request.schema),
        "samples": inquiry.stage.samples,
        "body": _shown_body(body_of(first, request, endpoint)),
        "tokens": {
            "instructions": parts[0],
            "material": parts[1],
            "question": parts[2],
            "thinking_at_most": request.max_reasoning_tokens,
            "answer_at_most": request.max_output_tokens,
        },
        "shared": {
            "instructions": "by every request of the run",
            "material": "by all questions about this chunk" if inquiry.chunk else "by none",
        },
    }


def _shown_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a call beside its messages and schema, which are shown apart."""
    shown = {name: value for name, value in body.items() if name != "messages"}
    return shown | ({"response_format": "the schema above"} if "response_format" in body else {})


def _answer(answered: Answered) -> dict[str, Any]:
    result = answered.result
    if not answered.inquiry.requests:
        return {}
    return {
        "outcome": result.outcome,
        "error": result.error,
        "answer": answered.output,
        "mode_observed": result.mode_observed,
        "mode_notes": list(result.mode_notes),
        "thought": result.reasoning,
        "agreement": answered.agreement,
        "escalated": answered.escalated,
        "fallback": result.fallback,
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.usage.prompt_tokens,
        "cached_tokens": result.usage.cached_tokens,
        "completion_tokens": result.usage.completion_tokens,
        "seconds": round(result.seconds, 3),
        "cost_usd": result.cost_usd,
    }
