"""Schemas of the lake's tables, and rows as Parquet bytes.

Every table has one flat schema. A stage's JSON Schema becomes columns of the records table
(connectors.sinks.columns), next to the columns that every record has; docs/tables.md describes them
for people.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from connectors.document import Document, Span
from connectors.sinks.columns import output_kinds

LABEL_FORMAT = "segment-label"
"""JSON Schema `format` of an output field whose answer is a label and whose value is the text."""

CLAIM_FORMAT = "cited-claim"
"""JSON Schema `format` of an output field whose answer is a sentence with lines and a quote, and whose
value is the sentence."""

SPAN = pa.struct([
    ("page", pa.int32()),
    ("bbox", pa.list_(pa.float64())),
    ("sheet", pa.string()),
    ("cells", pa.string()),
    ("t0", pa.float64()),
    ("t1", pa.float64()),
    ("char_start", pa.int64()),
    ("char_end", pa.int64()),
])

DOCUMENTS = pa.schema([
    pa.field("uri", pa.string(), nullable=False),
    pa.field("path", pa.string(), nullable=False),
    ("etag", pa.string()),
    ("size_bytes", pa.int64()),
    pa.field("document_key", pa.string(), nullable=False),
    pa.field("shard", pa.string(), nullable=False),
    pa.field("status", pa.string(), nullable=False),
    ("error_class", pa.string()),
    ("error", pa.string()),
    ("media_type", pa.string()),
    ("reader", pa.string()),
    (
        "units",
        pa.list_(
            pa.struct([
                ("name", pa.string()),
                ("status", pa.string()),
                ("error", pa.string()),
            ])
        ),
    ),
    ("metadata", pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))),
    (
        "tables",
        pa.list_(
            pa.struct([
                ("name", pa.string()),
                ("sheet", pa.string()),
                ("cells", pa.string()),
                ("title", pa.string()),
                ("columns", pa.list_(pa.string())),
                ("num_rows", pa.int64()),
            ])
        ),
    ),
    pa.field("num_chunks", pa.int32(), nullable=False),
])

CHUNKS = pa.schema([
    pa.field("chunk_key", pa.string(), nullable=False),
    pa.field("document_key", pa.string(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
    pa.field("path", pa.string(), nullable=False),
    pa.field("ordinal", pa.int32(), nullable=False),
    pa.field("num_tokens", pa.int32(), nullable=False),
    (
        "segments",
        pa.list_(
            pa.struct([
                ("label", pa.string()),
                ("kind", pa.string()),
                ("text", pa.string()),
                ("tier", pa.string()),
                ("media", pa.string()),
                ("is_rest", pa.bool_()),
                ("span", SPAN),
            ])
        ),
    ),
])

RECORD_COLUMNS: Sequence[tuple[str, pa.DataType]] = (
    ("row_key", pa.string()),
    ("uri", pa.string()),
    ("path", pa.string()),
    ("document_key", pa.string()),
    ("chunk_key", pa.string()),
    ("unit", pa.string()),
    ("request_key", pa.string()),
    ("outcome", pa.string()),
    ("error_class", pa.string()),
    ("error", pa.string()),
)
"""Columns in front of a stage's output columns."""

RECORD_TAIL: Sequence[tuple[str, pa.DataType]] = (
    (
        "citations",
        pa.list_(
            pa.struct([
                ("field", pa.string()),
                ("label", pa.string()),
                ("quote", pa.string()),
                ("tier", pa.string()),
                ("media", pa.string()),
                ("span", SPAN),
                ("path", pa.string()),
                ("document_key", pa.string()),
            ])
        ),
    ),
    (
        "claims",
        pa.list_(
            pa.struct([
                ("field", pa.string()),
                ("text", pa.string()),
                ("quote", pa.string()),
                ("verdict", pa.string()),
            ])
        ),
    ),
    ("num_inputs", pa.int64()),
    ("num_answered", pa.int64()),
    ("saw", pa.string()),
    ("mode", pa.string()),
    ("mode_observed", pa.string()),
    ("mode_notes", pa.list_(pa.string())),
    ("thought", pa.string()),
    ("agreement", pa.float64()),
    ("escalated", pa.string()),
    ("profile", pa.string()),
    ("fallback", pa.string()),
    ("model", pa.string()),
    ("fingerprint", pa.string()),
    ("prompt_tokens", pa.int64()),
    ("completion_tokens", pa.int64()),
)
"""Columns behind a stage's output columns."""

ROUTE_COLUMNS: Sequence[tuple[str, pa.DataType]] = (
    ("policy_route", pa.string()),
    ("served_by", pa.string()),
)
"""Columns behind those, where the pipeline has a policy."""

RESERVED_COLUMNS = frozenset({
    "stage",
    *(name for name, _ in (*RECORD_COLUMNS, *RECORD_TAIL, *ROUTE_COLUMNS)),
})
"""Names that no output column may have; `stage` is what DuckDB makes of the folder's name."""

USAGE = pa.schema([
    pa.field("request_key", pa.string(), nullable=False),
    pa.field("row_key", pa.string(), nullable=False),
    pa.field("stage", pa.string(), nullable=False),
    ("mode", pa.string()),
    ("profile", pa.string()),
    ("batch_ids", pa.list_(pa.string())),
    ("policy_route", pa.string()),
    ("served_by", pa.string()),
    ("attempts", pa.int32()),
    ("seconds", pa.float64()),
    ("queued_s", pa.float64()),
    ("first_token_s", pa.float64()),
    ("decoding_s", pa.float64()),
    ("finish_reason", pa.string()),
    ("prompt_tokens", pa.int64()),
    ("cached_tokens", pa.int64()),
    ("completion_tokens", pa.int64()),
    ("reasoning_tokens", pa.int64()),
    ("later_prompt_tokens", pa.int64()),
    ("later_cached_tokens", pa.int64()),
    ("embedded_tokens", pa.int64()),
    ("usage_guessed", pa.bool_()),
    ("cost_usd", pa.float64()),
    ("steps", pa.int32()),
    ("tool_calls", pa.int32()),
    ("failed_calls", pa.int32()),
    ("subagents", pa.int32()),
    ("critical_steps", pa.int32()),
    ("stopped", pa.string()),
])

TRANSCRIPTS = pa.schema([
    pa.field("request_key", pa.string(), nullable=False),
    pa.field("stage", pa.string(), nullable=False),
    pa.field("unit", pa.string(), nullable=False),
    pa.field("agent", pa.string(), nullable=False),
    pa.field("seq", pa.int32(), nullable=False),
    pa.field("kind", pa.string(), nullable=False),
    pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
    ("content", pa.string()),
    ("reasoning", pa.string()),
    ("tool", pa.string()),
    ("call_id", pa.string()),
    ("arguments", pa.string()),
    ("result", pa.string()),
    ("failure", pa.string()),
    ("seconds", pa.float64()),
    ("prompt_tokens", pa.int64()),
    ("cached_tokens", pa.int64()),
    ("completion_tokens", pa.int64()),
    ("cost_usd", pa.float64()),
    ("gpu_seconds", pa.float64()),
    ("engine", pa.string()),
    ("finish_reason", pa.string()),
    pa.field("notes", pa.list_(pa.string()), nullable=False),
])
"""What agents did, event by event; docs/agents.md describes it for people."""


def record_schema(output: Mapping[str, Any], *, routed: bool = False) -> pa.Schema:
    """Return the records table's schema for a stage whose answers follow JSON Schema `output`.

    Args:
        output: JSON Schema of the answers.
        routed: Whether records say by which route and host they were answered.
    """
    columns = [(name, kind.arrow) for name, kind in output_kinds(output).items()]
    required = {"row_key", "unit", "outcome"}
    return pa.schema([
        pa.field(name, kind, nullable=name not in required)
        for name, kind in (
            *RECORD_COLUMNS,
            *columns,
            *RECORD_TAIL,
            *(ROUTE_COLUMNS if routed else ()),
        )
    ])


def to_parquet(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> bytes:
    """Return the rows as one Parquet file; the same rows give the same bytes."""
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_statistics=True, store_schema=True)
    return buffer.getvalue()


def span_row(span: Span) -> dict[str, Any]:
    """Return a span as a row of the SPAN struct."""
    return {
        "page": span.page,
        "bbox": list(span.bbox) if span.bbox else None,
        "sheet": span.sheet,
        "cells": span.cells,
        "t0": span.t0,
        "t1": span.t1,
        "char_start": span.char_start,
        "char_end": span.char_end,
    }


def span_from_row(row: Mapping[str, Any]) -> Span:
    """Return the span that `span_row` wrote."""
    bbox = row["bbox"]
    values = {
        name: row[name] for name in ("page", "sheet", "cells", "t0", "t1", "char_start", "char_end")
    }
    return Span(bbox=tuple(bbox) if bbox else None, **values)


def document_row(document: Document, *, shard: str, num_chunks: int) -> dict[str, Any]:
    """Return a document as a row of the documents table."""
    content = document.content
    return {
        "uri": document.source.uri,
        "path": document.source.path,
        "etag": document.source.etag,
        "size_bytes": document.source.size_bytes,
        "document_key": document.document_key,
        "shard": shard,
        "status": document.status,
        "error_class": document.error_class,
        "error": document.error,
        "media_type": content.media_type if content else None,
        "reader": content.reader if content else None,
        "units": [
            {"name": unit.name, "status": unit.status, "error": unit.error}
            for unit in (content.units if content else ())
        ],
        "metadata": [
            {"name": name, "value": value} for name, value in (content.metadata if content else ())
        ],
        "tables": [
            {**asdict(table), "columns": list(table.columns)}
            for table in (content.tables if content else ())
        ],
        "num_chunks": num_chunks,
    }
