"""Brings what became of the lines of a batch from the host to the sink, when the batch has ended."""

from __future__ import annotations

import itertools
import logging

import orjson

from engine.batch_api.ends import blamed_ends, read_ends
from engine.batch_api.host import BatchHost, HostBatch
from engine.batch_api.record import HeldRecord

logger = logging.getLogger(__name__)

_BAD_REQUEST = 400


def collect(host: BatchHost, held: HeldRecord, batch: HostBatch) -> None:
    """Put the ends of the lines into the sink, then into the record that they are there.

    Doing it twice does no harm: the host's files stay there until the record goes.

    Raises:
        EngineUnavailable: The files cannot be read now.
        SinkChanged: Another process has done it.
    """
    files = [one for one in (batch.output_file_id, batch.error_file_id) if one is not None]
    lines = itertools.chain.from_iterable(host.lines(file_id) for file_id in files)
    ends = blamed_ends(held.record, batch) | read_ends(held.record, lines)
    refusal = ""
    if batch.status == "failed" and not ends:
        said = "; ".join(text for _, text in batch.errors) or "it does not say why"
        refusal = f"{host.base_url} refused the file of batch {batch.batch_id}: {said}"
    num_answered = sum(end["status"] == 200 for end in ends.values())
    held.end(
        b"".join(orjson.dumps(end) + b"\n" for end in ends.values()),
        status=batch.status,
        seconds=max(0.0, batch.ended_at - batch.created_at) if batch.ended_at else 0.0,
        num_answered=num_answered,
        num_failed=len(held.record.lines) - num_answered,
        refusal=refusal,
        refusal_status=_BAD_REQUEST if refusal else 0,
        host_files=tuple(files),
    )
    record = held.record
    logger.info(
        "shard=%s stage=%s: batch %s is %s, %d of %d requests answered",
        record.shard,
        record.stage,
        record.batch_id,
        record.status,
        num_answered,
        len(record.lines),
    )
