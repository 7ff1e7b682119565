"""A stage made ready for one endpoint: its mode, its keys, and the checks before a call is paid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jinja2

from config.errors import ConfigError
from config.graph import compile_when
from config.pipeline import REDUCES, PipelineConfig, StageConfig
from config.templates import ENVIRONMENT
from connectors.document import Segment, Span
from connectors.sinks.parquet import LABEL_FORMAT
from engine.endpoint import Endpoint
from engine.grammar import inexpressible
from engine.modes.spectrum import Choice, Shape, choose
from engine.profile import Profile
from engine.request import JsonSchema, ModeName, stage_fingerprint
from flows.run.labels import Binding, bind_labels
from flows.run.vectors import vectors_key, vectors_of

AS_GIVEN = "as the pipeline says"
"""Reason of a mode that the pipeline names itself."""

_MANY_LINES = 20

_CLOSED_TYPES = frozenset({"boolean", "integer", "number", "null"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way in which a stage's questions are asked: a mode with its limits and its key."""

    mode: ModeName
    fingerprint: str
    max_reasoning_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedStage:
    """A stage ready to ask."""

    config: StageConfig
    question: jinja2.Template
    combine: jinja2.Template
    """The question where answers to parts are put together."""
    when: Callable[[Mapping[str, Any]], bool] | None
    """Whether answers of `needs` are built on; None: all are."""
    choice: Choice
    """The stage's mode; with `mode: auto`, the reason for it."""
    way: Way
    binding: Binding
    """The answer's schema, to be bound to the lines of each question."""
    again: Way | None
    """How a doubtful answer is asked for again; None where it is not."""

    @property
    def answer_tokens(self) -> int:
        """Return the most tokens that an answer may take, thinking in front of it included."""
        ways = [self.way, *([self.again] if self.again else [])]
        return self.config.max_output_tokens + max(way.max_reasoning_tokens for way in ways)

    @property
    def schema_of_many(self) -> JsonSchema:
        """Return the answer's schema about so many lines that a prompt puts the choice of a label in words."""
        line = Segment(label="L10", kind="paragraph", text="", span=Span())
        return self.binding.to([line] * _MANY_LINES)


class _Around(NamedTuple):
    """What the answers of a stage follow from besides itself."""

    instructions: str
    route_key: str
    """Of the route, whose answers count for no other one; empty for the open route."""
    vectors_key: Sequence[object]
    """Of what makes vectors for its searches; empty where they are by words only."""


def prepare_all(
    pipeline: PipelineConfig,
    endpoint: Endpoint,
    instructions: str,
    *,
    route_key: str,
    maker: Endpoint | None,
) -> dict[str, PreparedStage]:
    """Return the stages of a pipeline that ask something, by name, ready to ask on the endpoint.

    Args:
        pipeline: The stages.
        endpoint: Who is asked.
        instructions: What stands in front of all prompts.
        route_key: Of the route, as `_Around` has it.
        maker: Makes vectors for the stages that search by meaning; None where none does.

    Raises:
        ConfigError: A prompt is no template, or the engine cannot do what a stage wants.
    """
    key = vectors_key(maker) if maker is not None else []
    return {
        stage.name: _prepare(
            stage,
            endpoint,
            _Around(instructions, route_key, key if vectors_of(pipeline, stage) else []),
        )
        for stage in pipeline.stages
        if stage.compute is None
    }


def _prepare(stage: StageConfig, endpoint: Endpoint, around: _Around) -> PreparedStage:
    """Return a stage, ready to ask.

    Raises:
        ConfigError: The prompt is no template, or the engine cannot do what the stage wants.
    """
    try:
        question = ENVIRONMENT.from_string(stage.prompt)
        combine = ENVIRONMENT.from_string(stage.combine or stage.prompt)
    except jinja2.TemplateSyntaxError as exc:
        raise ConfigError(f"stage {stage.name!r}: prompt line {exc.lineno}: {exc.message}") from exc
    check_fit(stage, endpoint.profile)
    choice = choose_mode(stage, endpoint.profile)
    way = _way(stage, choice.mode, endpoint, around)
    again = None
    if stage.escalate is not None and choice.mode == "instant":
        again = _way(stage, "thinking", endpoint, around)
    return PreparedStage(
        config=stage,
        question=question,
        combine=combine,
        when=compile_when(stage.when) if stage.when else None,
        choice=choice,
        way=way,
        binding=Binding(stage.output, finds=bool(stage.tools)),
        again=again,
    )


def choose_mode(stage: StageConfig, profile: Profile) -> Choice:
    """Return the stage's mode, and the reason where it is `auto`."""
    if stage.mode != "auto":
        return Choice(mode=stage.mode, reason=AS_GIVEN)
    shape = Shape(
        is_reduce=stage.over in REDUCES,
        num_needs=len(stage.needs),
        num_free_fields=sum(map(_is_free, stage.output["properties"].values())),
        max_output_tokens=stage.max_output_tokens,
        max_reasoning_tokens=stage.max_reasoning_tokens,
        num_tools=len(stage.tools),
        is_wide=stage.is_gathered and "subagents" in stage.limits.model_fields_set,
    )
    if shape.num_tools:
        # Any engine with tools can carry agents out; without, `check_fit` says so.
        return choose(shape, ("agent", "swarm"))
    return choose(shape, profile.modes)


def check_fit(stage: StageConfig, profile: Profile) -> None:
    """Check that the engine can do what the stage wants, before anything is paid.

    Raises:
        ConfigError: It cannot; the message says what, the limit and what to do.
    """
    if not profile.modes:
        raise ConfigError(
            f"engine {profile.name!r} answers no questions (`modes: {{}}` of its profile); choose one that does"
        )
    problems = _misfits(stage, profile)
    if problems:
        raise ConfigError(f"stage {stage.name!r}: {problems[0]}")


def _misfits(stage: StageConfig, profile: Profile) -> list[str]:
    engine, can = f"engine {profile.name!r}", profile.capabilities
    found = []
    wanted: list[ModeName] = [choose_mode(stage, profile).mode]
    if stage.escalate is not None:
        wanted.append("thinking")
    for mode in wanted:
        problem = _mode_misfit(stage, profile, mode)
        if problem is not None:
            return [problem]
    if stage.require == "images" and not can.images:
        found.append(
            f"require: images, and {engine} reads text only; choose an engine that takes images, or"
            " drop require and have the text read off them"
        )
    found += _batch_misfits(stage, profile)
    if stage.adapter is not None and stage.adapter not in profile.adapters:
        known = ", ".join(profile.adapters) or "none"
        found.append(f"adapter {stage.adapter!r} is not in {engine}; its adapters: {known}")
    if stage.temperature is not None and "temperature" in profile.refuses:
        found.append(f"temperature: {engine} fixes it and refuses others; drop the key")
    if stage.samples > 1 and _temperature(stage, profile, wanted[0]) == 0:
        found.append(
            f"samples: {stage.samples} answers at temperature 0 are the same answer; set"
            " temperature, such as 0.7"
        )
    if can.structured_output and (problem := inexpressible(_as_sent(stage), can.grammar)):
        found.append(
            f"{problem} cannot be expressed by the grammar of {engine}; leave it out and check the"
            " answer afterwards, or choose an engine without structured output"
        )
    return found


def _batch_misfits(stage: StageConfig, profile: Profile) -> list[str]:
    if stage.batch_api is None:
        return []
    engine, limits = f"engine {profile.name!r}", profile.capabilities.batch_api
    if limits is None:
        return [
            f"batch_api: {engine} has none (capabilities.batch_api of its profile); drop the key, or choose"
            " an engine that has"
        ]
    problem = limits.misfit(stage.batch_api.window, stage.adapter or profile.model)
    return [f"batch_api: {engine}: {problem}"] if problem else []


def _mode_misfit(stage: StageConfig, profile: Profile, mode: ModeName) -> str | None:
    engine = f"engine {profile.name!r}"
    if mode not in {"agent", "swarm"}:
        if profile.offers(mode):
            return None
        offered = ", ".join(profile.modes)
        return f"{engine} has no mode {mode}; it has {offered}: set another mode or engine"
    if not profile.offers(mode):
        return f"{engine} takes no tools (capabilities.tools); choose one that does"
    if stage.limits.opening_calls and not profile.capabilities.forced_calls:
        return (
            f"limits.opening_calls: {engine} cannot force a call (capabilities.forced_calls); drop it, or"
            " choose an engine that can"
        )
    return None


def _temperature(stage: StageConfig, profile: Profile, mode: ModeName) -> float:
    if stage.temperature is not None:
        return stage.temperature
    turns = profile.turn_mode(mode, think=stage.limits.think)
    return profile.modes[turns].sampling.get("temperature", 1.0)


def _as_sent(stage: StageConfig) -> Mapping[str, Any]:
    line = Segment(label="L1", kind="paragraph", text="line", span=Span())
    return bind_labels(stage.output, [line])


def _is_free(schema: Mapping[str, Any]) -> bool:
    """Tell whether the model words the answer to this schema itself."""
    if "enum" in schema or "const" in schema or "pattern" in schema:
        return False
    if schema.get("format") in {LABEL_FORMAT, "date", "date-time", "decimal"}:
        return False
    if isinstance(schema.get("items"), Mapping):
        return _is_free(schema["items"])
    if isinstance(schema.get("properties"), Mapping):
        return any(map(_is_free, schema["properties"].values()))
    kind = schema.get("type")
    kinds = set(kind) if isinstance(kind, list) else {kind}
    return not kinds <= _CLOSED_TYPES


def _way(stage: StageConfig, mode: ModeName, endpoint: Endpoint, around: _Around) -> Way:
    """Return how a stage is asked."""
    turns = endpoint.profile.turn_mode(mode, think=stage.limits.think)
    settings = endpoint.profile.modes[turns]
    thinking = 0
    if turns == "thinking":
        thinking = stage.max_reasoning_tokens or settings.reasoning_tokens
    sampling = {**settings.sampling, **settings.wire, "max_tokens": stage.max_output_tokens}
    if stage.temperature is not None:
        sampling["temperature"] = stage.temperature
    if thinking:
        sampling |= {"thinking_tokens": thinking, "by": settings.by}
    if stage.reasoning != "drop":
        sampling["reasoning"] = stage.reasoning
    if stage.tools:
        limits = asdict(stage.limits.for_engine(stage.on_drift))
        if not stage.limits.opening_calls:
            # So that answers keep their keys that were paid for before there was this limit.
            del limits["opening_calls"]
        sampling |= {"tools": list(stage.tools), "limits": limits}
    if around.vectors_key:
        sampling["vectors"] = list(around.vectors_key)
    if around.route_key:
        sampling["route"] = around.route_key
    fingerprint = stage_fingerprint(
        mode=mode,
        model=f"{endpoint.model}+{stage.adapter}" if stage.adapter else endpoint.model,
        instructions=around.instructions,
        question=f"{stage.prompt}\0{stage.combine}" if stage.combine else stage.prompt,
        schema=stage.output,
        sampling=sampling,
    )
    return Way(mode=mode, fingerprint=fingerprint, max_reasoning_tokens=thinking)
