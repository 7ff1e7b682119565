"""Checks of a pipeline's graph before anything is read or paid, and what its expressions mean.

PipelineConfig calls `problems`; each one names a key, so that the loader can say file and key. A run
calls `compile_when` and `by_field`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2

from config.computed import compute_problems
from config.templates import (
    ENVIRONMENT,
    UPSTREAM,
    Known,
    expression_problems,
    nearest,
    parse_expression,
    paths,
    template_problems,
)
from connectors.sinks.columns import output_kinds
from connectors.sinks.parquet import CLAIM_FORMAT

if TYPE_CHECKING:
    from config.pipeline import StageConfig

GRAIN: Mapping[str, int] = {"chunk": 0, "rows": 1, "document": 2, "group": 3, "corpus": 3}
"""How late answers come, by what a stage is over: it can need stages of its own grain or of a finer one."""

_LINES = "the answers stand in front of the question as lines"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with the graph."""

    key: tuple[int | str, ...]
    """Keys from the top of the pipeline, such as `("stages", 2, "when")`."""
    message: str


def problems(stages: Sequence[StageConfig]) -> list[Problem]:
    """Return all that is wrong with the graph, in the order of the stages."""
    return [
        Problem(key=("stages", number, *key), message=f"stage {stage.name!r}: {message}")
        for number, stage in enumerate(stages)
        for key, message in _stage_problems(stages, number)
    ]


def _stage_problems(
    stages: Sequence[StageConfig], number: int
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield what is wrong with one stage, with the key below it."""
    stage = stages[number]
    if stage.name in {other.name for other in stages[:number]}:
        yield ("name",), "is defined twice; rename one"
        return
    needs = [(("needs",), problem) for problem in _needs_problems(stages, number)]
    if needs:
        # What names those stages would only be wrong once more.
        yield from needs
        return
    by_name = {other.name: other for other in stages[:number]}
    outputs = {need: by_name[need].output for need in stage.needs}
    if stage.when is not None:
        for problem in expression_problems(stage.when, Known(outputs=outputs)):
            yield ("when",), problem
    for key, text in (("prompt", stage.prompt), ("combine", stage.combine)):
        for problem in template_problems(text or "", _known(stage, outputs)):
            yield (key,), problem
    if stage.by is not None:
        try:
            by_field(stage, by_name)
        except ValueError as exc:
            yield ("by",), str(exc)
    if stage.compute is not None:
        yield from compute_problems(stage, outputs)


def _known(stage: StageConfig, outputs: Mapping[str, Mapping[str, Any]]) -> Known:
    if stage.over == "group":
        return Known(outputs=outputs, names=("group",), why_not=_LINES)
    if stage.over == "corpus":
        return Known(outputs=outputs, names=(), why_not=_LINES)
    if not outputs:
        return Known(outputs=outputs, names=(), why_not="the stage has no `needs`; name them there")
    return Known(outputs=outputs, are_lists=stage.over == "document")


def _needs_problems(stages: Sequence[StageConfig], number: int) -> Iterator[str]:
    stage = stages[number]
    earlier = {other.name: other for other in stages[:number]}
    later = {other.name: other for other in stages[number + 1 :]}
    twice = [need for place, need in enumerate(stage.needs) if need in stage.needs[:place]]
    if twice:
        yield f"needs {twice[0]!r} twice; name it once"
    for need in dict.fromkeys(stage.needs):
        if need in earlier:
            if GRAIN[stage.over] < GRAIN[earlier[need].over]:
                yield (
                    f"is over {stage.over} and cannot need {need!r}, which is over"
                    f" {earlier[need].over}: its answers come later"
                )
        elif need == stage.name:
            yield "needs itself; a stage builds on others that come before it"
        elif need in later:
            yield _later(stages, stage, need)
        else:
            yield (
                f"needs {need!r}, which is not a stage before it; stages before it:"
                f" {', '.join(earlier) or 'none'}{nearest(need, [*earlier, *later])}"
            )


def _later(stages: Sequence[StageConfig], stage: StageConfig, need: str) -> str:
    """Return what to say of a need that stands behind its stage."""
    needs = {other.name: other.needs for other in stages}
    cycle = _way(needs, need, stage.name)
    if cycle:
        circle = " needs ".join([stage.name, *cycle])
        return f"{circle}: none of them can be asked first; drop one of these needs"
    return (
        f"needs {need!r}, which is not a stage before it; put {need!r} in front of it in the list"
    )


def _way(needs: Mapping[str, Sequence[str]], start: str, goal: str) -> list[str]:
    """Return the shortest way of needs from one stage to another, both included; empty: there is none."""
    ways, seen = [[start]], {start}
    for way in ways:
        if way[-1] == goal:
            return way
        fresh = [need for need in needs.get(way[-1], ()) if need not in seen]
        seen.update(fresh)
        ways += [[*way, need] for need in fresh]
    return []


def by_field(stage: StageConfig, by_name: Mapping[str, StageConfig]) -> tuple[str, str]:
    """Return the stage and the field that make the groups of a stage `over: group`.

    Args:
        stage: It has `by`: `FIELD` or `STAGE.FIELD`.
        by_name: At least the stages of its `needs`.

    Raises:
        ValueError: None of the needs has the field, several have it, or it cannot make groups.
    """
    by = stage.by or ""
    fields = {need: list(by_name[need].output["properties"]) for need in stage.needs}
    holders = [(need, by) for need in fields if by in fields[need]]
    if not holders:
        named, _, field = by.partition(".")
        holders = [(named, field)] if field in fields.get(named, ()) else []
    if not holders:
        known = [f"{need}.{field}" for need in fields for field in fields[need]]
        near = nearest(by, [*known, *(field for names in fields.values() for field in names)])
        raise ValueError(f"by {by!r} is no field of its needs; fields: {', '.join(known)}{near}")
    if len(holders) > 1:
        choices = " or ".join(f"{need}.{field}" for need, field in holders)
        raise ValueError(f"by {by!r} is a field of several needs; write {choices}")
    _check_groups(by_name[holders[0][0]].output, holders[0][1])
    return holders[0]


def _check_groups(output: Mapping[str, Any], field: str) -> None:
    """Check that answers can be equal in a field.

    Raises:
        ValueError: They cannot, or would by chance only.
    """
    kind = output_kinds(output)[field].name
    is_claim = output["properties"][field].get("format") == CLAIM_FORMAT
    if is_claim or kind in {"json", "double"} or kind.startswith(("list<", "struct<")):
        word = "cited" if is_claim else "number" if kind == "double" else kind.partition("<")[0]
        raise ValueError(
            f"by {field!r} is of type {word}, in which answers are hardly ever equal; group by a string,"
            " choice, boolean, integer, date, decimal or line"
        )


def compile_when(text: str) -> Callable[[Mapping[str, Any]], bool]:
    """Return what tells whether answers meet a `when`: a function of `{stage: {field: value}}`.

    A field that an answer leaves out is null, and null compares as None; a comparison that null has no
    part in (`null > 3`) makes the whole false. A ValueError says which values cannot be compared.

    A KeyError says which of the stages has no answer.

    Raises:
        ValueError: The text is no expression.
    """
    used = {(str(path[0]), str(path[1])) for path in paths(parse_expression(text)) if len(path) > 1}
    expression = ENVIRONMENT.compile_expression(text, undefined_to_none=False)

    def holds(upstream: Mapping[str, Any]) -> bool:
        answers = {stage: dict(answer) for stage, answer in upstream.items()}
        for stage, field in used:
            if stage not in answers:
                raise KeyError(stage)
            answers[stage].setdefault(field, None)
        try:
            return bool(expression(**{UPSTREAM: answers}))
        except (TypeError, jinja2.UndefinedError) as exc:
            if any(answers[stage].get(field) is None for stage, field in used):
                return False
            raise ValueError(f"when {text!r} cannot be told: {exc}") from exc

    return holds
