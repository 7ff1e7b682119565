"""The Capability Spectrum as a table: the cheapest mode that a stage's work needs, with the reason.

`mode: auto` is settled here from what a stage looks like; nothing is asked of a model for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from engine.request import ModeName

SHORT_ANSWER_TOKENS = 256
"""Up to here an answer in words is taken for a look-up; a paragraph has about 100 tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a stage looks like from outside."""

    is_reduce: bool
    """Whether it rests on other stages' answers about a whole document, and not on one chunk."""
    num_needs: int
    """Stages whose answers it builds on."""
    num_free_fields: int
    """Output fields that the model words itself: neither choices, numbers, dates nor lines of the
    document."""
    max_output_tokens: int
    max_reasoning_tokens: int | None
    """As set in the stage; None where it says nothing of thinking."""
    num_tools: int = 0
    is_wide: bool = False
    """Whether it is over the corpus or groups and sets a number of sub-agents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A mode and why."""

    mode: ModeName
    reason: str


@dataclass(frozen=True, slots=True)
class _Rule:
    applies: Callable[[Shape], bool]
    mode: ModeName
    reason: Callable[[Shape], str]


_RULES = (
    _Rule(
        lambda shape: shape.num_tools > 0 and shape.is_wide,
        "swarm",
        lambda _: "it has tools, spans documents and sets limits.subagents: wide research",
    ),
    _Rule(
        lambda shape: shape.num_tools > 0,
        "agent",
        lambda shape: f"it has {shape.num_tools} tools to work with",
    ),
    _Rule(
        lambda shape: (shape.max_reasoning_tokens or 0) > 0,
        "thinking",
        lambda shape: (
            f"the stage sets {shape.max_reasoning_tokens:,} tokens for thinking"
            " (max_reasoning_tokens)"
        ),
    ),
    _Rule(
        lambda shape: shape.num_free_fields == 0,
        "instant",
        lambda _: "every field is a choice, a number, a date or a line of the document: a look-up",
    ),
    _Rule(
        lambda shape: shape.is_reduce or shape.num_needs > 1,
        "thinking",
        lambda shape: (
            f"it words {_fields(shape.num_free_fields)} out of the answers of"
            f" {shape.num_needs} earlier {'stage' if shape.num_needs == 1 else 'stages'}:"
            " they have to be weighed against each other"
        ),
    ),
    _Rule(
        lambda shape: shape.max_output_tokens > SHORT_ANSWER_TOKENS,
        "thinking",
        lambda shape: (
            f"it words {_fields(shape.num_free_fields)} in up to"
            f" {shape.max_output_tokens:,} tokens: analysis, not a look-up"
        ),
    ),
    _Rule(
        lambda _: True,
        "instant",
        lambda shape: (
            f"a short answer (up to {shape.max_output_tokens:,} tokens) about one chunk: a quick"
            " look-up"
        ),
    ),
)
"""First match wins."""


def choose(shape: Shape, offered: Collection[ModeName]) -> Choice:
    """Return the cheapest mode for the work, among those the host offers."""
    rule = next(rule for rule in _RULES if rule.applies(shape))
    if rule.mode in offered:
        return Choice(mode=rule.mode, reason=rule.reason(shape))
    other = next(iter(sorted(offered)))
    return Choice(
        mode=other, reason=f"{rule.reason(shape)}; but the engine has no mode {rule.mode}"
    )


def _fields(count: int) -> str:
    return "one field" if count == 1 else f"{count} fields"
