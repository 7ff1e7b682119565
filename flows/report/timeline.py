"""When an agent and its sub-agents did what, as SVG text: a lane for each, turns above the calls they made.

Colours come from the page's CSS. A pause, as between two attempts of a run, is drawn short.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from flows.report.templates import clean
from flows.report.words import counted, duration

MAX_LANES = 200
"""Agents drawn; the page lists all."""

_WIDTH, _LEFT, _TOP = 1160, 150, 22
_LANE, _TURN, _CALL, _CALL_ROWS = 34, 12, 4, 3
_NUM_TICKS = 5
_MAX_LABEL = 22
_PAUSE_S, _PAUSE_SHARE, _PAUSE_WIDTH = 30.0, 0.2, 0.03
"""What counts as a pause, in seconds and as a share of all that is no pause; and as which share it is drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Something that took time."""

    kind: str
    """turn, call or failed."""
    start: float
    """Seconds since 1970."""
    end: float
    words: str
    href: str
    row: int = 0
    """Which of the calls of its turn it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Something that happened between two turns."""

    kind: str
    """nudged, compacted or decided."""
    at: float
    words: str
    href: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One agent."""

    name: str
    href: str
    bars: Sequence[Bar]
    marks: Sequence[Mark] = ()


@dataclass(frozen=True, slots=True)
class _Scale:
    """Time to width, pauses drawn short."""

    times: list[float] = field(default_factory=list)
    places: list[float] = field(default_factory=list)
    pauses: list[tuple[float, float]] = field(default_factory=list)

    def x(self, time: float) -> float:
        """Return where a time is drawn."""
        return _LEFT + (_WIDTH - _LEFT - 8) * _between(self.times, self.places, time)

    def time(self, share: float) -> float:
        """Return the time at a share of the width."""
        return _between(self.places, self.times, share)


def timeline(lanes: Sequence[Lane]) -> str:
    """Return the drawing; empty where nothing happened."""
    drawn = [lane for lane in lanes if lane.bars][:MAX_LANES]
    if not drawn:
        return ""
    scale = _scale(drawn)
    height = _TOP + _LANE * len(drawn) + 4
    body = _axis(scale, height)
    for number, lane in enumerate(drawn):
        body += _lane(lane, scale, _TOP + _LANE * number)
    label = f"turns and calls of {counted(len(drawn), 'agent')} in time"
    return (
        f'<svg class="timeline" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{label}">'
        f"{body}</svg>"
    )


def _scale(lanes: Sequence[Lane]) -> _Scale:
    spans = [(bar.start, bar.end) for lane in lanes for bar in lane.bars]
    spans += [(mark.at, mark.at) for lane in lanes for mark in lane.marks]
    merged: list[list[float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    gaps = [later[0] - earlier[1] for earlier, later in pairwise(merged)]
    busy = sum(end - start for start, end in merged)
    longest = max(_PAUSE_S, _PAUSE_SHARE * busy)
    shown = [gap if gap <= longest else _PAUSE_WIDTH * busy for gap in gaps]
    # At least a moment, so that something of no length is drawn too.
    whole = max(busy + sum(shown), 1e-3)
    scale, place = _Scale(), 0.0
    for number, (start, end) in enumerate(merged):
        if number:
            place += shown[number - 1] / whole
            if gaps[number - 1] > longest:
                scale.pauses.append((merged[number - 1][1], start))
        scale.times.append(start)
        scale.places.append(place)
        place += (end - start) / whole
        scale.times.append(end)
        scale.places.append(place)
    return scale


def _between(known: Sequence[float], wanted: Sequence[float], value: float) -> float:
    """Return what belongs to a value, on the line between its two neighbours."""
    at = bisect_right(known, value)
    if at in {0, len(known)}:
        return wanted[0 if at == 0 else -1]
    share = (value - known[at - 1]) / (known[at] - known[at - 1])
    return wanted[at - 1] + share * (wanted[at] - wanted[at - 1])


def _axis(scale: _Scale, height: int) -> str:
    pieces = []
    for number in range(_NUM_TICKS + 1):
        time = scale.time(scale.places[-1] * number / _NUM_TICKS)
        x = scale.x(time)
        anchor = "end" if number == _NUM_TICKS else "start"
        pieces.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{height}"/>'
            f'<text class="tick" x="{x:.1f}" y="12" text-anchor="{anchor}">'
            f"{duration(time - scale.times[0])}</text>"
        )
    for start, end in scale.pauses:
        left, right = scale.x(start), scale.x(end)
        pieces.append(
            f'<rect class="pause" x="{left:.1f}" y="{_TOP - 4}" width="{max(1.0, right - left):.1f}"'
            f' height="{height - _TOP + 4}"><title>a pause of {duration(end - start)}</title></rect>'
        )
    return "".join(pieces)


def _lane(lane: Lane, scale: _Scale, y: int) -> str:
    name = clean(" ".join(lane.name.split()))
    cut = name if len(name) <= _MAX_LABEL else f"{name[: _MAX_LABEL - 1]}\u2026"
    pieces = [
        f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{y - 3}" y2="{y - 3}"/>'
        f'<a href="{escape(lane.href)}"><text class="tick strong" x="0" y="{y + 12}">'
        f"{escape(cut)}<title>{escape(name)}</title></text></a>"
    ]
    for bar in lane.bars:
        left, right = scale.x(bar.start), scale.x(bar.end)
        is_turn = bar.kind == "turn"
        top = y if is_turn else y + _TURN + 2 + bar.row % _CALL_ROWS * _CALL
        pieces.append(
            f'<a href="{escape(bar.href)}"><rect class="{bar.kind}" x="{left:.1f}" y="{top}"'
            f' width="{max(1.5, right - left):.1f}" height="{_TURN if is_turn else _CALL - 1}">'
            f"{_title(bar.words)}</rect></a>"
        )
    pieces += [_mark(mark, scale.x(mark.at), y) for mark in lane.marks]
    return "".join(pieces)


_SHAPES: Mapping[str, str] = {
    "nudged": "M0 -6 L5 4 H-5 Z",
    "compacted": "M0 -6 L5 0 L0 6 L-5 0 Z",
    "decided": "M-5 0 a5 5 0 1 0 10 0 a5 5 0 1 0 -10 0 Z",
}


def _mark(mark: Mark, x: float, y: int) -> str:
    # A decision belongs to a call, and calls are drawn below turns.
    middle = y + (_TURN + 7 if mark.kind == "decided" else 6)
    return (
        f'<a href="{escape(mark.href)}"><path class="{mark.kind}" transform="translate({x:.1f} {middle})"'
        f' d="{_SHAPES[mark.kind]}">{_title(mark.words)}</path></a>'
    )


def _title(words: str) -> str:
    return f"<title>{escape(clean(words))}</title>"
