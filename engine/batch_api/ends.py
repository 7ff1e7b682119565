"""What became of the lines of a batch, by the files that the host gives back."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from engine.batch.hosted import LineEnd
from engine.batch_api.host import HostBatch
from engine.batch_api.record import BatchRecord

logger = logging.getLogger(__name__)

_OK = 200
_BAD_REQUEST = 400

End = dict[str, Any]
"""`{id, status, body}`; status 0 where the host has not come to the line."""


def read_ends(record: BatchRecord, lines: Iterable[bytes]) -> dict[str, End]:
    """Return what the host's files say of a batch's lines, by id, whatever the order.

    Of several ends of one line an answer counts before an error, the first before a later one. Lines that
    are nobody's, or broken, are left out and logged.
    """
    found: dict[str, End] = {}
    num_strange = num_double = 0
    for line in lines:
        end = _end(line)
        if end is None or end["id"] not in record.lines:
            num_strange += 1
            continue
        held = found.get(end["id"])
        num_double += held is not None
        if held is None or (held["status"] != _OK and end["status"] == _OK):
            found[end["id"]] = end
    if num_strange or num_double:
        logger.warning(
            "batch %s of shard %s: %d lines that nobody asked for or that are broken, %d ends of lines that"
            " have one already; left out",
            record.batch_id,
            record.shard,
            num_strange,
            num_double,
        )
    return found


def _end(line: bytes) -> End | None:
    """Return the end that a line of an output or error file is; None where it is none."""
    try:
        value = orjson.loads(line)
        response, error = value.get("response"), value.get("error")
        line_id = str(value["custom_id"])
        if isinstance(response, Mapping):
            status = int(response.get("status_code") or _OK)
            body = response.get("body")
            if isinstance(body, Mapping):
                return {"id": line_id, "status": status, "body": body}
        if error:
            return {"id": line_id, "status": 0, "body": {"error": _said(error)}}
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def blamed_ends(record: BatchRecord, batch: HostBatch) -> dict[str, End]:
    """Return the ends of the lines for which the host has refused the whole file."""
    ids = list(record.lines)
    found: dict[str, End] = {}
    for number, said in batch.errors:
        if number is not None and 1 <= number <= len(ids):
            line_id = ids[number - 1]
            body = {"error": {"message": said}}
            found[line_id] = {"id": line_id, "status": _BAD_REQUEST, "body": body}
    return found


def _said(error: object) -> str:
    if isinstance(error, Mapping):
        return " ".join(str(error[name]) for name in ("code", "message") if error.get(name))
    return str(error)


def line_end(record: BatchRecord, end: Mapping[str, Any] | None) -> LineEnd:
    """Return what became of a line of a batch that has ended; `end`: its own, if it has one."""
    batch_id = record.batch_id or ""
    if end is not None and end["status"]:
        return LineEnd(
            kind="answered" if end["status"] == _OK else "refused",
            batch_id=batch_id,
            status=end["status"],
            body=end["body"],
            seconds=record.seconds,
        )
    if record.refusal:
        body = {"error": {"message": record.refusal}}
        return LineEnd(kind="refused", batch_id=batch_id, status=record.refusal_status, body=body)
    said = f": {end['body']['error']}" if end is not None else ""
    if record.status == "cancelled":
        told = f"batch {batch_id} was cancelled at the host before it came to this request{said}"
        return LineEnd(kind="cancelled", batch_id=batch_id, body={"error": told})
    told = {
        "expired": f"batch {batch_id} expired before the host came to this request; a longer"
        " batch_api.window gives it more time",
        "failed": f"batch {batch_id} was refused for other lines of its file",
        "gone": f"the host knows of no batch {batch_id} any more, or not of its answers",
    }.get(record.status, f"batch {batch_id} has ended without a line for this request")
    return LineEnd(
        kind="lost", batch_id=batch_id, body={"error": f"{told}{said}"}, seconds=record.seconds
    )
