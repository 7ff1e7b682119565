"""What a pipeline's graph consists of: its source, the tables it reads, its stages, and who feeds whom."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.cells import cell_len

from config.pipeline import PipelineConfig, StageConfig

MAX_CELLS = 60
"""Most cells of one line; a long condition or query is cut, `headrace plan --json` has it whole."""

_FROM_SOURCE = frozenset({"chunk", "rows"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One box of the drawing."""

    id: str
    kind: Literal["source", "table", "stage", "computed"]
    name: str
    """Not cut."""
    notes: tuple[str, ...] = ()
    """Lines below the name: what it is over and its mode, `when`, `by` and SQL."""
    stage: StageConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Boxes and arrows."""

    nodes: tuple[Node, ...]
    """A node stands behind those that feed it."""
    edges: tuple[tuple[str, str], ...]
    """Ids of a node and of one that it feeds."""

    def parents(self, node: Node) -> list[str]:
        """Return the ids of what feeds a node."""
        return [source for source, target in self.edges if target == node.id]


def graph_of(pipeline: PipelineConfig) -> Graph:
    """Return the graph of a pipeline."""
    # What stands in front of an @ may be a password.
    source = re.sub(r"//[^/@]*@", "//", pipeline.source or "")
    nodes = {"source": Node(id="source", kind="source", name=source or "(not set)")}
    edges: list[tuple[str, str]] = []
    for stage in pipeline.stages:
        own = f"stage:{stage.name}"
        if stage.over in _FROM_SOURCE:
            edges.append(("source", own))
        edges += [(f"stage:{need}", own) for need in stage.needs]
        for path in dict.fromkeys(stage.tables.values()):
            table = f"table:{path}"
            nodes.setdefault(table, Node(id=table, kind="table", name=path, notes=("table",)))
            edges.append((table, own))
        nodes[own] = Node(
            id=own,
            kind="stage" if stage.compute is None else "computed",
            name=stage.name,
            notes=tuple(_notes(stage)),
            stage=stage,
        )
    return Graph(nodes=tuple(nodes.values()), edges=tuple(edges))


def _notes(stage: StageConfig) -> list[str]:
    notes = [f"{stage.over} · {'SQL' if stage.compute is not None else stage.mode}"]
    named = (("when", stage.when), ("by", stage.by), ("", stage.compute))
    notes += [f"{word} {text}".strip() for word, text in named if text]
    return notes


def graph_json(pipeline: PipelineConfig) -> dict[str, Any]:
    """Return the graph as nodes and edges for a machine, texts whole."""
    graph = graph_of(pipeline)
    return {
        "nodes": [_node_json(node) for node in graph.nodes],
        "edges": [{"from": source, "to": target} for source, target in graph.edges],
    }


def _node_json(node: Node) -> dict[str, Any]:
    kind = "stage" if node.stage else node.kind
    shown: dict[str, Any] = {"id": node.id, "kind": kind, "name": node.name}
    if node.stage is None:
        return shown
    return shown | {
        "over": node.stage.over,
        "mode": node.stage.mode if node.stage.compute is None else "sql",
        "when": node.stage.when,
        "by": node.stage.by,
        "compute": node.stage.compute,
    }


def one_line(text: str, max_cells: int = MAX_CELLS) -> str:
    """Return a text in one line of at most so many terminal cells, its middle left out if need be."""
    plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in _joined(text))
    if cell_len(plain) <= max_cells:
        return plain
    head, tail = _fitting(plain, max_cells * 2 // 3), _fitting(plain[::-1], max_cells // 3 - 1)
    return f"{head}…{tail[::-1]}"


def _joined(text: str) -> str:
    return " ".join(text.split())


def _fitting(text: Sequence[str], max_cells: int) -> str:
    taken = ""
    for char in text:
        if cell_len(taken + char) > max_cells:
            break
        taken += char
    return taken
