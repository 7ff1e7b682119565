"""The protocol of a tool, and what a tool is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from connectors.vectors import VectorStore
from engine.tool import Aside, ToolAnswer, ToolError, ToolSpec
from tools.corpus import Corpus


class Arguments(BaseModel):
    """The arguments of a tool; their JSON Schema is what the model is told."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """Return the arguments of a call.

        Raises:
            ToolError: They do not follow the schema.
        """
        try:
            return cls.model_validate(arguments)
        except ValidationError as exc:
            wrong = [
                f"{'.'.join(map(str, error['loc'])) or 'arguments'}: {error['msg']}"
                for error in exc.errors(include_url=False, include_input=False)
            ]
            raise ToolError(f"wrong arguments: {'; '.join(wrong)}") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What the tools of one request work on."""

    corpus: Corpus
    scratch: Path
    """A folder of their own for indexes and temporary files; gone after the run."""
    vectors: VectorStore | None = None
    """Where the vectors of passages are; None where nothing is searched by meaning."""


class Tool(Protocol):
    """One tool, made for one scope."""

    @property
    def spec(self) -> ToolSpec:
        """Return what the model is told of it."""

    async def call(self, arguments: Mapping[str, Any], aside: Aside) -> ToolAnswer:
        """Return what it gives for arguments that follow its schema.

        Raises:
            ToolError: The model must ask otherwise.
        """


def spec_of(
    name: str, description: str, arguments: type[Arguments], *, has_effects: bool = False
) -> ToolSpec:
    """Return the spec of a tool whose arguments are a model's fields."""
    schema = arguments.model_json_schema()
    for key in ("title", "description"):
        schema.pop(key, None)
    for field in schema.get("properties", {}).values():
        field.pop("title", None)
        # Lengths make a grammar large (docs/decisions/0007); a call is checked against them all the same.
        for kind in (field, field.get("items", {})):
            kind.pop("maxLength", None)
    return ToolSpec(name=name, description=description, parameters=schema, has_effects=has_effects)
