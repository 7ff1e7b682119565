"""Scalars of a JSON answer as values of typed columns.

A value is stored so that it reads back as it was answered, or it is refused with a reason: nothing is
rounded or cut. connectors.sinks.columns puts them together to lists and structs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa

DECIMAL_DIGITS, DECIMAL_SCALE = 38, 9
"""Digits of a decimal in all, and behind its point: the most that Polars and DuckDB hold too."""

_SHOWN_CHARS = 100
_INT64 = range(-(2**63), 2**63)
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_FRACTION = re.compile(r"[.,][0-9]{6}[0-9]*[1-9]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How the values of one JSON Schema are stored."""

    name: str
    """The type in words of this module, which stay the same whatever Arrow calls it."""
    arrow: pa.DataType
    store: Callable[[Any, str], object]
    """Returns a value (never None) as Arrow takes it, from the value and the name of its field."""


def _scalar(name: str, arrow: pa.DataType, convert: Callable[[Any], object]) -> Kind:
    def store(value: object, field: str) -> object:
        try:
            return convert(value)
        except (ValueError, OverflowError, TypeError) as exc:
            shown = repr(value)
            shown = shown if len(shown) <= _SHOWN_CHARS else f"{shown[:_SHOWN_CHARS]}..."
            raise ValueError(f"field {field!r}: {shown} {exc}") from exc

    return Kind(name=name, arrow=arrow, store=store)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("is no text")
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise ValueError("holds half of a surrogate pair, which no text can hold") from exc
    return value


def _json(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as exc:
        raise ValueError("holds NaN or an infinite number, which JSON has not") from exc
    return _text(text)


def _integer(value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        # 3.0 is an integer in JSON Schema.
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("is no integer")
    if value not in _INT64:
        raise ValueError(
            f"is beyond the column's 64 bits ({_INT64[0]} to {_INT64[-1]}); use a string of format"
            " decimal for larger ones"
        )
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("is no number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError("is no finite number of 64 bits")
    if number != value:
        raise ValueError(
            "has more digits than a number of 64 bits holds; use an integer, or a string of format"
            " decimal"
        )
    return number


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("is no boolean")
    return value


def _date(value: object) -> date:
    try:
        return date.fromisoformat(_text(value))
    except ValueError as exc:
        raise ValueError("is no date of the years 1 to 9999 as YYYY-MM-DD") from exc


def _time(value: object) -> time:
    text = _text(value)
    try:
        found = time.fromisoformat(text)
    except ValueError as exc:
        raise ValueError("is no time of day as HH:MM:SS") from exc
    _check_fraction(text)
    if found.utcoffset():
        raise ValueError("has an offset, which a time of day without a date cannot keep; use Z")
    return found.replace(tzinfo=None)


def _date_time(value: object) -> datetime:
    text = _text(value)
    try:
        found = datetime.fromisoformat(text)
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise ValueError(
            "is no point in time of the years 1 to 9999 as YYYY-MM-DDTHH:MM:SSZ"
        ) from exc
    _check_fraction(text)
    return found


def _check_fraction(text: str) -> None:
    """Check that nothing is cut: Python drops what is below a microsecond.

    Raises:
        ValueError: The text is more exact than that.
    """
    if _FRACTION.search(text):
        raise ValueError("is more exact than a microsecond")


def _decimal(value: object) -> Decimal:
    text = _text(value).strip()
    if not _DECIMAL.fullmatch(text):
        raise ValueError("is no decimal number such as -1234.56")
    number = Decimal(text)
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    while digits and digits[-1] == 0:
        digits, exponent = digits[:-1], exponent + 1
    if not digits:
        return Decimal(0)
    if -exponent > DECIMAL_SCALE:
        raise ValueError(
            f"has {-exponent} digits behind the point; the column decimal({DECIMAL_DIGITS},"
            f" {DECIMAL_SCALE}) holds {DECIMAL_SCALE}, and nothing is rounded; ask for fewer, or use"
            " a string"
        )
    most = DECIMAL_DIGITS - DECIMAL_SCALE
    if len(digits) + exponent > most:
        raise ValueError(
            f"has {len(digits) + exponent} digits before the point; the column"
            f" decimal({DECIMAL_DIGITS}, {DECIMAL_SCALE}) holds {most}; use a string"
        )
    # By digits, since arithmetic would round to the context's 28.
    return Decimal((sign, digits + (0,) * (exponent + DECIMAL_SCALE), -DECIMAL_SCALE))


STRING = _scalar("string", pa.string(), _text)
JSON = _scalar("json", pa.string(), _json)
INTEGER = _scalar("int64", pa.int64(), _integer)
NUMBER = _scalar("double", pa.float64(), _number)
BOOLEAN = _scalar("bool", pa.bool_(), _boolean)
FORMATS: Mapping[str, Kind] = {
    "date": _scalar("date", pa.date32(), _date),
    "time": _scalar("time", pa.time64("us"), _time),
    "date-time": _scalar("timestamp", pa.timestamp("us", tz="UTC"), _date_time),
    "decimal": _scalar(
        f"decimal({DECIMAL_DIGITS}, {DECIMAL_SCALE})",
        pa.decimal128(DECIMAL_DIGITS, DECIMAL_SCALE),
        _decimal,
    ),
}
