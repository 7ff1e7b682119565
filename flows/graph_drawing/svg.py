"""A pipeline's graph as an SVG: layers from left to right, readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise

from rich.cells import cell_len

from config.pipeline import PipelineConfig
from flows.graph_drawing.layout import Box, Point, lay_out
from flows.graph_drawing.nodes import Graph, Node, graph_of, one_line

_MARGIN_PX = 20.0
_PADDING_PX = 14.0
_NAME_LINE_PX = 21.0
_LINE_PX = 17.0
_NAME_CELL_PX = 8.6
_NOTE_CELL_PX = 7.0
"""Width of a letter, rather more than fonts have on average: no font is measured."""
_MAX_CELLS = 40

_STYLE = """\
.hg-page{fill:#fbfcfd}
.hg-box{fill:#fff;stroke:#8fa3b5;stroke-width:1.2}
.hg-source .hg-box,.hg-table .hg-box{fill:#eaf6ee;stroke:#3c8a5a}
.hg-computed .hg-box{fill:#fdf3e4;stroke:#b0782b}
.hg-thinking .hg-box{fill:#e8f1fb;stroke:#2f6fae}
.hg-name{font-weight:bold;font-size:14px;fill:#16232f}
.hg-note{font-size:12px;fill:#33475b}
.hg-code{font-family:Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:11px;fill:#33475b}
.hg-edge{fill:none;stroke:#5d7287;stroke-width:1.5}
.hg-pale{opacity:.4}
.hg-head{fill:#5d7287}
@media (prefers-color-scheme:dark){
.hg-page{fill:#12181f}
.hg-box{fill:#1c252e;stroke:#5d7287}
.hg-source .hg-box,.hg-table .hg-box{fill:#16291e;stroke:#4fa573}
.hg-computed .hg-box{fill:#2e2415;stroke:#c9924a}
.hg-thinking .hg-box{fill:#16273a;stroke:#5b9bd8}
.hg-name{fill:#eef3f7}
.hg-note,.hg-code{fill:#c3d0dc}
.hg-edge{stroke:#8fa3b5}
.hg-head{fill:#8fa3b5}
}
"""


def draw_svg(pipeline: PipelineConfig) -> str:
    """Return the graph as an SVG that needs nothing beside it; the same pipeline gives the same text."""
    graph = graph_of(pipeline)
    sizes = {node.id: _size(node, len(graph.parents(node))) for node in graph.nodes}
    layout = lay_out(graph, sizes, _MARGIN_PX)
    width, height = f"{layout.width:.0f}", f"{layout.height:.0f}"
    title = escape(f"Graph of pipeline {pipeline.name}")
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" role="img" font-family="Helvetica, Arial, sans-serif">',
        f"<title>{title}</title>",
        f"<style>\n{_STYLE}</style>",
        '<defs><marker id="hg-arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7"'
        ' markerHeight="7" orient="auto"><path class="hg-head" d="M0 0L10 5L0 10z"/></marker></defs>',
        f'<rect class="hg-page" width="{width}" height="{height}" rx="10"/>',
    ]
    lines += [
        f'<path class="hg-edge{" hg-pale" if _is_plain(graph, edge) else ""}"'
        f' marker-end="url(#hg-arrow)" d="{_curve(way)}"/>'
        for edge, way in layout.ways.items()
    ]
    for node in graph.nodes:
        lines += _box(node, layout.boxes[node.id])
    return "\n".join([*lines, "</svg>"]) + "\n"


def _is_plain(graph: Graph, edge: tuple[str, str]) -> bool:
    """Tell whether an arrow says little: from the source to a stage that has other parents."""
    return edge[0] == "source" and sum(target == edge[1] for _, target in graph.edges) > 1


def _lines(node: Node) -> list[tuple[str, str, float]]:
    """Return the class, text and height of each line in a node's box."""
    # The first note says what it is over, or that it is a table; the others are expressions.
    kinds = ["hg-note", *("hg-code" for _ in node.notes[1:])]
    notes = [
        (kind, one_line(note, _MAX_CELLS), _LINE_PX)
        for kind, note in zip(kinds, node.notes, strict=False)
    ]
    notes = notes or [("hg-note", node.kind, _LINE_PX)]
    return [("hg-name", one_line(node.name, _MAX_CELLS), _NAME_LINE_PX), *notes]


def _size(node: Node, num_parents: int) -> tuple[float, float]:
    lines = _lines(node)
    widths = [
        cell_len(text) * (_NAME_CELL_PX if kind == "hg-name" else _NOTE_CELL_PX)
        for kind, text, _ in lines
    ]
    height = sum(line for _, _, line in lines) + _PADDING_PX
    return max(widths) + 2 * _PADDING_PX, max(height, 14.0 * (num_parents + 1))


def _box(node: Node, place: Box) -> Iterator[str]:
    x, y, width, height = place
    is_thinking = node.stage is not None and node.kind == "stage" and node.stage.mode == "thinking"
    yield f'<g class="hg-{node.kind}{" hg-thinking" if is_thinking else ""}">'
    # Shown where the pointer rests: what the box has no room for.
    yield f"<title>{escape(_clean(chr(10).join((node.name, *node.notes))))}</title>"
    yield (
        f'<rect class="hg-box" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        ' rx="6"/>'
    )
    lines = _lines(node)
    at = y + (height - sum(line for _, _, line in lines)) / 2
    for kind, text, line_px in lines:
        at += line_px
        yield (
            f'<text class="{kind}" x="{x + _PADDING_PX:.1f}" y="{at - 5:.1f}">{escape(text)}</text>'
        )
    yield "</g>"


def _clean(text: str) -> str:
    """Return the text without characters that XML cannot hold."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def _curve(way: Sequence[Point]) -> str:
    """Return a path that leaves and enters layers level, and runs straight past boxes."""
    path = f"M{way[0][0]:.1f} {way[0][1]:.1f}"
    for number, ((x0, y0), (x1, y1)) in enumerate(pairwise(way)):
        if number % 2:
            path += f"H{x1:.1f}"
        else:
            middle = (x0 + x1) / 2
            path += f"C{middle:.1f} {y0:.1f} {middle:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
    return path
