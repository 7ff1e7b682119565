"""What a run took, per stage and in all, beside what was planned: one table for page, terminal and Prefect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from flows.report.words import duration, share

Stage = Mapping[str, Any]
Spans = Mapping[str, tuple[float, float]]
"""Median and 95th percentile of seconds, by name."""

_SPANS = {"queued_s": "queued", "first_token_s": "to first token", "decoding_s": "decoding"}
"""Columns of the usage table, and their names here."""

SPAN_COLUMNS = tuple(_SPANS)


class Cell(NamedTuple):
    """One figure, and what stands beside it in small letters."""

    value: str
    beside: str = ""

    @property
    def text(self) -> str:
        """Return both in one line."""
        return f"{self.value} ({self.beside})" if self.beside else self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """The table: a row per stage that asked, and one for all."""

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, tuple[Cell, ...]], ...] = ()
    note: str = ""
    """On the plan, where there was one."""

    def as_rows(self) -> list[dict[str, str]]:
        """Return the rows by column."""
        return [
            {"stage": name, **{c: cell.text for c, cell in zip(self.columns, cells, strict=True)}}
            for name, cells in self.rows
        ]


def took(manifest: Mapping[str, Any], spans: Mapping[str, Spans] | None = None) -> Took:
    """Return the table of a run; columns that nothing is known of are left out.

    Args:
        manifest: Of the run.
        spans: Seconds of each stage's requests, by the names of SPAN_COLUMNS; None: not shown.
    """
    stages = {name: s for name, s in manifest["stages"].items() if s.get("mode") != "sql"}
    planned = _planned(manifest)
    rows = [(name, stage, planned.get(name)) for name, stage in stages.items()]
    if len(rows) > 1:
        every = [plan for _, _, plan in rows]
        known = [plan for plan in every if plan is not None]
        sums = _sums(known, _PLANNED) if len(known) == len(every) else None
        rows.append(("all", _sums([*stages.values()], _ACTUAL), sums))
    cells = [(name, _cells(stage, plan)) for name, stage, plan in rows]
    for (_, row), (name, _, _) in zip(cells, rows, strict=True):
        row |= _seconds((spans or {}).get(name, {}))
    columns = dict.fromkeys(column for _, row in cells for column in row)
    return Took(
        columns=tuple(columns),
        rows=tuple(
            (name, tuple(row.get(column, Cell("")) for column in columns)) for name, row in cells
        ),
        note=_note(manifest),
    )


_ACTUAL = (
    "requests", "prompt_tokens", "cached_tokens", "planned_cached_tokens", "reasoning_tokens",
    "completion_tokens", "cost_usd", "saved_usd", "turns", "tool_calls", "failed_calls",
)  # fmt: skip
_PLANNED = ("requests", "prompt_tokens", "cached_tokens", "output_tokens", "cost_usd")


def _sums(stages: Sequence[Stage], names: Iterable[str]) -> dict[str, Any]:
    """Return the sums of what is known."""
    found: dict[str, Any] = {}
    for name in names:
        known = [stage[name] for stage in stages if stage.get(name) is not None]
        found[name] = sum(known) if known else None
    # A ratio is that of the stages whose cached tokens are known.
    told = [stage for stage in stages if stage.get("cached_tokens") is not None]
    found["_of_cached"] = sum(stage.get("prompt_tokens") or 0 for stage in told)
    return found


def _cells(stage: Stage, plan: Stage | None) -> dict[str, Cell]:
    planned = plan or {}
    prompt = stage.get("prompt_tokens") or 0
    # By the plan made before, where there was one; else by what this run's layout allowed.
    layout, of = stage.get("planned_cached_tokens"), prompt
    if planned.get("cached_tokens") is not None and planned["prompt_tokens"]:
        layout, of = planned["cached_tokens"], planned["prompt_tokens"]
    row = {
        "requests": _count(stage.get("requests"), planned.get("requests")),
        **_agents(stage),
        "prompt tokens": _count(prompt, planned.get("prompt_tokens")),
        "from the cache": Cell(
            share(stage.get("cached_tokens"), stage.get("_of_cached", prompt)) if prompt else "-",
            f"planned {share(layout, of)}" if prompt and layout is not None else "",
        ),
    }
    if stage.get("reasoning_tokens") is not None:
        row["thinking"] = Cell(f"{stage['reasoning_tokens']:,}")
    row["output tokens"] = _count(stage.get("completion_tokens"), planned.get("output_tokens"))
    usd, saved = stage.get("cost_usd"), stage.get("saved_usd")
    if usd is not None:
        dear = planned.get("cost_usd")
        row["USD"] = Cell(_usd(usd), "" if dear is None else f"planned {_usd(dear)}")
        if saved is not None:
            row["USD without the cache"] = Cell(_usd(usd + saved), f"saved {_usd(saved)}")
    return row


def _agents(stage: Stage) -> dict[str, Cell]:
    """Return what agents did; nothing of a stage that has none."""
    if stage.get("turns") is None:
        return {}
    failed = stage.get("failed_calls")
    return {
        "turns": Cell(f"{stage['turns']:,}"),
        "tool calls": Cell(f"{stage['tool_calls']:,}", f"{failed:,} failed" if failed else ""),
    }


def _seconds(spans: Spans) -> dict[str, Cell]:
    return {
        f"{told}, s": Cell(f"{spans[name][0]:.2f}", f"95 %: {spans[name][1]:.2f}")
        for name, told in _SPANS.items()
        if name in spans
    }


def _count(value: int | None, planned: int | None) -> Cell:
    return Cell(
        "-" if value is None else f"{value:,}", "" if planned is None else f"planned {planned:,}"
    )


def _usd(value: float) -> str:
    return f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def _planned(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what was planned of each stage, but for what a pilot had asked before."""
    estimate = manifest.get("estimate")
    if estimate is None:
        return {}
    already = estimate.get("already", {})
    return {
        name: {key: _rest(value, already.get(name, {}).get(key)) for key, value in stage.items()}
        for name, stage in estimate["stages"].items()
    }


def _rest(value: float | None, before: float | None) -> float | None:
    return None if value is None else max(0, value - (before or 0))


def _note(manifest: Mapping[str, Any]) -> str:
    """Return what the planned figures are; empty where there was no plan."""
    estimate = manifest.get("estimate")
    if estimate is None:
        return ""
    already = estimate.get("already", {})
    basis = f"{estimate['basis']}, less what the pilot had asked" if already else estimate["basis"]
    told = [f"Planned on {estimate['made'][:16].replace('T', ' ')} UTC: {basis}"]
    if estimate["seconds"] is not None:
        asked, before = (
            sum(stage["requests"] for stage in stages.values())
            for stages in (estimate["stages"], already)
        )
        # By the share of requests that the pilot left.
        seconds = estimate["seconds"] * (max(0, asked - before) / asked if asked else 1.0)
        told.append(f"planned to take {duration(seconds)}, it took {duration(manifest['seconds'])}")
    if unchanged := manifest["documents"].get("unchanged"):
        told.append(f"of {unchanged:,} unchanged documents nothing is in the run's own figures")
    return "; ".join(told) + "."
