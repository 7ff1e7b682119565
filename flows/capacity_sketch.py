"""Where the memory of a GPU goes, as an SVG: one bar to scale, its parts named below it."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import NamedTuple

from engine.capacity import Plan
from engine.errors import SetUpImpossible

_GIB = 2**30
_WIDTH = 720
_MARGIN = 24
_BAR_PX = _WIDTH - 2 * _MARGIN
_BAR_Y, _BAR_HEIGHT = 66, 46
_ROW_PX = 21

_STYLE = """\
.page{fill:#fbfcfd}
.experts{fill:#2f6fae}
.weights{fill:#7fa9d1}
.own{fill:#b0782b}
.cache{fill:#3c8a5a}
.left{fill:#dfe6ec}
.missing{fill:#c0392b}
.edge{stroke:#16232f;stroke-width:2}
.thin{stroke-dasharray:3 3}
.head{font-weight:bold;font-size:15px;fill:#16232f}
.text{font-size:12.5px;fill:#33475b}
.number{font-size:12.5px;fill:#16232f;font-weight:bold}
.note{font-size:11px;fill:#5d7287}
@media (prefers-color-scheme:dark){
.page{fill:#12181f}
.experts{fill:#5b9bd8}
.weights{fill:#3d6285}
.own{fill:#c9924a}
.cache{fill:#4fa573}
.left{fill:#2a3642}
.missing{fill:#e0604f}
.edge{stroke:#eef3f7}
.head,.number{fill:#eef3f7}
.text{fill:#c3d0dc}
.note{fill:#8fa3b5}
}
"""


class _Piece(NamedTuple):
    kind: str
    """Class of its colour."""
    name: str
    size: float
    """In bytes."""


def draw_capacity(found: Plan) -> str:
    """Return the sketch of a plan as an SVG that needs nothing beside it; the same plan gives the same text.

    Raises:
        SetUpImpossible: The plan does not know where the memory goes.
    """
    each, gpus = found.per_gpu, found.gpus
    if each is None or gpus is None:
        raise SetUpImpossible(
            f"there is nothing to draw for {found.model.title}: {found.reasons[0]}"
        )
    pieces = _pieces(found)
    scale = _BAR_PX / max(each.total, sum(piece.size for piece in pieces))
    title = f"{found.model.title} in {found.precision.upper()} on {gpus}: {_verdict(found)}"
    said = "; ".join(f"{piece.name} {piece.size / _GIB:.1f} GiB" for piece in pieces)
    missing = (
        [_Piece("missing", "missing of what vLLM may use", -each.cache)] if each.cache < 0 else []
    )
    rows = [*pieces, *missing]
    body = [*_bar(found, pieces, scale), *_legend(rows, each.total)]
    y = _BAR_Y + _BAR_HEIGHT + 34 + _ROW_PX * len(rows)
    for line in _lines(found):
        body.append(f'<text class="note" x="{_MARGIN}" y="{y}">{escape(line)}</text>')
        y += 16
    return (
        "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}"'
            f' height="{y}" role="img" aria-labelledby="title desc" font-family="Helvetica, Arial, sans-serif">',
            f'<title id="title">{escape(title)}</title>',
            f'<desc id="desc">Each GPU, {each.total / _GIB:.1f} GiB: {escape(said)}.</desc>',
            f"<style>\n{_STYLE}</style>",
            f'<rect class="page" width="{_WIDTH}" height="{y}" rx="10"/>',
            f'<text class="head" x="{_MARGIN}" y="30">{escape(title)}</text>',
            f'<text class="text" x="{_MARGIN}" y="52">Each of {gpus.count} GPUs,'
            f" {each.total / _GIB:.1f} GiB</text>",
            *body,
            "</svg>",
        ])
        + "\n"
    )


def _verdict(found: Plan) -> str:
    return {True: "fits", False: "does not fit", None: "not known"}[found.fits]


def _pieces(found: Plan) -> list[_Piece]:
    each = found.per_gpu
    assert each is not None
    experts = each.parts.get("experts", 0.0)
    eyes = each.parts.get("vision", 0.0)
    pieces = [
        _Piece("experts", "weights: experts", experts),
        _Piece(
            "weights", "weights: attention, embedding and the rest", each.weights - experts - eyes
        ),
        _Piece("weights", "weights: vision", eyes),
        _Piece("own", "vLLM itself: activations, graphs, communication", each.overhead),
        _Piece("cache", "KV cache", max(0, each.cache)),
    ]
    used = sum(piece.size for piece in pieces)
    if used <= each.usable:
        name = f"left free: vLLM takes {found.wish.utilization:g}"
        pieces.append(_Piece("left", name, each.total - used))
    return [piece for piece in pieces if piece.size > 0]


def _bar(found: Plan, pieces: list[_Piece], scale: float) -> Iterator[str]:
    each = found.per_gpu
    assert each is not None
    x = float(_MARGIN)
    for piece in pieces:
        width = piece.size * scale
        yield (
            f'<rect class="{piece.kind}" x="{x:.1f}" y="{_BAR_Y}" width="{width:.1f}"'
            f' height="{_BAR_HEIGHT}"><title>{escape(piece.name)}: {piece.size / _GIB:.1f} GiB</title></rect>'
        )
        x += width
    usable = _MARGIN + each.usable * scale
    if each.cache < 0:
        yield (
            f'<rect class="missing" x="{usable:.1f}" y="{_BAR_Y + _BAR_HEIGHT - 8}"'
            f' width="{x - usable:.1f}" height="8"><title>missing: {-each.cache / _GIB:.1f} GiB</title></rect>'
        )
    for edge, end in (("edge thin", usable), ("edge", _MARGIN + each.total * scale)):
        yield (
            f'<line class="{edge}" x1="{end:.1f}" x2="{end:.1f}" y1="{_BAR_Y - 6}"'
            f' y2="{_BAR_Y + _BAR_HEIGHT + 6}"/>'
        )


def _legend(pieces: list[_Piece], total: int) -> Iterator[str]:
    y = _BAR_Y + _BAR_HEIGHT + 28
    for piece in pieces:
        yield f'<rect class="{piece.kind}" x="{_MARGIN}" y="{y - 11}" width="13" height="13" rx="2"/>'
        yield f'<text class="text" x="{_MARGIN + 22}" y="{y}">{escape(piece.name)}</text>'
        yield (
            f'<text class="number" x="{_WIDTH - _MARGIN - 60}" y="{y}" text-anchor="end">'
            f"{piece.size / _GIB:.1f} GiB</text>"
            f'<text class="note" x="{_WIDTH - _MARGIN}" y="{y}" text-anchor="end">'
            f"{100 * piece.size / total:.0f} %</text>"
        )
        y += _ROW_PX


def _lines(found: Plan) -> list[str]:
    lines = [
        f"{row['context_tokens']:,} tokens: {row['requests_at_once']:,} requests at once,"
        f" {row['bytes_per_request'] / _GIB:.2f} GiB of cache each on every GPU that keeps them"
        for row in found.table
        if found.fits
    ]
    return [*lines, f"weights: {found.file.source}"]
