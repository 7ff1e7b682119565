"""The values at the engine's border: a request goes in, exactly one result comes out.

Requests are made by flows.run from chunks and pipelines; results become records there. Keys are
hashes of content, so the same question has the same key on every machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["succeeded", "invalid_output", "rejected", "failed", "over_budget", "skipped"]
ModeName = Literal["instant", "thinking", "agent", "swarm"]
DriftAction = Literal["reorient", "smaller_profile", "stop"]
ReasoningPolicy = Literal["drop", "keep", "summary"]
JsonSchema = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLimits:
    """How far an agent may go, and what is done where it goes astray."""

    max_steps: int = 100
    """Turns of the model; the last two are for the answer. Moonshot's own runs of K2.5 allow 100 to a
    sub-agent and 15 to an orchestrator (arXiv 2602.02276)."""
    max_calls: int = 300
    """Tool calls in all."""
    opening_calls: int = 0
    """Turns at the beginning that must call a tool, where the host can force it."""
    max_tokens: int | None = None
    """Prompt and answer tokens of all turns; None: as the budget allows."""
    max_failures: int = 6
    """Calls of one tool that may fail in a row; after that it is closed for this request."""
    result_chars: int = 12_000
    """Most characters of one result that the model is shown at once."""
    call_timeout_s: float = 120.0
    """Longest time one call may take."""
    think: bool = True
    """Whether turns are in Thinking mode, where the host has a switch; else in Instant."""
    on_drift: tuple[DriftAction, ...] = ("reorient", "stop")
    """What is done the first time, the second time, and so on; the last one from then on."""
    max_subagents: int = 20
    """Agents that a swarm may have at work at once; K2.5 was trained with up to 100."""
    subagent_steps: int = 100
    """`max_steps` of each of them."""
    subagent_tokens: int | None = None
    """`max_tokens` of each of them: its share of the budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTerms:
    """How a request goes through the host's batch API."""

    window: str
    """Time that the host is given, such as `24h`."""
    again: Literal["batch_api", "at_once"] = "batch_api"
    """How a line is asked again that has failed, and what else a request needs: in a further batch, or
    as a call like any other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What an agent or a swarm did for one request."""

    num_steps: int = 0
    """Turns of the model, those of sub-agents included."""
    num_calls: int = 0
    num_failed_calls: int = 0
    num_compactions: int = 0
    num_drifts: int = 0
    num_subagents: int = 0
    critical_steps: int = 0
    """Turns one after the other: per turn of the orchestrator one, and the most that one of the sub-agents it
    waits for took (arXiv 2602.02276); the same as `num_steps` for a single agent."""
    stopped: str | None = None
    """Why it had to answer with what it had; None where it came to its end."""
    engines: tuple[str, ...] = ()
    """Profiles that answered its turns, by name."""


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
    """Most tokens of the answer itself."""
    max_reasoning_tokens: int = 0
    """Most tokens of thinking in front of it; counts in Thinking mode only."""
    reasoning: ReasoningPolicy = "drop"
    """What becomes of the thinking: dropped, kept as it is, or summed up in a sentence or two."""
    temperature: float | None = None
    """In place of the profile's."""
    adapter: str | None = None
    """LoRA adapter to ask, by the name the endpoint serves it under."""
    prompt_tokens: int = 0
    """Tokens of the prompt as counted when the request was made; 0 where nobody counted."""
    affinity: str = ""
    """The same for requests that share a prefix: they go to the same one of several servers."""
    priority: int | None = None
    """Lower goes first, at endpoints that know priorities; None: as its place in the order."""
    limits: AgentLimits | None = None
    """In Agent and Swarm mode only."""
    batch_api: BatchTerms | None = None
    """None: it is sent at once. Its key is the same either way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens as the endpoint counted them, added up over a request's attempts that answered."""

    prompt_tokens: int = 0
    cached_tokens: int | None = None
    """Prompt tokens served from the endpoint's prefix cache; None where it does not say."""
    completion_tokens: int = 0
    """Tokens generated, reasoning included."""
    reasoning_tokens: int | None = None
    """Tokens generated as thinking; None where the endpoint does not say."""
    later_prompt_tokens: int = 0
    """Prompt tokens of the calls after the first: repairs, an answer after thinking in a turn of its own, summaries."""
    later_cached_tokens: int | None = None
    """Those of them that were served from the prefix cache; None where there were none, or it does not say."""
    embedded_tokens: int = 0
    """Prompt tokens of texts that were made into vectors."""
    num_guessed: int = 0
    """Calls whose usage the endpoint left out or got wrong, so that it was counted here instead."""

    @property
    def total_tokens(self) -> int:
        """Return the tokens of prompt and answer together."""
        return self.prompt_tokens + self.completion_tokens


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
    mode_observed: ModeName | None = None
    """The mode that the answer shows; None where there is no answer."""
    mode_notes: tuple[str, ...] = ()
    """What showed it, and what was repaired, where the answer was not plainly in the mode asked for."""
    reasoning: str | None = None
    """The thinking, as the request's policy wants it."""
    model: str = ""
    engine: str = ""
    """Profile of the endpoint that answered."""
    host: str = ""
    """Host and port of that endpoint's address; empty in what was kept before it was noted down."""
    fallback: str | None = None
    """Why it was not the pipeline's own engine; None where it was."""
    finish_reason: str | None = None
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = None
    """Price of the usage; None where the profile has no prices."""
    gpu_seconds: float | None = None
    """GPU time of the usage; None where the profile has no `gpus` or no `throughput`."""
    attempts: int = 0
    """HTTP calls made, repairs and retries included."""
    seconds: float = 0.0
    """Wall time from the first send to the last answer, waiting between attempts included."""
    first_token_s: float | None = None
    """Seconds from the last call's send to its first event; None where answers are not streamed."""
    queued_s: float = 0.0
    """Seconds its calls waited here before they were sent: for budget, pace and breaker."""
    decoding_s: float | None = None
    """Seconds from the last call's first event to its end; None where answers are not streamed."""
    work: Work | None = None
    """What an agent did; None in the modes that have no steps."""
    batch_ids: tuple[str, ...] = ()
    """The host's batches that answered it; empty where it was asked at once."""


def add_usage(first: Usage, second: Usage) -> Usage:
    """Return the sum; what only one of the two knows is taken from it."""
    return Usage(
        prompt_tokens=first.prompt_tokens + second.prompt_tokens,
        cached_tokens=_add_known(first.cached_tokens, second.cached_tokens),
        completion_tokens=first.completion_tokens + second.completion_tokens,
        reasoning_tokens=_add_known(first.reasoning_tokens, second.reasoning_tokens),
        later_prompt_tokens=first.later_prompt_tokens + second.later_prompt_tokens,
        later_cached_tokens=_add_known(first.later_cached_tokens, second.later_cached_tokens),
        embedded_tokens=first.embedded_tokens + second.embedded_tokens,
        num_guessed=first.num_guessed + second.num_guessed,
    )


def as_later(usage: Usage) -> Usage:
    """Return the usage of calls as those after the first of their request."""
    return replace(
        usage,
        later_prompt_tokens=usage.prompt_tokens,
        later_cached_tokens=usage.cached_tokens if usage.prompt_tokens else None,
    )


def _add_known(first: int | None, second: int | None) -> int | None:
    known = [number for number in (first, second) if number is not None]
    return sum(known) if known else None


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_key(*parts: object) -> str:
    """Return the SHA-256 of the parts' canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(_CANONICAL.encode(parts).encode()).hexdigest()


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
