"""What earlier runs on a sink have used, call by call: what estimates learn from beside the answers."""

from __future__ import annotations

import io

import polars as pl

from connectors.sinks.lake import Lake

_SCHEMA = {
    "request_key": pl.String,
    "stage": pl.String,
    "prompt_tokens": pl.Int64,
    "cached_tokens": pl.Int64,
    "completion_tokens": pl.Int64,
    "later_prompt_tokens": pl.Int64,
    "later_cached_tokens": pl.Int64,
    "embedded_tokens": pl.Int64,
}
_MOST_FILES = 200
"""Files that are read; more say nothing new."""


def load_usage(lake: Lake) -> pl.DataFrame:
    """Return the usage of requests in earlier runs, one row each.

    Raises:
        StorageError: The sink cannot be read.
    """
    paths = [item.path for item in lake.storage.list("runs") if "/usage/" in item.path]
    tables = []
    # The last ones: run ids sort by time.
    for path in sorted(paths)[-_MOST_FILES:]:
        held = lake.storage.find(path)
        if held is not None:
            # Runs of before there were later tokens have none.
            table = pl.scan_parquet(
                io.BytesIO(held.data),
                schema=_SCHEMA,
                missing_columns="insert",
                extra_columns="ignore",
            )
            tables.append(table.collect())
    return pl.concat(tables) if tables else pl.DataFrame(schema=_SCHEMA)
