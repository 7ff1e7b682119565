"""The child process that runs one program over tables in Monty's sandbox; started by `tools.python`.

Monty is an interpreter of its own without files, network or processes, in a worker process with an empty
environment. This process loads the tables and takes what comes back, so that neither is done by the run's.
"""

from __future__ import annotations

import datetime
import decimal
import sysconfig
from pathlib import Path
from typing import Any

import pydantic_monty as monty

from tools.confine import Amounts, call_nothing_outside, limit, see_only

_MAX_PRINTED_BYTES = 2**20
"""A program that prints more is at its end; far less of it is shown."""
_KNOWN = (
    bool,
    int,
    float,
    str,
    bytes,
    datetime.date,
    datetime.timedelta,
    decimal.Decimal,
    type(None),
)
"""What goes into the sandbox as it is; `datetime` is a `date`."""


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return what a program printed and gave, or why it did not end well."""
    limit(Amounts(memory_bytes=request["address_bytes"], cpu_s=request["cpu_s"]))
    # Where its package installs it; no variable of an environment has a say.
    binary = Path(sysconfig.get_path("scripts")) / "monty"
    see_only(map(Path, request["tables"].values()), programs=[binary])
    call_nothing_outside(processes=True)
    inputs = _inputs(request)
    with monty.Monty(binary_path=binary, min_processes=1, max_processes=1) as pool:
        # The worker has been started; nothing else is.
        call_nothing_outside(processes=False)
        return _run(pool, request, inputs)


def _inputs(request: dict[str, Any]) -> dict[str, Any]:
    """Return the tables as lists of rows, or as columns."""
    if not request["tables"]:
        return {}
    # Takes half of the time in which this process is ready.
    from tools.table_child import open_tables  # noqa: PLC0415

    found: dict[str, Any] = {}
    connection = open_tables(request["tables"], request["memory_bytes"])
    for name in request["tables"]:
        table = connection.table(name)
        names = [str(column) for column in table.columns]
        rows = [tuple(map(_value, row)) for row in table.fetchall()]
        if request["shape"] == "columns":
            columns = zip(*rows, strict=True) if rows else ([] for _ in names)
            found[name] = {key: list(values) for key, values in zip(names, columns, strict=True)}
        else:
            found[name] = [dict(zip(names, row, strict=True)) for row in rows]
    connection.close()
    return found


def _value(value: Any) -> Any:  # noqa: ANN401 - a cell
    if isinstance(value, _KNOWN):
        return value
    if isinstance(value, list | tuple):
        return [_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _value(item) for key, item in value.items()}
    return str(value)


def _run(pool: monty.Monty, request: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    printed = monty.CollectString(max_bytes=_MAX_PRINTED_BYTES)
    limits: monty.ResourceLimits = {
        "max_memory": request["memory_bytes"],
        "max_feed_duration_secs": request["timeout_s"],
        "max_recursion_depth": 500,
    }
    # The same program gives the same: random numbers have a seed, and nothing is waited for.
    policy: monty.OSPolicy = {"sleep": "zero", "random_start": {"seed": 0}}
    found: dict[str, Any] = {}
    try:
        with pool.checkout(limits=limits, os_policy=policy, script_name="program.py") as session:
            session.feed_run("None", inputs=inputs)
            value = session.feed_run(request["code"], print_callback=printed)
        found["result"] = None if value is None else _text(value)[: request["max_result_chars"] + 1]
    except monty.MontyCrashedError as exc:
        found["error"] = "time" if exc.timed_out else "memory"
    except (monty.MontyRuntimeError, monty.MontySyntaxError) as exc:
        found |= _failure(exc)
    found["printed"] = printed.output[: request["max_printed_chars"] + 1]
    return found


def _failure(exc: monty.MontyRuntimeError | monty.MontySyntaxError) -> dict[str, Any]:
    cause = exc.exception()
    if isinstance(cause, MemoryError):
        return {"error": "memory"}
    if isinstance(cause, TimeoutError):
        return {"error": "time"}
    return {"error": "program", "message": exc.display()}


def _text(value: Any) -> str:  # noqa: ANN401 - a result
    try:
        return value if isinstance(value, str) else repr(value)
    except RecursionError:
        return "(a value that is nested too deeply to be shown)"
