"""Charts in docs/ from the results that benchmarks keep in benchmarks/results/.

`python -m benchmarks.plots` draws a chart for each result that is there: order.svg from chunk_order.json,
peers.svg from peers.json, rows.svg from row_order.json. The same result gives the same bytes.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT

RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"

_WIDTH = 720
_MARGIN = 20
_NAME_PX = 170
_VALUE_PX = 130
_BAR_PX = _WIDTH - 2 * _MARGIN - _NAME_PX - _VALUE_PX
_ROW_PX = 24
_LINE_CHARS = 112
_STYLE = """\
.page{fill:#fbfcfd}
.bar{fill:#8fa3b5}
.own{fill:#2f6fae}
.pale{opacity:.35}
.head{font-weight:bold;font-size:14px;fill:#16232f}
.text{font-size:12px;fill:#33475b}
.strong{font-weight:bold}
.note{font-size:10px;fill:#5d7287}
@media (prefers-color-scheme:dark){
.page{fill:#12181f}
.bar{fill:#5d7287}
.own{fill:#5b9bd8}
.head{fill:#eef3f7}
.text{fill:#c3d0dc}
.note{fill:#8fa3b5}
}
"""

Arm = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Bars of one figure, an arm each."""

    head: str
    key: str
    """Of the figure in the arm; less is better."""
    unit: str
    arms: Sequence[Arm]
    pale_key: str | None = None
    """Of a larger figure, drawn behind the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What is drawn of a result."""

    result: str
    """Stem of its file in benchmarks/results/."""
    title: str
    note: str
    panels: Callable[[Sequence[Arm]], list[Panel]]


def main() -> None:
    """Draw each chart whose result is there."""
    for name, text in drawn():
        (DOCS / f"{name}.svg").write_text(text, encoding="utf-8")
        sys.stdout.write(f"docs/{name}.svg\n")


def drawn(results: Path = RESULTS) -> Iterator[tuple[str, str]]:
    """Yield the name and the SVG of each chart whose result is there."""
    for name, chart in CHARTS.items():
        file = results / f"{chart.result}.json"
        if file.is_file():
            yield name, draw(chart, json.loads(file.read_text(encoding="utf-8")))


def draw(chart: Chart, result: Mapping[str, Any]) -> str:
    """Return a chart of a result as an SVG that needs nothing beside it."""
    panels = chart.panels(result["arms"])
    y = 58.0
    body: list[str] = []
    for panel in panels:
        body += _panel(panel, y)
        y += 34 + _ROW_PX * len(panel.arms)
    for line in _origin(result):
        body.append(f'<text class="note" x="{_MARGIN}" y="{y:.0f}">{escape(line)}</text>')
        y += 14
    height = f"{y + 4:.0f}"
    described = "; ".join(
        f"{panel.head}: " + ", ".join(f"{_name(arm)} {_figure(panel, arm)}" for arm in panel.arms)
        for panel in panels
    )
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}"'
        f' height="{height}" role="img" aria-labelledby="title desc"'
        ' font-family="Helvetica, Arial, sans-serif">',
        f'<title id="title">{escape(chart.title)}</title>',
        f'<desc id="desc">{escape(described)}.</desc>',
        f"<style>\n{_STYLE}</style>",
        f'<rect class="page" width="{_WIDTH}" height="{height}" rx="10"/>',
        f'<text class="head" x="{_MARGIN}" y="26">{escape(chart.title)}</text>',
        f'<text class="note" x="{_MARGIN}" y="42">{escape(chart.note)}</text>',
    ]
    return "\n".join([*head, *body, "</svg>"]) + "\n"


def _panel(panel: Panel, y: float) -> Iterator[str]:
    most = max(float(arm[panel.pale_key or panel.key]) for arm in panel.arms) or 1.0
    own = float(panel.arms[0][panel.key])
    x = _MARGIN + _NAME_PX
    yield f'<text class="text strong" x="{_MARGIN}" y="{y + 12:.0f}">{escape(panel.head)}</text>'
    for number, arm in enumerate(panel.arms):
        top = y + 22 + _ROW_PX * number
        kind = "own" if number == 0 else "bar"
        value = float(arm[panel.key])
        if panel.pale_key:
            yield _bar(f"{kind} pale", x, top, float(arm[panel.pale_key]) / most)
        yield _bar(kind, x, top, value / most)
        yield (
            f'<text class="text" x="{x - 8}" y="{top + 12:.0f}" text-anchor="end">'
            f"{escape(_name(arm))}</text>"
        )
        ratio = f" ({value / own:.2g}x)" if number and own else ""
        yield (
            f'<text class="text strong" x="{x + _BAR_PX + 8}" y="{top + 12:.0f}">'
            f"{escape(_figure(panel, arm))}{ratio}</text>"
        )


def _bar(kind: str, x: float, top: float, share: float) -> str:
    width = max(1.0, _BAR_PX * share)
    return (
        f'<rect class="{kind}" x="{x:.0f}" y="{top:.0f}" width="{width:.1f}" height="16" rx="2"/>'
    )


def _figure(panel: Panel, arm: Arm) -> str:
    value = float(arm[panel.key])
    text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    failed = f", {arm['failed']:.0f} failed" if arm.get("failed") else ""
    return f"{text}{panel.unit}{failed}"


def _name(arm: Arm) -> str:
    return _NAMES.get(arm["name"], str(arm["name"]))


def _origin(result: Mapping[str, Any]) -> list[str]:
    """Return what made the result, in lines."""
    machine = result["machine"]
    said = (
        f"Made by {result['command']} at {result['commit']}, {result['date']}: {machine['cores']} cores"
        f" ({machine['widest']}), {machine['memory_gib']} GiB, Python {machine['python']}."
    )
    return textwrap.wrap(said, _LINE_CHARS)


def _cases(arms: Sequence[Arm]) -> Mapping[str, list[Arm]]:
    """Return the arms by case, in order; one case without a name where there are none."""
    cases: dict[str, list[Arm]] = {}
    for arm in arms:
        cases.setdefault(str(arm.get("case", "")), []).append(arm)
    return cases


def _tokens_and_seconds(arms: Sequence[Arm]) -> list[Panel]:
    """Return panels of both figures for each case, without those that no arm has."""
    figures = (("prefilled_tokens", "prompt tokens computed", ""), ("seconds", "seconds", " s"))
    return [
        Panel(head=f"{case}: {head}" if case else head, key=key, unit=unit, arms=group)
        for case, group in _cases(arms).items()
        for key, head, unit in figures
        if all(key in arm for arm in group)
    ]


def _seconds_by_case(arms: Sequence[Arm]) -> list[Panel]:
    return [
        Panel(
            head=_CASES.get(case, case), key="seconds", unit=" s", arms=group, pale_key="process_s"
        )
        for case, group in _cases(arms).items()
    ]


_NAMES = {
    "headrace run": "Headrace",
    "openai": "openai, stage by stage",
    "openai by document": "openai, by document",
    "daft": "Daft prompt",
    "curator": "Curator",
    "docetl": "DocETL",
}
_CASES = {
    "three-stages": "three stages that build on one another",
    "one-stage": "one stage over the same documents",
    "fixed-latency": "short requests, every answer after 0.2 s",
}
CHARTS: Mapping[str, Chart] = {
    "order": Chart(
        result="chunk_order",
        title="The same requests in three orders",
        note="Documents that the engine's KV cache cannot hold together. Less is better; in brackets: to the first.",
        panels=_tokens_and_seconds,
    ),
    "peers": Chart(
        result="peers",
        title="The same prompts to the same endpoint",
        note="Seconds, less is better; in brackets: to Headrace. Full: from the start of the work; pale: whole process.",
        panels=_seconds_by_case,
    ),
    "rows": Chart(
        result="row_order",
        title="Rows of a table in three orders",
        note="The same rows, a question about each. Less is better; in brackets: to the first.",
        panels=_tokens_and_seconds,
    ),
}

if __name__ == "__main__":
    main()
