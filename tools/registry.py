"""What tools there are, and those of one stage as the engine calls them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.tool import Aside, ToolAnswer, ToolError, ToolSpec
from tools.cite import Cite
from tools.documents import Documents
from tools.python import Python
from tools.read import Read
from tools.search import Search
from tools.summarise import Summarise
from tools.table_query import TableQuery
from tools.tables import Tables
from tools.tool import Scope, Tool
from tools.view import ViewFrame, ViewPage

TOOLS: Mapping[str, Callable[[Scope], Tool]] = {
    "documents": Documents,
    "search": Search,
    "read": Read,
    "summarise": Summarise,
    "view_page": ViewPage,
    "view_frame": ViewFrame,
    "cite": Cite,
    "tables": Tables,
    "table_query": TableQuery,
    "python": Python,
}
"""By the name that a pipeline and the model call them."""


class Tools:
    """The tools of a stage, made for one scope; an `engine.tool.ToolBox`."""

    def __init__(
        self,
        names: Sequence[str],
        scope: Scope,
        *,
        others: Mapping[str, Tool] | None = None,
        approval: Collection[str] = (),
    ) -> None:
        """Make the tools.

        Args:
            names: Which, in the order in which the model is told of them.
            scope: What they work on.
            others: Tools that are not made here, by name.
            approval: Those of them whose every call a person has to agree to.

        Raises:
            ValueError: There is no such tool, or it is named twice.
        """
        others = others or {}
        unknown = [name for name in names if name not in TOOLS and name not in others]
        if unknown:
            raise ValueError(f"there is no tool {unknown[0]!r}; tools: {', '.join(sorted(TOOLS))}")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"tool {twice!r} is named twice; name each once")
        self._tools = {name: others.get(name) or TOOLS[name](scope) for name in names}
        self._approval = frozenset(approval)

    @property
    def specs(self) -> Sequence[ToolSpec]:
        """Return what may be called, in the order of the names given."""
        return [
            replace(tool.spec, needs_approval=name in self._approval)
            for name, tool in self._tools.items()
        ]

    async def call(self, name: str, arguments: Mapping[str, Any], aside: Aside) -> ToolAnswer:
        """Return what one tool gives.

        Raises:
            ToolError: It is not one of these, or the call cannot be done as asked.
        """
        tool = self._tools.get(name)
        if tool is None:
            there = ", ".join(self._tools) or "none"
            raise ToolError(f"there is no tool {name!r} here; tools: {there}")
        return await tool.call(arguments, aside)
