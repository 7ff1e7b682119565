"""A pipeline's graph as text: boxes below each other, what they give in rails on their left.

Rails keep it right and narrow whatever the graph is: each box that feeds others has a rail of its own
from `╭` down to `╰`, `├` turns off to a box, and `┼` only crosses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len

from config.pipeline import PipelineConfig
from flows.graph_drawing.nodes import Graph, Node, graph_of, one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One line: its rails, one that turns towards the box or comes from it, and the box."""

    rails: str
    turn: int | None = None
    """Rail that the horizontal line starts at."""
    arrow: str = " "
    """What stands in front of the box: `▶` for what it is fed, `─` for what it gives."""
    text: str


@dataclass(slots=True, kw_only=True)
class _Rails:
    """What nodes give, running down until the last that needs it."""

    uses: Counter[str]
    """How many nodes are still to be fed, by the node that feeds them."""
    owners: list[str | None] = field(default_factory=list)
    """Node of each rail, from left to right; None: free."""

    def draw(self) -> str:
        return "".join(" " if owner is None else "│" for owner in self.owners)

    def places(self, owners: Sequence[str]) -> list[int]:
        """Return the rails of these nodes from right to left, so that they cross few others."""
        return [place for place, owner in enumerate(self.owners) if owner in owners][::-1]

    def give(self, owner: str) -> tuple[str, int]:
        """Begin a rail on the right of all others, so that it crosses none; return line and rail."""
        self.owners.append(owner)
        place = len(self.owners) - 1
        return self._turned(place, "╭"), place

    def take(self, place: int) -> tuple[str, int]:
        """Turn a rail off to a box, and end it if that is the last; return line and rail."""
        owner = self.owners[place] or ""
        self.uses[owner] -= 1
        drawn = self._turned(place, "├" if self.uses[owner] else "╰")
        if not self.uses[owner]:
            self.owners[place] = None
            while self.owners and self.owners[-1] is None:
                self.owners.pop()
        return drawn, place

    def _turned(self, place: int, corner: str) -> str:
        drawn = self.draw()
        crossed = "".join("─" if rail == " " else "┼" for rail in drawn[place + 1 :])
        return drawn[:place] + corner + crossed


def draw_text(pipeline: PipelineConfig) -> str:
    """Return the graph as lines of text, at most about 100 cells wide for a dozen stages."""
    graph = graph_of(pipeline)
    rails, rows = _Rails(uses=Counter(source for source, _ in graph.edges)), list[_Row]()
    for node in graph.nodes:
        rows += _node_rows(graph, node, rails)
    width = max(len(row.rails) for row in rows)
    return "\n".join(_line(row, width) for row in rows)


def _content(node: Node) -> list[str]:
    lines = [one_line(line) for line in (node.name, *node.notes)]
    if node.stage is not None:
        return lines
    word = node.kind
    return [f"{word}  {lines[0]}"]


def _node_rows(graph: Graph, node: Node, rails: _Rails) -> list[_Row]:
    """Return the rows of one node; the rails are left as the next one finds them."""
    content = _content(node)
    if node.stage is None:
        drawn, place = rails.give(node.id)
        return [_Row(rails=drawn, turn=place, arrow="─", text=f" {content[0]}")]
    inner = max(map(cell_len, content))
    bar = "─" * (inner + 2)
    rows = [_Row(rails=rails.draw(), text=f"┌{bar}┐")]
    turns = [("▶", "│", *rails.take(place)) for place in rails.places(graph.parents(node))]
    num_beside = len(content) - len(turns) - bool(rails.uses[node.id])
    beside: list[tuple[str, str, str, int | None]] = [*turns]
    beside += [(" ", "│", rails.draw(), None)] * num_beside
    if rails.uses[node.id]:
        beside.append(("─", "┤", *rails.give(node.id)))
    content += [""] * (len(beside) - len(content))
    for (arrow, edge, drawn, turn), text in zip(beside, content, strict=True):
        padding = " " * (inner - cell_len(text))
        rows.append(_Row(rails=drawn, turn=turn, arrow=arrow, text=f"{edge} {text}{padding} │"))
    return [*rows, _Row(rails=rails.draw(), text=f"└{bar}┘")]


def _line(row: _Row, width: int) -> str:
    """Return a row with its rails spread and the box at its place."""
    line = ""
    for place in range(width):
        is_across = row.turn is not None and place >= row.turn
        rail = row.rails[place] if place < len(row.rails) else "─" if is_across else " "
        line += rail + ("─" if is_across else " ")
    return (line + row.arrow + row.text).rstrip()
