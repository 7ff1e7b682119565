"""Transcripts: what agents did for their requests, as rows of one table per run.

The rows follow from the events alone (engine.steps), so that they are the same however often a request was
taken up again. The table is all that is left of the events once a shard is committed: pages and figures are
made of its rows.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import reduce
from itertools import groupby
from typing import Any

import polars as pl

from connectors.sinks import parquet
from connectors.sinks.lake import Lake
from engine.modes.agent.calls import arguments_of
from engine.request import Usage, add_usage
from engine.steps import (
    Answered,
    AskedCall,
    Begun,
    Compacted,
    Decided,
    Embedded,
    Event,
    Nudged,
    Paid,
    Returned,
    Turned,
    call_number,
)
from flows.run import rows as rows_

Row = Mapping[str, Any]

_SUB_KEY = re.compile(r"/([0-9]+)(-[0-9a-f]+)?")
"""What the keys of sub-agents have behind that of their request: the number of the call, and its task."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_BRIEF = (
    "request_key", "stage", "unit", "agent", "seq", "kind", "at", "tool", "call_id", "failure", "seconds",
    "prompt_tokens", "cached_tokens", "completion_tokens", "cost_usd", "gpu_seconds", "engine", "notes",
)  # fmt: skip
"""Columns that figures are made of; the others are long."""


def transcript_rows(
    stage: str, request_key: str, unit: str, events_by_key: Mapping[str, Sequence[Event]]
) -> list[dict[str, Any]]:
    """Return the rows of one request, its own agent first, then its sub-agents by number.

    A turn is followed by its calls, each with its end where it has one; all else stands where it happened.
    Answers to questions that tools put to the model, and vectors that they asked for, have keys of their own
    and end the own agent's rows; vectors of one engine that follow each other are one row.

    Args:
        stage: Who asks.
        request_key: Of the request.
        unit: What it is about, as the records say it; with the path where there is one.
        events_by_key: The request's events by their keys (`flows.run.steps.Steps.by_request`).
    """
    own = events_by_key.get(request_key, ())
    asides = [
        (event.at, key, event)
        for key, events in events_by_key.items()
        for event in events
        if isinstance(event, Answered | Embedded)
    ]
    ending = _added_up(event for _, _, event in sorted(asides, key=lambda one: one[:2]))
    agents: list[tuple[str, Sequence[Event]]] = [("", [*own, *ending])]
    agents += _subagents(request_key, events_by_key, _agent_names(own))
    rows = []
    for agent, events in agents:
        for seq, told in enumerate(_told(events)):
            front = {"request_key": request_key, "stage": stage, "unit": unit, "agent": agent}
            row = {**_EMPTY, **front, "seq": seq, **told}
            rows.append({name: _storable(value) for name, value in row.items()})
    return rows


def transcripts_of(
    ends: Iterable[rows_.Answered], by_request: Mapping[str, Mapping[str, Sequence[Event]]]
) -> list[dict[str, Any]]:
    """Return the rows of all requests of a shard that have events; those that several records share once.

    Args:
        ends: The shard's questions with their ends.
        by_request: `Steps.by_request` of the shard's ledger.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for end in ends:
        document = end.inquiry.document
        unit = f"{document.source.path} {end.inquiry.unit}" if document else end.inquiry.unit
        for result in end.results:
            key = result.request_key
            if key in by_request and key not in rows:
                rows[key] = transcript_rows(end.inquiry.stage.name, key, unit, by_request[key])
    return [row for told in rows.values() for row in told]


_EMPTY: Row = {name: [] if name == "notes" else None for name in parquet.TRANSCRIPTS.names}


def _storable(value: object) -> object:
    """Return the value as Arrow takes it: half of a surrogate pair, as a model may write it, has no UTF-8."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    return [_storable(item) for item in value] if isinstance(value, list) else value


def _added_up(asides: Iterable[Answered | Embedded]) -> Iterator[Event]:
    """Yield what tools asked for, the calls for vectors that follow each other as one: a corpus takes thousands."""
    runs = groupby(asides, lambda one: one.engine if isinstance(one, Embedded) else None)
    for engine, same in runs:
        if engine is None:
            yield from same
            continue
        calls = [one for one in same if isinstance(one, Embedded)]
        yield replace(
            calls[-1],
            num_texts=sum(one.num_texts for one in calls),
            usage=reduce(add_usage, (one.usage for one in calls)),
            cost_usd=_sum_known(one.cost_usd for one in calls),
            gpu_seconds=_sum_known(one.gpu_seconds for one in calls),
        )


def _subagents(
    request_key: str, events_by_key: Mapping[str, Sequence[Event]], names: Mapping[int, str]
) -> Iterator[tuple[str, Sequence[Event]]]:
    """Yield sub-agents with their events, by number.

    Where an orchestrator had to begin anew, a number may have been given out more than once: the last one to
    do anything has it, those before are called by number and task.
    """
    keys: dict[int, list[str]] = defaultdict(list)
    for key, events in events_by_key.items():
        found = _SUB_KEY.fullmatch(key.removeprefix(request_key))
        if found and events:
            keys[int(found[1])].append(key)
    for number, same in sorted(keys.items()):
        *earlier, last = sorted(same, key=lambda key: (events_by_key[key][-1].at, key))
        for key in earlier:
            yield key.removeprefix(f"{request_key}/"), events_by_key[key]
        yield f"{number} {names.get(number, '')}".strip(), events_by_key[last]


def _agent_names(own: Sequence[Event]) -> dict[int, str]:
    """Return the name of the sub-agent behind each call that gives one a task, by the call's number."""
    names = {}
    for event in own:
        for call in event.calls if isinstance(event, Turned) else ():
            number = call_number(call.call_id)
            name = (arguments_of(call.arguments)[0] or {}).get("agent")
            if call.name == "assign_task" and number.isdecimal() and isinstance(name, str):
                names[int(number)] = name
    return names


def _told(events: Sequence[Event]) -> Iterator[dict[str, Any]]:
    """Yield the columns that tell of an agent's events, in their order."""
    ends = {event.call_id: event for event in events if isinstance(event, Returned)}
    calls = {call.call_id: call for e in events if isinstance(e, Turned) for call in e.calls}
    for event in events:
        match event:
            case Turned():
                yield _turn(event)
                for call in event.calls:
                    yield _call(call, ends.get(call.call_id), event.at)
            case Returned():
                pass  # with its call
            case Begun() | Decided():
                yield _about(event, calls.get(event.call_id))
            case Compacted() | Answered():
                text = event.notes if isinstance(event, Compacted) else event.text
                yield {"kind": event.kind, "at": _time(event.at), "content": text, **_paid(event)}
            case Embedded():
                text = f"texts made into vectors: {event.num_texts:,}"
                told = {"content": text, "engine": event.engine, **_paid(event)}
                yield {"kind": event.kind, "at": _time(event.at), **told}
            case Nudged():
                why = [event.why, *([event.cause] if event.cause else [])]
                yield {
                    "kind": event.kind, "at": _time(event.at), "content": event.text, "notes": why,
                }  # fmt: skip


def _turn(event: Turned) -> dict[str, Any]:
    return {
        "kind": event.kind,
        "at": _time(event.at),
        "content": event.content,
        "reasoning": event.reasoning,
        "seconds": event.seconds,
        "engine": event.engine,
        "finish_reason": event.finish_reason,
        "notes": list(event.notes),
        **_paid(event),
    }


def _paid(event: Paid) -> dict[str, Any]:
    usage: Usage = event.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "cost_usd": event.cost_usd,
        "gpu_seconds": event.gpu_seconds,
    }


def _call(call: AskedCall, end: Returned | None, asked_at: float) -> dict[str, Any]:
    return {
        "kind": "call",
        "at": _time(asked_at if end is None else end.at),
        "tool": call.name,
        "call_id": call.call_id,
        "arguments": call.arguments,
        "result": None if end is None else end.text,
        "failure": None if end is None else end.failure,
        "seconds": None if end is None else end.seconds,
    }


def _about(event: Begun | Decided, call: AskedCall | None) -> dict[str, Any]:
    told: dict[str, Any] = {
        "kind": event.kind,
        "at": _time(event.at),
        "tool": call.name if call else None,
        "call_id": event.call_id,
    }
    if isinstance(event, Decided):
        verdict = "approved" if event.is_approved else "refused"
        told["content"] = event.reason
        told["notes"] = [verdict, *([event.by] if event.by else [])]
    return told


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


# The table


def transcripts_table(run_id: str) -> str:
    """Return the folder of a run's transcripts in its sink."""
    return f"runs/{run_id}/transcripts"


def write_transcripts(lake: Lake, run_id: str, shard: str, rows: Sequence[Row]) -> None:
    """Put a shard's rows into the sink, in place of those it had; no file is made for none.

    Args:
        lake: The run's sink.
        run_id: Of the run.
        shard: The shard, or stage over the corpus, whose requests they are of.
        rows: Of all its requests, one after the other, as `transcript_rows` gives them.

    Raises:
        StorageError: They cannot be written.
    """
    path = f"{transcripts_table(run_id)}/{shard}.parquet"
    if rows or lake.storage.find(path) is not None:
        lake.storage.put(path, parquet.to_parquet(rows, parquet.TRANSCRIPTS))


def read_transcripts(
    lake: Lake, run_id: str, *, request: str = "", stage: str | None = None
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each request of a run; those of one shard are in memory at a time.

    Args:
        lake: The run's sink.
        run_id: Of the run.
        request: How the keys of the requests begin that are read.
        stage: The stage whose requests are read; all where None.

    Raises:
        StorageError: They cannot be read.
    """
    for shard in _shards(lake, run_id):
        known = lake.read_table(transcripts_table(run_id), ["request_key", "stage"], shard=shard)
        if known is None or _chosen(known, request, stage).is_empty():
            continue
        frame = lake.read_table(transcripts_table(run_id), shard=shard)
        if frame is not None:
            yield from _by_request(_chosen(frame, request, stage))


def _shards(lake: Lake, run_id: str) -> list[str]:
    files = (item.path for item in lake.storage.list(transcripts_table(run_id)))
    names = (path.rpartition("/")[2] for path in files if path.endswith(".parquet"))
    return sorted(name.removesuffix(".parquet") for name in names)


def _chosen(frame: pl.DataFrame, request: str, stage: str | None) -> pl.DataFrame:
    keep = pl.col("request_key").str.starts_with(request)
    return frame.filter(keep if stage is None else keep & (pl.col("stage") == stage))


def _by_request(frame: pl.DataFrame) -> Iterator[list[dict[str, Any]]]:
    for part in frame.partition_by(["stage", "request_key"], maintain_order=True):
        yield part.to_dicts()


# Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one request took, as its rows tell."""

    request_key: str
    stage: str
    unit: str
    num_steps: int
    """Turns of the model, those of sub-agents included."""
    num_calls: int
    num_failed_calls: int
    num_compactions: int
    num_subagents: int
    critical_steps: int
    """Turns one after the other, as in `engine.request.Work`."""
    prompt_tokens: int
    cached_tokens: int | None
    completion_tokens: int
    cost_usd: float | None
    gpu_seconds: float | None
    started: datetime
    seconds: float
    """From the begin of the first turn to the last event."""
    engines: tuple[str, ...]
    stopped: str | None
    """Why it had to answer with what it had."""

    @property
    def tokens(self) -> int:
        """Return the tokens of prompts and answers."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def speed_up(self) -> float | None:
        """Return how many steps were done per step that had to wait for another; None without sub-agents."""
        return self.num_steps / self.critical_steps if self.num_subagents else None


def figures(rows: Sequence[Row]) -> Figures:
    """Return what a request took.

    Args:
        rows: Of one request, at least one, as `read_transcripts` gives them.
    """
    first = rows[0]
    calls = [row for row in rows if row["kind"] == "call"]
    turns = [row for row in rows if row["kind"] == "turn"]
    begin = min(began(row) for row in rows)
    return Figures(
        request_key=first["request_key"],
        stage=first["stage"],
        unit=first["unit"],
        num_steps=len(turns),
        num_calls=len(calls),
        num_failed_calls=sum(row["failure"] is not None for row in calls),
        num_compactions=sum(row["kind"] == "compacted" for row in rows),
        num_subagents=len({row["agent"] for row in rows if agent_id(row["agent"]).isdecimal()}),
        critical_steps=_critical_steps(rows),
        prompt_tokens=int(_sum(rows, "prompt_tokens") or 0),
        cached_tokens=_int(_sum(rows, "cached_tokens")),
        completion_tokens=int(_sum(rows, "completion_tokens") or 0),
        cost_usd=_sum(rows, "cost_usd"),
        gpu_seconds=_sum(rows, "gpu_seconds"),
        started=datetime.fromtimestamp(begin, UTC),
        seconds=max(row["at"].timestamp() for row in rows) - begin,
        engines=tuple(dict.fromkeys(row["engine"] for row in turns)),
        stopped=stopped(row for row in rows if not row["agent"]),
    )


def list_figures(lake: Lake, run_id: str, stage: str | None = None) -> list[Figures]:
    """Return the figures of a run's requests, by stage, unit and key; long texts are not read.

    Raises:
        StorageError: The table cannot be read.
    """
    found = []
    for shard in _shards(lake, run_id):
        frame = lake.read_table(transcripts_table(run_id), _BRIEF, shard=shard)
        if frame is not None:
            found += [figures(rows) for rows in _by_request(_chosen(frame, "", stage))]
    return sorted(found, key=lambda one: (one.stage, one.unit, one.request_key))


def began(row: Row) -> float:
    """Return when what a row tells of began, in seconds since 1970."""
    ended: float = row["at"].timestamp()
    return ended - (row["seconds"] or 0.0)


def agent_id(agent: str) -> str:
    """Return what tells a request's agents apart: the number behind its call, empty for the own agent.

    One whose number was given out again has the key of its task behind it.
    """
    return agent.partition(" ")[0]


def stopped(rows: Iterator[Row]) -> str | None:
    """Return why an agent had to answer with what it had; None where it came to its end."""
    for row in rows:
        if row["kind"] == "nudged" and row["notes"][:1] == ["stopped"]:
            return str(row["notes"][-1])
    return None


def _critical_steps(rows: Sequence[Row]) -> int:
    turns: dict[str, int] = defaultdict(int)
    for row in rows:
        turns[agent_id(row["agent"])] += row["kind"] == "turn"
    total = longest = 0
    for row in rows:
        if row["agent"]:
            continue
        if row["kind"] == "turn":
            total, longest = total + 1 + longest, 0
        elif row["kind"] == "call":
            longest = max(longest, turns.get(call_number(row["call_id"]), 0))
    return total + longest


def _sum(rows: Sequence[Row], name: str) -> float | None:
    return _sum_known(row[name] for row in rows)


def _sum_known(values: Iterable[float | None]) -> float | None:
    """Return the sum of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _int(value: float | None) -> int | None:
    return None if value is None else int(value)
