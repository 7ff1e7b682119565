"""An answer as it is kept: one line of JSON in a sink's answers, or in a cache that sinks share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter, ValidationError

from engine.request import Result, Usage, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A result, with what it is about and who has paid for it."""

    document_key: str
    """Empty for what spans documents."""
    result: Result
    run: str = ""
    """The run that has paid for it; empty where that is not known."""
    shard: str = ""
    """The shard whose claim it was paid under; empty where it was another sink's."""


def run_time(run_id: str) -> datetime | None:
    """Return when a run began, by its id; None where the id was given by hand."""
    try:
        return datetime.strptime(run_id.partition("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None


LINES = json.JSONEncoder(default=dict)
"""Writes answers and results, whose outputs may be any mappings."""
_RESULT = tuple(one.name for one in fields(Result))
_USAGE = tuple(one.name for one in fields(Usage))


def as_line(answer: Answer) -> str:
    """Return the answer as one line, its end included."""
    value = {
        "document_key": answer.document_key,
        "result": result_as_json(answer.result),
        "run": answer.run,
        "shard": answer.shard,
    }
    return LINES.encode(value) + "\n"


def result_as_json(result: Result) -> dict[str, Any]:
    """Return the result's fields, its usage as a dict; not by `asdict`, which copies each of them."""
    value = {name: getattr(result, name) for name in _RESULT}
    value["usage"] = {name: getattr(result.usage, name) for name in _USAGE}
    value["work"] = asdict(result.work) if result.work else None
    return value


def from_json(value: Mapping[str, Any]) -> Answer:
    """Return the answer that a line of this sink holds."""
    return Answer(
        document_key=value["document_key"],
        run=value.get("run", ""),
        shard=value.get("shard", ""),
        result=result_from_json(value["result"]),
    )


def result_from_json(value: Mapping[str, Any]) -> Result:
    """Return the result that `result_as_json` gave."""
    found = {
        **value,
        "usage": Usage(**value["usage"]),
        "mode_notes": tuple(value["mode_notes"]),
        # Lines of before there were batches have none.
        "batch_ids": tuple(value.get("batch_ids", ())),
    }
    # Lines of before there were agents have none.
    if found.get("work") is not None:
        work = found["work"]
        found["work"] = Work(**{**work, "engines": tuple(work.get("engines", ()))})
    return Result(**found)


_ANSWER = TypeAdapter(Answer)


def checked(line: str) -> Answer | None:
    """Return the answer in a line that anybody may have written; None where it is none."""
    try:
        answer = _ANSWER.validate_json(line, strict=True)
    except ValidationError:
        return None
    has_answer = answer.result.output is not None
    return answer if has_answer == (answer.result.outcome == "succeeded") else None
