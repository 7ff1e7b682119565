"""The child process that carries out one query over Parquet files; started by `tools.table_query`.

DuckDB holds the query by itself: no files but those of the tables, no extensions, settings locked.
`tools.confine` is around it.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import duckdb

from tools.confine import Amounts, call_nothing_outside, limit, see_only

_MAX_CELL_CHARS = 400
_KEEP_CELL_CHARS = 300


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return what becomes of a query, or of the descriptions of tables."""
    limit(Amounts(memory_bytes=request["address_bytes"], cpu_s=request["cpu_s"]))
    # In this order: opening the rules and reading Python's own files comes before nothing can be opened.
    see_only(map(Path, request["tables"].values()))
    call_nothing_outside(processes=False)
    connection = open_tables(request["tables"], request["memory_bytes"])
    timer = threading.Timer(request["timeout_s"], connection.interrupt)
    timer.daemon = True
    timer.start()
    try:
        if "query" in request:
            return query(connection, request["query"], request["max_rows"])
        return {"described": [_described(connection, name, request) for name in request["tables"]]}
    except duckdb.InterruptException:
        return {"error": "time"}
    except (MemoryError, duckdb.OutOfMemoryException):
        return {"error": "memory"}
    except duckdb.Error as exc:
        return {"error": "sql", "message": str(exc)}
    finally:
        timer.cancel()


def open_tables(tables: dict[str, str], memory_bytes: int) -> duckdb.DuckDBPyConnection:
    """Return a database in memory with a view of each file, and no way to any other."""
    connection = duckdb.connect(
        ":memory:",
        config={
            "threads": 2,
            "memory_limit": f"{memory_bytes // 2**20}MiB",
            # Nothing is spilled: a query that needs a disk is for the model to narrow.
            "temp_directory": "",
            "autoload_known_extensions": False,
            "autoinstall_known_extensions": False,
            "allow_community_extensions": False,
            "allow_unsigned_extensions": False,
            # A name in a query is never a variable of this program.
            "python_enable_replacements": False,
        },
    )
    paths = ", ".join(_literal(path) for path in tables.values())
    connection.execute(f"SET allowed_paths = [{paths}]")
    for name, path in tables.items():
        connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet({_literal(path)})")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def query(connection: duckdb.DuckDBPyConnection, text: str, max_rows: int) -> dict[str, Any]:
    """Return the first rows of a query as text, and how many it has.

    Raises:
        duckdb.Error: It cannot be carried out.
    """
    statements = connection.extract_statements(text)
    if len(statements) != 1:
        return {"error": "count", "count": len(statements)}
    try:
        is_select = statements[0].type == duckdb.StatementType.SELECT
    except ValueError:
        # A kind of statement that the library's own list does not have.
        is_select = False
    if not is_select:
        return {"error": "statement"}
    relation = connection.sql(statements[0])
    rows = relation.limit(max_rows + 1).fetchall()
    num_rows = len(rows)
    if num_rows > max_rows:
        num_rows = relation.count("*").fetchall()[0][0]
    return {
        "columns": [str(name) for name in relation.columns],
        "types": [str(kind) for kind in relation.types],
        "rows": [[_cell(value) for value in row] for row in rows[:max_rows]],
        "num_rows": num_rows,
    }


def _described(
    connection: duckdb.DuckDBPyConnection, name: str, request: dict[str, Any]
) -> dict[str, Any]:
    """Return the columns of a table with types, and its first rows."""
    names = ", ".join(
        f'"{column.replace(chr(34), chr(34) * 2)}"' for column in request["columns"][name]
    )
    return query(connection, f"SELECT {names} FROM {name}", request["max_rows"])


def _cell(value: object) -> str | None:
    if value is None:
        return None
    text = str(value)
    if len(text) <= _MAX_CELL_CHARS:
        return text
    return f"{text[:_KEEP_CELL_CHARS]}... ({len(text):,} characters)"
