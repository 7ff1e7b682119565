"""The values at the engine's border: a request goes in, exactly one result comes out.

Requests are made by flows.run from chunks and pipelines; results become records there. Keys are
hashes of content, so the same question has the same key on every machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["succeeded", "invalid_output", "rejected", "failed", "over_budget", "skipped"]
ModeName = Literal["instant"]
JsonSchema = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One unit of model work.

    The prompt is laid out for the prefix cache: `instructions` (the same for a whole run), then
    `material` (the same for all questions about one chunk), then `question`.
    """

    request_key: str
    stage: str
    mode: ModeName
    instructions: str
    material: str
    images: tuple[Path, ...] = ()
    """JPEG files that are sent in front of `material`, for an endpoint that takes images."""
    question: str
    schema: JsonSchema
    """JSON Schema of the answer; its root is an object."""
    max_output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens as the endpoint counted them, added up over a request's attempts that answered."""

    prompt_tokens: int = 0
    cached_tokens: int | None = None
    """Prompt tokens served from the endpoint's prefix cache; None where it does not say."""
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The end of one request, good or bad; there is one for every request."""

    request_key: str
    stage: str
    outcome: Outcome
    output: Mapping[str, Any] | None = None
    error_class: str | None = None
    error: str | None = None
    mode: ModeName
    mode_observed: str | None = None
    """The mode that the answer shows: `instant`, or `thinking` where reasoning came along."""
    model: str = ""
    finish_reason: str | None = None
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = None
    """Price of the usage; None where the profile has no prices."""
    attempts: int = 0
    """HTTP calls made, repairs and retries included."""
    seconds: float = 0.0
    """Wall time from the first send to the last answer, waiting between attempts included."""


def add_usage(first: Usage, second: Usage) -> Usage:
    """Return the sum; cached tokens are known where one of the two knows them."""
    cached = [n for n in (first.cached_tokens, second.cached_tokens) if n is not None]
    return Usage(
        prompt_tokens=first.prompt_tokens + second.prompt_tokens,
        cached_tokens=sum(cached) if cached else None,
        completion_tokens=first.completion_tokens + second.completion_tokens,
    )


def content_key(*parts: object) -> str:
    """Return the SHA-256 of the parts' canonical JSON, as 64 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def stage_fingerprint(
    *,
    mode: ModeName,
    model: str,
    instructions: str,
    question: str,
    schema: JsonSchema,
    sampling: Mapping[str, Any],
) -> str:
    """Return the key of everything but the inputs that decides a stage's answers.

    Args:
        mode: How requests are carried out.
        model: Name and revision of the model.
        instructions: Constant text and shared sub-prompts.
        question: The stage's prompt template, unrendered.
        schema: The answer's JSON Schema, before labels are bound to it.
        sampling: Sampling and output limits as sent.
    """
    return content_key("stage", mode, model, instructions, question, schema, sampling)


def request_key(fingerprint: str, sample: int, input_keys: Sequence[str]) -> str:
    """Return the key of one question: a stage's fingerprint, sample number and input keys."""
    return content_key("request", fingerprint, sample, list(input_keys))
