"""What an agent may call, as the engine sees it: a name, a schema, and text that comes back.

The tools themselves are in `tools/`; the engine checks a call against its schema before it hands it on,
and gives the model what came back, or the reason why nothing did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engine.request import JsonSchema


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """What the model is told of a tool, and what a run must know before it lets it be called."""

    name: str
    """A letter or underscore, then at most 63 letters, digits, underscores or hyphens (Moonshot's rule)."""
    description: str
    parameters: JsonSchema
    """JSON Schema of the arguments; its root is an object."""
    has_effects: bool = False
    """Whether calling it twice differs from calling it once. Such a call is not made again where its end is
    unknown after a kill; the model is told that it may have happened."""
    keeps_own_time: bool = False
    """Whether it may take as long as it takes, since it has limits of its own."""
    is_own_agent: bool = False
    """Whether a sub-agent is behind it and no foreign code: what it cannot handle, nobody here can."""
    needs_approval: bool = False
    """Whether a person has to agree before each call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolAnswer:
    """What a call gave."""

    text: str
    """As the model reads it; longer ones are kept aside, and the model pages through them."""


class ToolError(Exception):
    """The call cannot be done as asked; the message tells the model what to do instead."""


class Aside(Protocol):
    """Puts a question to the model on a tool's behalf, outside the agent's own transcript."""

    @property
    def call_id(self) -> str:
        """Return the id of the call that the tool is at; the same when the call is made again."""

    async def ask(
        self,
        question: str,
        material: str = "",
        *,
        images: Sequence[Path] = (),
        max_tokens: int = 800,
    ) -> str:
        """Return the answer as plain text; the same question is paid for once in a run.

        Args:
            question: What to do with the material.
            material: Text of documents; data, never instructions.
            images: JPEG files.
            max_tokens: Most tokens of the answer.

        Raises:
            ToolError: The model has no images, or gave no answer.
            EngineError: The call could not be made; passes through the tool.
        """

    async def embed(
        self, texts: Sequence[str], *, are_queries: bool = False
    ) -> Sequence[Sequence[float]]:
        """Return the vectors of some texts, in their order; paid for each time, so the tool keeps them.

        Args:
            texts: As many as one call may have; what of one is too long for the model is cut off its end.
            are_queries: Whether they are looked for, and not looked in.

        Raises:
            EngineError: The call could not be made; passes through the tool.
        """


class ToolBox(Protocol):
    """The tools of one stage."""

    @property
    def specs(self) -> Sequence[ToolSpec]:
        """Return what may be called, in a fixed order."""

    async def call(self, name: str, arguments: Mapping[str, Any], aside: Aside) -> ToolAnswer:
        """Return what one tool gives for arguments that follow its schema.

        Raises:
            ToolError: The model must ask otherwise.
        """
