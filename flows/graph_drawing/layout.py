"""Places for the boxes of a graph in layers from left to right, and ways for its arrows between them.

An arrow over several layers gets a place of its own in each of them, so that it runs past the boxes.
Deterministic: the same graph and sizes give the same places.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from flows.graph_drawing.nodes import Graph

LAYER_GAP_PX = 72.0
_GAP_PX = 22.0
_NUM_SWEEPS = 8

Size = tuple[float, float]
Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""x, y, width and height."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything is."""

    boxes: Mapping[str, Box]
    """By node."""
    ways: Mapping[tuple[str, str], tuple[Point, ...]]
    """Points of each arrow, in pairs: it leaves a layer at one and enters the next at the other."""
    width: float
    height: float


@dataclass(slots=True, kw_only=True)
class _Item:
    """A box, or the place of an arrow that passes a layer."""

    key: object
    layer: int
    height: float
    y: float = 0.0
    """Of its middle."""


class _Net:
    """Boxes and passing arrows, each with its neighbours in the layers beside it."""

    def __init__(self, graph: Graph, sizes: Mapping[str, Size]) -> None:
        layers = _layers(graph)
        self.items: dict[object, _Item] = {}
        self.before: dict[object, list[object]] = defaultdict(list)
        self.after: dict[object, list[object]] = defaultdict(list)
        self.chains: dict[tuple[str, str], list[object]] = {}
        for node in graph.nodes:
            self._add(node.id, layers[node.id], sizes[node.id][1])
        for source, target in graph.edges:
            passed = range(layers[source] + 1, layers[target])
            inner: list[object] = [(source, target, layer) for layer in passed]
            for key, layer in zip(inner, passed, strict=True):
                self._add(key, layer, 4.0)
            chain: list[object] = [source, *inner, target]
            self.chains[source, target] = chain
            for left, right in pairwise(chain):
                self.after[left].append(right)
                self.before[right].append(left)
        self.layers = [
            [item for item in self.items.values() if item.layer == layer]
            for layer in range(1 + max(layers.values()))
        ]

    def _add(self, key: object, layer: int, height: float) -> None:
        self.items[key] = _Item(key=key, layer=layer, height=height)

    def order(self) -> None:
        """Sort the layers so that few arrows cross: each by the mean place of its neighbours."""
        best, fewest = [list(layer) for layer in self.layers], self._num_crossings()
        for sweep in range(_NUM_SWEEPS):
            forth = sweep % 2 == 0
            beside = self.before if forth else self.after
            for layer in self.layers if forth else reversed(self.layers):
                places = self._places()
                means = {
                    id(item): fmean([places[key] for key in beside[item.key]] or [places[item.key]])
                    for item in layer
                }
                layer.sort(key=lambda item, means=means: means[id(item)])  # type: ignore[misc]
            if (crossings := self._num_crossings()) < fewest:
                best, fewest = [list(layer) for layer in self.layers], crossings
        self.layers = best

    def _places(self) -> dict[object, float]:
        return {
            item.key: (place + 0.5) / len(layer)
            for layer in self.layers
            for place, item in enumerate(layer)
        }

    def _num_crossings(self) -> int:
        places = self._places()
        count = 0
        for layer in self.layers:
            lines = [
                (places[item.key], places[key]) for item in layer for key in self.after[item.key]
            ]
            count += sum(
                (a - c) * (b - d) < 0
                for number, (a, b) in enumerate(lines)
                for c, d in lines[:number]
            )
        return count

    def place(self) -> None:
        """Give every item its height in the drawing: near its neighbours, none over another."""
        for layer in self.layers:
            _spread(layer, [0.0 for _ in layer])
        for sweep in range(_NUM_SWEEPS):
            beside = self.before if sweep % 2 == 0 else self.after
            for layer in self.layers if sweep % 2 == 0 else reversed(self.layers):
                wanted = [
                    fmean([self.items[key].y for key in beside[item.key]] or [item.y])
                    for item in layer
                ]
                _spread(layer, wanted)
        top = min(item.y - item.height / 2 for item in self.items.values())
        for item in self.items.values():
            item.y -= top


def _layers(graph: Graph) -> dict[str, int]:
    """Return each node's layer: behind all that feed it; a table just in front of its first reader."""
    layers: dict[str, int] = {}
    for node in graph.nodes:
        layers[node.id] = 1 + max((layers[parent] for parent in graph.parents(node)), default=-1)
    for node in graph.nodes:
        if node.kind == "table":
            readers = [layers[target] for source, target in graph.edges if source == node.id]
            layers[node.id] = min(readers) - 1
    return layers


def _spread(layer: Sequence[_Item], wanted: Sequence[float]) -> None:
    """Put the items of a layer as near to where they are wanted as their order and gaps allow.

    The least squares under that order: neighbours that would overlap move as one.
    """
    offsets, runs = [0.0], list[tuple[float, int]]()
    for upper, lower in pairwise(layer):
        offsets.append(offsets[-1] + (upper.height + lower.height) / 2 + _GAP_PX)
    for want, offset in zip(wanted, offsets, strict=True):
        runs.append((want - offset, 1))
        while len(runs) > 1 and runs[-2][0] > runs[-1][0]:
            (above, num_above), (below, num_below) = runs[-2:]
            total = num_above + num_below
            runs[-2:] = [((above * num_above + below * num_below) / total, total)]
    starts = [start for start, count in runs for _ in range(count)]
    for item, start, offset in zip(layer, starts, offsets, strict=True):
        item.y = start + offset


def lay_out(graph: Graph, sizes: Mapping[str, Size], margin_px: float) -> Layout:
    """Return places for boxes of these sizes (width, height) by node."""
    net = _Net(graph, sizes)
    net.order()
    net.place()
    widths = [
        max((sizes[item.key][0] for item in layer if isinstance(item.key, str)), default=0.0)
        for layer in net.layers
    ]
    lefts = [margin_px]
    for width in widths:
        lefts.append(lefts[-1] + width + LAYER_GAP_PX)
    boxes = {}
    for item in net.items.values():
        item.y += margin_px
    for node in graph.nodes:
        item, (width, height) = net.items[node.id], sizes[node.id]
        boxes[node.id] = (lefts[item.layer], item.y - height / 2, width, height)
    bottom = max(item.y + item.height / 2 for item in net.items.values())
    return Layout(
        boxes=boxes,
        ways=_ways(net, boxes, lefts),
        width=lefts[-1] - LAYER_GAP_PX + margin_px,
        height=bottom + margin_px,
    )


def _ways(
    net: _Net, boxes: Mapping[str, Box], lefts: Sequence[float]
) -> dict[tuple[str, str], tuple[Point, ...]]:
    ways = {}
    for (source, target), chain in net.chains.items():
        x, y, width, height = boxes[source]
        points = [(x + width, y + height / 2)]
        for key in chain[1:-1]:
            item = net.items[key]
            right = lefts[item.layer + 1] - LAYER_GAP_PX
            points += [(lefts[item.layer], item.y), (right, item.y)]
        ways[source, target] = (*points, _port(net, boxes, chain))
    return ways


def _port(net: _Net, boxes: Mapping[str, Box], chain: Sequence[object]) -> Point:
    """Return where an arrow enters its box: those of one box one below the other, none crossing."""
    x, y, _, height = boxes[str(chain[-1])]
    entering = sorted(net.before[chain[-1]], key=lambda key: net.items[key].y)
    return x, y + height * (entering.index(chain[-2]) + 1) / (len(entering) + 1)
