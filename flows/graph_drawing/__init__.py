"""A pipeline's graph for people: as text in a terminal, as an SVG in a page, as nodes and edges.

Pure: it knows the pipeline only. `headrace plan` shows it.
"""

from flows.graph_drawing.nodes import Graph, Node, graph_json, graph_of
from flows.graph_drawing.svg import draw_svg
from flows.graph_drawing.text import draw_text

__all__ = ["Graph", "Node", "draw_svg", "draw_text", "graph_json", "graph_of"]
