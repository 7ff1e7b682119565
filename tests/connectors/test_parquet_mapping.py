"""Values of a stage's schema, written as Parquet and read back by the tools that people use."""

from __future__ import annotations

import datetime as dt
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import jsonschema
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.sinks.columns import arrow_type, describe_columns, output_values
from connectors.sinks.parquet import record_schema, to_parquet

duckdb = pytest.importorskip("duckdb")

Sample = tuple[Any, Any]
"""A JSON value, and what it is in a table."""


@dataclass(frozen=True)
class Spec:
    """A JSON Schema with values of it."""

    schema: dict[str, Any]
    sample: Callable[[random.Random], Sample]


@dataclass(frozen=True)
class AsJson:
    """What a cell of JSON text means."""

    value: Any


def text(value: str) -> Sample:
    return value, value


STRINGS = [
    "",
    "a",
    " b ",
    "Ä é 漢字 🚢",
    'say "x"',
    "it's",
    "line\nline",
    "nul \0 here",
    "[1]",
    "null",
]
INTEGERS = [0, 1, -1, 2**53 + 1, 2**63 - 1, -(2**63), 3.0]
NUMBERS = [0, 0.1, -2.5, 5e-324, 1.7976931348623157e308, 2**53, -7]
DATES = ["0001-01-01", "1969-12-31", "2024-02-29", "9999-12-31"]
TIMES = {
    "00:00:00": dt.time(0),
    "23:59:59.999999": dt.time(23, 59, 59, 999999),
    "12:30:00Z": dt.time(12, 30),
    "07:05:00.5+00:00": dt.time(7, 5, 0, 500000),
}
MOMENTS = {
    "2026-11-25T10:00:00Z": dt.datetime(2026, 11, 25, 10, tzinfo=dt.UTC),
    "2026-11-25T10:00:00": dt.datetime(2026, 11, 25, 10, tzinfo=dt.UTC),
    "2026-01-01T00:30:00+02:00": dt.datetime(2025, 12, 31, 22, 30, tzinfo=dt.UTC),
    "0001-01-01T00:00:00Z": dt.datetime(1, 1, 1, tzinfo=dt.UTC),
    "9999-12-31T23:59:59.999999Z": dt.datetime(9999, 12, 31, 23, 59, 59, 999999, dt.UTC),
    "1969-07-20T20:17:40.000001Z": dt.datetime(1969, 7, 20, 20, 17, 40, 1, dt.UTC),
}
DECIMALS = [
    "0", "-0", "10.5", "-1234.560", "1e3", "2.5E-3", "0.000000001", "1.10000000000000000",
    "99999999999999999999999999999.999999999", "-99999999999999999999999999999.999999999",
    "12345678901234567890123456789", ".5", "5.", "+7",
]  # fmt: skip
FREE: list[Any] = [{}, {"a": 1, "b": [None, {"c": "x"}]}, {"big": 10**30, "text": 'q"\n'}]
NAMES = ["a", "b c", "d.e", "Größe", "select", "x-y", 'quo"te', "element", "item", "key_value"]


def one_of(values: Any) -> Callable[[random.Random], Sample]:
    pairs = list(values.items()) if isinstance(values, dict) else [(v, v) for v in values]
    return lambda rng: rng.choice(pairs)


SCALARS = [
    Spec({"type": "string"}, one_of(STRINGS)),
    Spec({"type": "integer"}, one_of(INTEGERS)),
    Spec({"type": "number"}, one_of(NUMBERS)),
    Spec({"type": ["integer", "number"]}, one_of(NUMBERS)),
    Spec({"type": "boolean"}, one_of([True, False])),
    Spec({"type": "null"}, one_of([None])),
    Spec(
        {"type": "string", "format": "date"},
        one_of({day: dt.date.fromisoformat(day) for day in DATES}),
    ),
    Spec({"type": "string", "format": "time"}, one_of(TIMES)),
    Spec({"type": "string", "format": "date-time"}, one_of(MOMENTS)),
    Spec({"type": "string", "format": "decimal"}, one_of({d: Decimal(d) for d in DECIMALS})),
    Spec({"type": "string", "format": "email"}, one_of(["a@b.de"])),
    Spec({"enum": ["yes", "no", "it's"]}, one_of(["yes", "no", "it's"])),
    Spec({"type": "string", "enum": ["a", "b"]}, one_of(["a", "b"])),
    Spec({"enum": [1, 2, 3]}, one_of([1, 2, 3])),
    Spec({"enum": [1, 2.5, None]}, one_of([1, 2.5, None])),
    Spec({"const": "invoice"}, one_of(["invoice"])),
    Spec({"const": 7}, one_of([7])),
    Spec({"const": True}, one_of([True])),
    Spec({"$ref": "#/$defs/day"}, one_of({day: dt.date.fromisoformat(day) for day in DATES})),
    Spec({"$ref": "#/$defs/a~1b", "description": "of two"}, one_of(["left", "right"])),
    Spec({"allOf": [{"$ref": "#/$defs/a~1b"}], "default": "left"}, one_of(["left", "right"])),
    Spec(
        {"anyOf": [{"type": "string", "format": "date"}, {"type": "string"}]},
        one_of([*DATES, "spring"]),
    ),
]
OPEN = [
    {"type": "object"},
    {"type": "object", "properties": {}},
    {"type": "object", "additionalProperties": {}},
    {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": True},
    {"type": ["object", "string"]},
    {"anyOf": [{"type": "object"}, {"type": "integer"}]},
    {},
]
SCALARS += [
    Spec(schema, lambda rng: (lambda v: (v, AsJson(v)))(rng.choice(FREE))) for schema in OPEN
]
SCALARS += [
    Spec({"type": "array"}, lambda rng: (lambda v: (v, AsJson(v)))([rng.choice(FREE), 1, "x"])),
    Spec(
        {"enum": ["a", 1, [2]]}, lambda rng: (lambda v: (v, AsJson(v)))(rng.choice(["a", 1, [2]]))
    ),
]
DEFS = {
    "day": {"type": "string", "format": "date"},
    "a/b": {"enum": ["left", "right"]},
}


def optional(inner: Spec, rng: random.Random) -> Spec:
    kind, null = inner.schema.get("type"), {"type": "null"}
    ways: list[dict[str, Any]] = [{"anyOf": [inner.schema, null]}]
    if isinstance(kind, str) and kind != "null":
        ways.append({"oneOf": [null, inner.schema]})
        ways += [] if "enum" in inner.schema else [{**inner.schema, "type": [kind, "null"]}]
    schema = rng.choice(ways)
    return Spec(schema, lambda r: (None, None) if r.random() < 0.3 else inner.sample(r))


def listed(inner: Spec) -> Spec:
    def sample(rng: random.Random) -> Sample:
        pairs = [inner.sample(rng) for _ in range(rng.randrange(4))]
        return [value for value, _ in pairs], [stored for _, stored in pairs]

    return Spec({"type": "array", "items": inner.schema}, sample)


def struct(inner: dict[str, Spec]) -> Spec:
    def sample(rng: random.Random) -> Sample:
        pairs = {name: spec.sample(rng) for name, spec in inner.items()}
        left = [name for name in pairs if rng.random() < 0.8]
        return (
            {name: pairs[name][0] for name in left},
            {name: pairs[name][1] if name in left else None for name in pairs},
        )

    properties = {name: spec.schema for name, spec in inner.items()}
    return Spec({"type": "object", "properties": properties, "additionalProperties": False}, sample)


def make(rng: random.Random, depth: int) -> Spec:
    roll = rng.random()
    if depth == 0 or roll < 0.4:
        return rng.choice(SCALARS)
    if roll < 0.6:
        return listed(make(rng, depth - 1))
    if roll < 0.8:
        names = rng.sample(NAMES, rng.randint(1, 4))
        return struct({name: make(rng, depth - 1) for name in names})
    return optional(make(rng, depth - 1), rng)


def same(stored: Any, read: Any) -> bool:
    if isinstance(stored, AsJson):
        return isinstance(read, str) and json.loads(read) == stored.value
    if isinstance(stored, dict):
        return (
            isinstance(read, dict)
            and list(read) == list(stored)
            and all(same(stored[name], read[name]) for name in stored)
        )
    if isinstance(stored, list):
        return isinstance(read, list) and len(read) == len(stored) and all(map(same, stored, read))
    return bool(read == stored) and (isinstance(read, bool) == isinstance(stored, bool))


def row_of(output: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    fixed = dict.fromkeys(("row_key", "uri", "path", "unit", "outcome", "mode"), "x")
    return fixed | output_values(output, answer)


def read_all(file: Any, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    connection = duckdb.connect()
    connection.execute("set TimeZone = 'UTC'")
    found = connection.execute("select * from read_parquet(?)", [str(file)])
    columns = [column[0] for column in found.description]
    rows = [dict(zip(columns, row, strict=True)) for row in found.fetchall()]
    return {
        "pyarrow": pq.read_table(file).select(names).to_pylist(),
        "polars": pl.read_parquet(file, columns=names).to_dicts(),
        "duckdb": [{name: row[name] for name in names} for row in rows],
    }


def check_round_trip(output: dict[str, Any], pairs: list[Sample], file: Any) -> None:
    """Write the answers of `pairs`, and find what is stored in all readers."""
    for answer, _ in pairs:
        jsonschema.validate(answer, output)
    file.write_bytes(to_parquet([row_of(output, a) for a, _ in pairs], record_schema(output)))
    for reader, rows in read_all(file, list(output["properties"])).items():
        assert len(rows) == len(pairs)
        for row, (answer, stored) in zip(rows, pairs, strict=True):
            assert same(stored, row), (reader, answer, stored, row)


@pytest.mark.parametrize("number", range(len(SCALARS)))
def test_every_value_is_read_back_as_it_was_answered_when_a_field_is_plain(number, tmp_path):
    spec, rng = SCALARS[number], random.Random(number)
    whole = struct({"bare": spec, "optional": optional(spec, rng), "listed": listed(spec)})
    output = {**whole.schema, "$defs": DEFS}
    check_round_trip(output, [whole.sample(rng) for _ in range(60)], tmp_path / "part.parquet")


@pytest.mark.parametrize("seed", range(60))
def test_every_value_is_read_back_as_it_was_answered_when_fields_are_nested(seed, tmp_path):
    rng = random.Random(f"nested {seed}")
    names = rng.sample(NAMES, rng.randint(1, 5))
    whole = struct({name: make(rng, 3) for name in names})
    output = {**whole.schema, "$defs": DEFS}
    check_round_trip(output, [whole.sample(rng) for _ in range(20)], tmp_path / "part.parquet")


def test_parts_are_one_table_when_one_of_them_is_empty_or_holds_nulls_only(tmp_path):
    whole = struct({f"f{number}": spec for number, spec in enumerate(SCALARS)})
    output = {**whole.schema, "$defs": DEFS}
    rng = random.Random(1)
    answers = [[], [{}], [whole.sample(rng)[0] for _ in range(5)]]
    for number, part in enumerate(answers):
        file = tmp_path / f"{number}.parquet"
        file.write_bytes(to_parquet([row_of(output, a) for a in part], record_schema(output)))
    assert pl.read_parquet(f"{tmp_path}/*.parquet").height == 6
    assert duckdb.sql(f"select count(*) from '{tmp_path}/*.parquet'").fetchall() == [(6,)]


TREE = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
    },
    "additionalProperties": False,
}


def test_schema_that_holds_itself_is_json_text_from_its_second_level_on(tmp_path):
    output = {
        "type": "object",
        "properties": {"tree": {"$ref": "#/$defs/tree"}},
        "$defs": {"tree": TREE},
    }
    leaf = {"name": "leaf", "parts": []}
    answer = {"tree": {"name": "root", "parts": [{"name": "twig", "parts": [leaf]}, leaf]}}
    stored = {"tree": {"name": "root", "parts": [AsJson(p) for p in answer["tree"]["parts"]]}}
    check_round_trip(output, [(answer, stored)], tmp_path / "part.parquet")
    assert describe_columns(output) == [
        {"name": "tree", "type": 'struct<"name": string, "parts": list<json>>'}
    ]


STRING = {"type": "string"}


@pytest.mark.parametrize(
    ("spec", "value", "says"),
    [
        ({"type": "integer"}, 2**63, "9223372036854775808 is beyond the column's 64 bits"),
        ({"type": "integer"}, 1e300, "1e+300 is beyond the column's 64 bits"),
        ({"type": "number"}, float("nan"), "nan is no finite number"),
        ({"type": "number"}, float("-inf"), "-inf is no finite number"),
        ({"type": "number"}, 10**400, "is no finite number"),
        ({"type": "number"}, 2**53 + 1, "9007199254740993 has more digits than a number"),
        ({**STRING, "format": "decimal"}, "0.1234567891", "has 10 digits behind the point"),
        ({**STRING, "format": "decimal"}, "1e-9999", "has 9999 digits behind the point"),
        ({**STRING, "format": "decimal"}, "1" * 30, "has 30 digits before the point"),
        ({**STRING, "format": "decimal"}, "1e29", "has 30 digits before the point"),
        ({**STRING, "format": "decimal"}, "NaN", "'NaN' is no decimal number"),
        ({**STRING, "format": "decimal"}, "1,5", "'1,5' is no decimal number"),
        ({**STRING, "format": "decimal"}, "1_000", "'1_000' is no decimal number"),
        ({**STRING, "format": "date"}, "tomorrow", "'tomorrow' is no date"),
        ({**STRING, "format": "date"}, "2026-02-30", "'2026-02-30' is no date"),
        ({**STRING, "format": "date"}, "2026-01-01T00:00:00", "is no date"),
        ({**STRING, "format": "date-time"}, "noon", "'noon' is no point in time"),
        ({**STRING, "format": "date-time"}, "2026-01-01T00:00:00.0000001Z", "than a microsecond"),
        ({**STRING, "format": "date-time"}, "0001-01-01T00:00:00+01:00", "is no point in time"),
        ({**STRING, "format": "time"}, "25:00:00", "'25:00:00' is no time of day"),
        ({**STRING, "format": "time"}, "12:00:00+02:00", "has an offset"),
        ({**STRING, "format": "time"}, "12:00:00.1234567", "than a microsecond"),
        (STRING, "half \ud83d", "half of a surrogate pair"),
        ({"type": "object"}, {"a": "\udc00"}, "half of a surrogate pair"),
        ({"type": "object"}, {"a": float("nan")}, "holds NaN"),
    ],
)
def test_value_is_refused_with_field_and_value_when_no_column_holds_it(spec, value, says):
    inner = {"type": "array", "items": {"type": "object", "properties": {"x": spec}}}
    for output, answer, field in (
        ({"properties": {"x": spec}}, {"x": value}, "x"),
        ({"properties": {"rows": inner}}, {"rows": [{}, {"x": value}]}, "rows[1].x"),
    ):
        with pytest.raises(ValueError, match=f"^field {field!r}: ".replace("[", r"\[")) as caught:
            output_values(output, answer)
        assert says in str(caught.value)
        assert len(str(caught.value)) < 400


def test_long_value_is_shown_in_part_when_it_is_refused():
    with pytest.raises(ValueError, match=r"^field 'x': '1{99}\.\.\. has 4000 digits before"):
        output_values({"properties": {"x": {**STRING, "format": "decimal"}}}, {"x": "1" * 4000})


@pytest.mark.parametrize("ref", ["#/$defs/none", "other.json#/a", "#anchor", "#/properties/x/y"])
def test_reference_is_refused_when_it_leads_nowhere(ref):
    with pytest.raises(ValueError, match="leads nowhere"):
        record_schema({"properties": {"x": {"$ref": ref}}})


@pytest.mark.parametrize("names", [("a", "A"), ("",), ("Straße", "STRASSE")])
def test_fields_are_refused_when_a_reader_would_rename_them(names):
    properties = dict.fromkeys(names, STRING)
    for output in (
        {"properties": properties},
        {"properties": {"inner": {"type": "object", "properties": properties}}},
    ):
        with pytest.raises(ValueError, match="rename one|give it one"):
            record_schema(output)


def test_type_is_what_the_documentation_says():
    assert {name: arrow_type(spec) for name, spec in {
        "time": {**STRING, "format": "time"},
        "decimal": {**STRING, "format": "decimal"},
        "union": {"type": ["string", "integer"]},
        "tuple": {"type": "array", "prefixItems": [STRING], "items": STRING},
    }.items()} == {
        "time": pa.time64("us"),
        "decimal": pa.decimal128(38, 9),
        "union": pa.string(),
        "tuple": pa.string(),
    }  # fmt: skip
