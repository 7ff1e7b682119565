import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.document import Span
from connectors.sinks.parquet import (
    CHUNKS,
    DOCUMENTS,
    SPAN,
    record_schema,
    span_from_row,
    span_row,
    to_parquet,
)

OUTPUT = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "format": "segment-label"},
        "amount": {"type": ["string", "null"], "format": "decimal"},
        "due": {"type": "string", "format": "date"},
        "count": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "party": {"type": "object", "properties": {"name": {"type": "string"}}},
        "free": {"type": "object"},
    },
}


def test_output_columns_are_typed_when_the_schema_says_so():
    schema = record_schema(OUTPUT)
    assert schema.field("title").type == pa.string()
    assert schema.field("amount").type == pa.decimal128(38, 9)
    assert schema.field("due").type == pa.date32()
    assert schema.field("count").type == pa.int64()
    assert schema.field("tags").type == pa.list_(pa.string())
    assert schema.field("party").type == pa.struct([("name", pa.string())])
    assert schema.field("free").type == pa.string()
    assert not schema.field("row_key").nullable


def test_columns_are_the_documented_ones_when_tables_are_made():
    assert record_schema({"properties": {"x": {"type": "string"}}}).names == [
        "row_key", "uri", "path", "document_key", "chunk_key", "unit", "request_key", "outcome",
        "error_class", "error", "x", "citations", "claims", "num_inputs", "num_answered", "saw", "mode", "mode_observed",
            "mode_notes", "thought", "agreement", "escalated", "profile", "fallback", "model",
        "fingerprint", "prompt_tokens", "completion_tokens",
    ]  # fmt: skip
    assert DOCUMENTS.names == [
        "uri", "path", "etag", "size_bytes", "document_key", "shard", "status", "error_class",
        "error", "media_type", "reader", "units", "metadata", "tables",
            "num_chunks",
    ]  # fmt: skip
    assert CHUNKS.names == [
        "chunk_key", "document_key", "uri", "path", "ordinal", "num_tokens", "segments",
    ]  # fmt: skip


def test_same_rows_give_the_same_bytes_when_written_twice(tmp_path):
    row = dict.fromkeys(CHUNKS.names) | {
        "chunk_key": "c", "document_key": "d", "uri": "u", "path": "p", "ordinal": 0, "num_tokens": 1,
    }  # fmt: skip
    data = to_parquet([row], CHUNKS)
    assert data == to_parquet([row], CHUNKS)
    file = tmp_path / "part.parquet"
    file.write_bytes(data)
    assert pl.read_parquet(file)["chunk_key"].to_list() == ["c"]
    assert pq.read_schema(file).equals(CHUNKS)


def test_empty_part_keeps_its_schema_when_there_are_no_rows(tmp_path):
    file = tmp_path / "part.parquet"
    file.write_bytes(to_parquet([], DOCUMENTS))
    assert pq.read_table(file).schema.equals(DOCUMENTS)


@pytest.mark.parametrize(
    "span",
    [
        Span(page=3, bbox=(0.1, 0.2, 0.3, 0.4)),
        Span(sheet="S", cells="A1:B2"),
        Span(t0=1.5, t1=2.5),
        Span(char_start=0, char_end=9),
    ],
)
def test_span_survives_when_it_goes_through_a_table(span):
    stored = pa.array([span_row(span)], SPAN).to_pylist()[0]
    assert span_from_row(stored) == span
