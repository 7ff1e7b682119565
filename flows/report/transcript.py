"""What an agent did, as one HTML file that needs nothing else: figures, a timeline, then every turn.

Everything in it may come from a document or a model, names and arguments included: the template escapes all of
it, and what is drawn here is escaped in flows.report.timeline.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from engine.modes.agent.calls import arguments_of
from engine.steps import call_number
from flows.report import words
from flows.report.page import POLICY
from flows.report.templates import render_transcript
from flows.report.timeline import Bar, Lane, Mark, timeline
from flows.run.transcripts import Row, agent_id, began, figures, stopped

MAX_TEXT = 20_000
"""Characters of one text that are shown; the table has all."""
MAX_PAGE = 8_000_000
"""Characters of all texts of a page; beyond it less is shown of each."""
MIN_TEXT = 500

_FOLDED_CHARS, _FOLDED_LINES = 600, 12
_TEXTS = ("content", "reasoning", "arguments", "result")
_MARKS = {"nudged", "compacted", "decided"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How the request ended, as its record says."""

    outcome: str = "no record yet"
    word: str = "no record yet"
    """The outcome as a reader is told it."""
    error: str | None = None
    question: str = ""
    """The stage's."""


def render_page(run_id: str, rows: Sequence[Row], ended: Ended) -> str:
    """Return the page.

    Args:
        run_id: Of the run.
        rows: Of one request, as `flows.run.transcripts.read_transcripts` gives them.
        ended: How it ended.
    """
    took = figures(rows)
    page = _Page(rows, took.started.timestamp())
    agents = page.agents()
    return render_transcript({
        "policy": Markup(POLICY),
        "run_id": run_id,
        "took": took,
        "ended": ended,
        "tiles": _tiles(rows),
        "facts": _facts(rows),
        "timeline": Markup(timeline(page.lanes(agents))),
        "agents": agents,
        "asides": page.asides(),
        "vectors": page.vectors(),
    })


def _tiles(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Return value, name and detail of the figures on top."""
    took = figures(rows)
    failures = Counter(row["failure"] for row in rows if row["failure"] is not None)
    failed = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in failures.items())
    told = sum(row["prompt_tokens"] for row in rows if row["cached_tokens"] is not None)
    cached = words.cached_share(took.cached_tokens, told)
    tokens = f"{took.prompt_tokens:,} prompt, {took.completion_tokens:,} output, {cached}"
    cost, priced = "-", "no prices in the profile"
    if took.cost_usd is not None:
        cost, priced = f"{took.cost_usd:.4f}", ""
    if took.gpu_seconds is not None:
        priced = f"{words.duration(took.gpu_seconds)} of GPU time"
    return [
        (f"{took.num_steps:,}", "steps", words.counted(took.num_compactions, "compaction")),
        (
            f"{took.num_calls:,}",
            "calls",
            f"{took.num_failed_calls:,} failed" + (f": {failed}" if failed else ""),
        ),
        (words.compact(took.tokens), "tokens", tokens),
        (cost, "USD", priced),
        (words.duration(took.seconds), "from first to last", f"{took.started:%Y-%m-%d %H:%M:%S} UTC"),
    ]  # fmt: skip


def _facts(rows: Sequence[Row]) -> dict[str, str]:
    took = figures(rows)
    facts = {"request": took.request_key, "engine": ", ".join(took.engines)}
    if took.speed_up is not None:
        facts["sub-agents"] = f"{took.num_subagents:,}"
        facts["critical steps"] = f"{took.critical_steps:,}"
        facts["speed-up in steps"] = f"{took.speed_up:.2f}"
    if took.stopped:
        facts["stopped"] = took.stopped
    return facts


_ASIDE = frozenset({"answered", "embedded"})
"""Kinds of rows that tell what tools asked models for: any of the agents may have led to one."""


class _Page:
    """The rows of one request, put together as the page shows them."""

    def __init__(self, rows: Sequence[Row], started: float) -> None:
        self._rows, self._started = rows, started
        texts = [row[name] for row in rows for name in _TEXTS if row[name]]
        self.limit = MAX_TEXT
        if sum(min(len(text), MAX_TEXT) for text in texts) > MAX_PAGE:
            self.limit = max(MIN_TEXT, MAX_PAGE // len(texts))
        self._ids = {agent_id(row["agent"]) for row in rows}

    def agents(self) -> list[dict[str, Any]]:
        """Return the request's own agent and its sub-agents."""
        by_agent: dict[str, list[Row]] = {}
        for row in self._rows:
            if row["kind"] not in _ASIDE:
                by_agent.setdefault(row["agent"], []).append(row)
        tasks = {
            call_number(row["call_id"]): arguments_of(row["arguments"] or "")[0] or {}
            for row in by_agent.get("", ())
            if row["kind"] == "call" and row["tool"] == "assign_task"
        }
        return [self._agent(agent, rows, tasks) for agent, rows in by_agent.items()]

    def asides(self) -> list[dict[str, Any]]:
        """Return the answers to questions that tools put to the model; any of the agents may have led to one."""
        return [
            {"told": self._figures(row), "text": self._text(row["content"])}
            for row in self._rows
            if row["kind"] == "answered"
        ]

    def vectors(self) -> str:
        """Return what vectors took; empty where none were made."""
        made = [row for row in self._rows if row["kind"] == "embedded"]
        return f"Vectors took {sum(row['prompt_tokens'] for row in made):,} tokens." if made else ""

    def _agent(
        self, agent: str, rows: Sequence[Row], tasks: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Any]:
        who = agent_id(agent)
        task = str(tasks.get(who, {}).get("prompt", ""))
        own = "orchestrator" if len(self._ids) > 1 else "agent"
        return {
            "id": _anchor(who),
            "name": agent or own,
            "who": who,
            "call": f"own-c{who}" if who in tasks else None,
            "task": self._text(task),
            "took": figures(rows),
            "stopped": stopped(iter(rows)) if who else None,
            "turns": self._turns(who, rows),
        }

    def _turns(self, who: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Return the turns with what came of each; what stands before the first has a turn of its own."""
        turns: list[dict[str, Any]] = []
        count = 0
        for row in rows:
            is_turn = row["kind"] == "turn"
            if is_turn or not turns:
                count += is_turn
                turns.append({
                    "id": f"{_anchor(who)}-t{len(turns)}",
                    "number": count,
                    "row": row if is_turn else None,
                    "told": self._figures(row) if is_turn else "",
                    "reasoning": self._text(row["reasoning"] if is_turn else ""),
                    "content": self._text(_pretty(row["content"] or "") if is_turn else ""),
                    "calls": [],
                    "marks": [],
                })
            turn = turns[-1]
            if row["kind"] == "call":
                turn["calls"].append(self._call(who, row))
            elif row["kind"] == "begun" or row["kind"] == "decided":
                self._add_to_call(turn, row)
            elif not is_turn:
                told = {
                    "row": row,
                    "text": self._text(row["content"] or ""),
                    "told": self._figures(row),
                }
                turn["marks"].append(told)
        return turns

    def _add_to_call(self, turn: dict[str, Any], row: Row) -> None:
        for call in turn["calls"]:
            if call["row"]["call_id"] == row["call_id"]:
                call["begun" if row["kind"] == "begun" else "decided"] = row
                return
        turn["marks"].append({"row": row, "text": self._text(row["content"] or ""), "told": ""})

    def _call(self, who: str, row: Row) -> dict[str, Any]:
        number = call_number(row["call_id"])
        behind = _anchor(number) if not who and number in self._ids else None
        return {
            "id": f"{_anchor(who)}-c{number}",
            "row": row,
            "arguments": self._text(_pretty(row["arguments"] or "")),
            "result": None if row["result"] is None else self._text(row["result"]),
            "behind": behind,
            "begun": None,
            "decided": None,
        }

    def _text(self, text: str | None) -> dict[str, Any]:
        """Return as much of a text as is shown, and whether it is folded."""
        text = text or ""
        lines = text.count("\n", 0, MAX_TEXT)
        return {
            "shown": text[: self.limit],
            "first": " ".join(text[:200].split())[:100],
            "num_chars": len(text),
            "num_more": max(0, len(text) - self.limit),
            "is_folded": len(text) > _FOLDED_CHARS or lines > _FOLDED_LINES,
        }

    def _figures(self, row: Row) -> str:
        """Return what a turn or notes took, in words."""
        told = []
        if row["seconds"] is not None:
            since = words.duration(max(0.0, began(row) - self._started))
            told.append(f"after {since}, {words.duration(row['seconds'])}")
        if row["prompt_tokens"] is not None:
            cached = words.cached_share(row["cached_tokens"], row["prompt_tokens"])
            told.append(f"{row['prompt_tokens']:,} prompt tokens ({cached})")
            told.append(f"{row['completion_tokens']:,} output")
        if row["cost_usd"] is not None:
            told.append(f"{row['cost_usd']:.4f} USD")
        return " \u00b7 ".join([*told, *([row["engine"]] if row["engine"] else [])])

    def lanes(self, agents: Sequence[Mapping[str, Any]]) -> list[Lane]:
        """Return what is drawn of the agents."""
        return [
            Lane(
                name=agent["name"],
                href=f"#{agent['id']}",
                bars=[bar for turn in agent["turns"] for bar in _bars(turn)],
                marks=[mark for turn in agent["turns"] for mark in _marks(turn)],
            )
            for agent in agents
        ]


def _bars(turn: Mapping[str, Any]) -> list[Bar]:
    bars = []
    if turn["row"] is not None:
        said = f"turn {turn['number']}: {turn['told']}"
        bars.append(_bar("turn", turn["row"], said, f"#{turn['id']}"))
    for place, call in enumerate(turn["calls"]):
        row = call["row"]
        seconds = "no end on record" if row["seconds"] is None else words.duration(row["seconds"])
        said = f"{row['tool']}, {row['failure'] or 'ended'}, {seconds}"
        kind = "failed" if row["failure"] is not None or row["seconds"] is None else "call"
        bars.append(replace(_bar(kind, row, said, f"#{call['id']}"), row=place))
    return bars


def _bar(kind: str, row: Row, said: str, href: str) -> Bar:
    return Bar(kind=kind, start=began(row), end=row["at"].timestamp(), words=said, href=href)


def _marks(turn: Mapping[str, Any]) -> list[Mark]:
    decided = [call["decided"] for call in turn["calls"] if call["decided"] is not None]
    found = [*(mark["row"] for mark in turn["marks"] if mark["row"]["kind"] in _MARKS), *decided]
    return [
        Mark(
            kind=row["kind"],
            at=row["at"].timestamp(),
            words=f"{row['kind']}: {', '.join(row['notes']) or 'notes in place of the conversation'}",
            href=f"#{turn['id']}",
        )
        for row in found
    ]


def _anchor(who: str) -> str:
    return f"a{who}" if who else "own"


def _pretty(text: str) -> str:
    """Return a JSON object over several lines; any other text as it is."""
    if not text.lstrip().startswith("{"):
        return text
    value, _ = arguments_of(text)
    if value is None:
        return text
    try:
        return json.dumps(value, indent=2, ensure_ascii=False)
    except RecursionError:
        return text
