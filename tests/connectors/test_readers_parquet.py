"""Parquet files: every row with its number, by row groups."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.errors import DocumentRejected
from connectors.readers import ReaderOptions, detect_media_type, parquet


def _read(tmp_path: Path, columns: dict[str, object], *, group: int = 1000, max_rows: int = 100):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=group)
    media_type = detect_media_type(path, "a.bin")
    assert media_type == "application/vnd.apache.parquet"
    return parquet.read(path, media_type, tmp_path, ReaderOptions(max_rows=max_rows))


def _rejection(tmp_path: Path, data: bytes) -> DocumentRejected:
    path = tmp_path / "b.parquet"
    path.write_bytes(data)
    with pytest.raises(DocumentRejected) as caught:
        parquet.read(path, detect_media_type(path, path.name), tmp_path, ReaderOptions())
    return caught.value


def test_rows_have_numbers_and_columns_have_names(tmp_path):
    content = _read(tmp_path, {"name": ["Ann", "", "Bo"], "age": [41, None, 35]})
    assert [(s.kind, s.span.sheet, s.span.cells, s.text) for s in content.segments] == [
        ("heading", "", "A1:B3", "Table A1:B3, columns: row, A name, B age"),
        ("table", "", "A1:B1", "1,Ann,41"),
        ("table", "", "A3:B3", "3,Bo,35"),
    ]
    assert [(u.name, u.status) for u in content.units] == [("rows 1-3", "read")]
    assert content.reader == "parquet/1+max_rows=100"


def test_values_are_written_as_in_sheets(tmp_path):
    day = datetime.date(2021, 1, 1)
    columns = {
        "day": pa.array([day]),
        "us": pa.array([datetime.datetime(2021, 1, 1, 18)], pa.timestamp("us")),  # noqa: DTZ001
        "ns": pa.array([1_609_459_200_000_000_001], pa.timestamp("ns")),
        "money": pa.array([Decimal("12.50")]),
        "tags": pa.array([["a", "b"]]),
        "place": pa.array([{"city": "Köln", "since": day}]),
        "bytes": pa.array([b"caf\xc3\xa9"]),
        "yes": pa.array([True]),
        "share": pa.array([0.1], pa.float64()),
    }
    text = _read(tmp_path, columns).segments[1].text
    assert text == (
        '1,2021-01-01,2021-01-01 18:00:00,2021-01-01 00:00:00.000000001,12.50,"[""a"", ""b""]",'
        '"{""city"": ""Köln"", ""since"": ""2021-01-01""}",café,TRUE,0.1'
    )


def test_row_groups_behind_the_limit_are_named(tmp_path):
    content = _read(tmp_path, {"n": list(range(1, 31))}, group=10, max_rows=15)
    assert [(u.name, u.status, u.error) for u in content.units] == [
        ("rows 1-10", "read", None),
        ("rows 11-20", "failed", "rows from 16 on left out: reader.max_rows is 15"),
        ("rows 21-30", "failed", "rows from 21 on left out: reader.max_rows is 15"),
    ]
    assert [s.text for s in content.segments[1:]] == [f"{n},{n}" for n in range(1, 16)]


def test_rows_in_front_are_kept_when_a_row_group_is_damaged(tmp_path):
    path = tmp_path / "a.parquet"
    values = [f"value {n}" for n in range(20)]
    pq.write_table(pa.table({"n": values}), path, row_group_size=10, compression="gzip")
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    media_type = "application/vnd.apache.parquet"
    content = parquet.read(path, media_type, tmp_path, ReaderOptions())
    assert [u.status for u in content.units] == ["read", "failed"]
    assert "rows behind 10 cannot be read" in content.units[1].error
    assert len(content.segments) == 11


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"PAR1torn", "damaged"),
        (b"PAR1" + b"\xff" * 100 + b"PAR1", "damaged"),
        (b"PARE....", "encrypted"),
    ],
)
def test_file_is_rejected_when_it_cannot_be_opened(tmp_path, data, reason):
    assert _rejection(tmp_path, data).reason == reason


def test_file_is_rejected_as_empty_when_it_has_no_value(tmp_path):
    with pytest.raises(DocumentRejected) as caught:
        _read(tmp_path, {"a": pa.array([], pa.int64())})
    assert caught.value.reason == "empty"


def test_times_are_written_as_arrow_does_when_python_has_none_such(tmp_path):
    columns = {
        "far": pa.array([4_000_000], pa.date32()),
        "zone": pa.array([1], pa.timestamp("s", "Mars/Olympus")),
        "short": pa.array([123], pa.duration("ns")),
    }
    content = _read(tmp_path, columns)
    assert content.segments[1].text == "1,12921-08-18,1970-01-01 00:00:01.000,123"
    assert content.units[0].status == "read"


def test_name_of_a_column_stays_on_one_line_when_it_has_breaks(tmp_path):
    content = _read(tmp_path, {"a\n[L2] 9,9": [1]})
    assert content.segments[0].text == "Table A1, columns: row, A a [L2] 9,9"
