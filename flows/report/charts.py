"""Charts of a report as SVG text. Pure functions of numbers; colours come from the page's CSS."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from flows.report.words import counted

WIDTH = 320


def histogram(seconds: Sequence[float], height: int = 92, num_bins: int = 16) -> str:
    """Return a histogram of latencies with the median and the 95th percentile marked."""
    if not seconds:
        return ""
    ordered = sorted(seconds)
    top = _nice(ordered[-1])
    counts = [0] * num_bins
    for value in ordered:
        counts[min(num_bins - 1, int(value / top * num_bins))] += 1
    step, most, base = WIDTH / num_bins, max(counts), height - 16
    bars = [
        f'<rect class="bar" x="{i * step + 1:.1f}" y="{base - base * n / most:.1f}"'
        f' width="{step - 2:.1f}" height="{base * n / most:.1f}">'
        f"<title>{i * top / num_bins:.2g} to {(i + 1) * top / num_bins:.2g} s:"
        f" {counted(n, 'request')}</title></rect>"
        for i, n in enumerate(counts)
        if n
    ]
    marks = [
        _mark(name, quantile(ordered, q), top, base) for name, q in (("p50", 0.5), ("p95", 0.95))
    ]
    axis = (
        f'<line class="axis" x1="0" x2="{WIDTH}" y1="{base}" y2="{base}"/>'
        f'<text class="tick" x="0" y="{height - 3}">0 s</text>'
        f'<text class="tick" x="{WIDTH}" y="{height - 3}" text-anchor="end">{top:g} s</text>'
    )
    what = counted(len(ordered), "request")
    label = f"latencies of {what}, median {quantile(ordered, 0.5):.2f} s"
    return _svg(height, label, "".join(bars) + axis + "".join(marks))


def _mark(name: str, value: float, top: float, base: int) -> str:
    x = value / top * WIDTH
    anchor = "end" if x > WIDTH - 60 else "start"
    offset = -3 if anchor == "end" else 3
    y = 10 if name == "p50" else 22
    return (
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{base}"/>'
        f'<text class="tick strong" x="{x + offset:.1f}" y="{y}" text-anchor="{anchor}">'
        f"{name} {value:.1f} s</text>"
    )


def token_bar(cached: int | None, prompt: int, output: int, height: int = 26) -> str:
    """Return one bar split into prompt tokens from the cache, other prompt tokens, and output.

    Where the cache's share is None, not reported, nothing is said of it.
    """
    total = prompt + output
    if not total:
        return ""
    parts: tuple[tuple[str, int], ...] = (("prompt", prompt), ("output", output))
    if cached is not None:
        parts = (("cached", cached), ("computed", prompt - cached), ("output", output))
    x, pieces = 0.0, []
    for name, count in parts:
        width = WIDTH * count / total
        if count:
            pieces.append(
                f'<rect class="tok-{name}" x="{x:.1f}" y="0" width="{max(width, 1):.1f}"'
                f' height="{height}"><title>{name}: {count:,} tokens</title></rect>'
            )
        x += width
    label = ", ".join(f"{count:,} tokens {name}" for name, count in parts)
    return _svg(height, label, "".join(pieces))


def ratio_bars(measured: float | None, planned: float | None) -> str:
    """Return the measured cached share of prompt tokens above the planned one."""
    rows = []
    for y, name, value in ((0, "measured", measured), (22, "planned", planned)):
        text = "not reported" if value is None else f"{value:.0%}"
        rows.append(
            f'<rect class="track" x="70" y="{y}" width="200" height="14" rx="2"/>'
            f'<rect class="ratio-{name}" x="70" y="{y}" width="{200 * min(1.0, value or 0):.1f}"'
            f' height="14" rx="2"/>'
            f'<text class="tick" x="0" y="{y + 11}">{name}</text>'
            f'<text class="tick strong" x="276" y="{y + 11}">{text}</text>'
        )
    return _svg(38, "share of prompt tokens served from the prefix cache", "".join(rows))


def outcome_bar(outcomes: Mapping[str, int], height: int = 10) -> str:
    """Return one bar split by outcome, answered first."""
    total = sum(outcomes.values())
    if not total:
        return ""
    x, pieces = 0.0, []
    for name, count in sorted(outcomes.items(), key=lambda item: item[0] != "succeeded"):
        width = WIDTH * count / total
        kind = name if name in {"succeeded", "skipped"} else "unanswered"
        pieces.append(
            f'<rect class="out-{kind}" x="{x:.1f}" y="0" width="{width:.1f}" height="{height}">'
            f"<title>{escape(name)}: {count:,}</title></rect>"
        )
        x += width
    return _svg(
        height, ", ".join(f"{n:,} {escape(k)}" for k, n in outcomes.items()), "".join(pieces)
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value with at least `share` of the values at or below it."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _nice(value: float) -> float:
    """Return the next of 1, 2, 5, 10, 20, ... at or above `value`, scaled."""
    if value <= 0:
        return 1.0
    scale: float = 10.0 ** math.floor(math.log10(value))
    return next(step * scale for step in (1, 2, 5, 10) if step * scale >= value)


def _svg(height: int, label: str, body: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
        f"{body}</svg>"
    )
