"""Which folder holds the records of a stage: a new one for each set of output columns.

A part with other columns among the old ones would break them: over one glob Polars raises on it and
DuckDB drops its columns. So the sink keeps, by number, the columns that a stage has had
(`_headrace/schemas/<stage>/<n>.json`), and a run writes where its own are: number 1 to
`records/stage=NAME`, later ones to `records/stage=NAME@2` and on. Old folders stay as they are, and a
stage that gets earlier columns back goes back to their folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from config.pipeline import StageConfig
from connectors.sinks.columns import describe_columns
from connectors.sinks.lake import Lake
from connectors.storage import STATE_PREFIX

_SCHEMAS = f"{STATE_PREFIX}/schemas"


def claim_record_tables(
    lake: Lake, stages: Sequence[StageConfig], *, routed: bool = False
) -> dict[str, str]:
    """Return the folder that each stage writes to, such as `records/stage=kind@2`, by stage.

    New columns are given their number in the sink for good; of runs that begin at once, all see the
    same.

    Args:
        lake: The run's sink.
        stages: The run's stages.
        routed: Whether records say by which route and host they were answered.

    Raises:
        StorageError: The sink cannot be read or written.
    """
    return {stage.name: _folder(stage, _claim(lake, stage, routed=routed)) for stage in stages}


def find_record_tables(
    lake: Lake,
    stages: Sequence[StageConfig],
    manifest: Mapping[str, Any] | None = None,
    *,
    routed: bool = False,
) -> dict[str, str]:
    """Return the folder that a run's records are in, by stage; nothing is written.

    Args:
        lake: The run's sink.
        stages: The run's stages.
        manifest: The run's manifest, which says it; None where it has not ended.
        routed: Whether records say by which route and host they were answered.

    Raises:
        StorageError: The sink cannot be read.
    """
    told = {} if manifest is None else manifest["stages"]
    return {
        stage.name: told.get(stage.name, {}).get("table")
        or _folder(stage, _find(lake, stage, routed=routed))
        for stage in stages
    }


def _claim(lake: Lake, stage: StageConfig, *, routed: bool) -> int:
    columns = _columns(stage, routed=routed)
    number = _find(lake, stage, routed=routed)
    while lake.claim(_path(stage, number), columns) != columns:
        # Another run has just given it to columns of its own.
        number += 1
    return number


def _find(lake: Lake, stage: StageConfig, *, routed: bool) -> int:
    """Return the number of the stage's columns, newest first; the next one where they are new."""
    columns = _columns(stage, routed=routed)
    held = sorted(_numbers(lake, stage), reverse=True)
    for number in held:
        if lake.find_json(_path(stage, number)) == columns:
            return number
    return held[0] + 1 if held else 1


def _numbers(lake: Lake, stage: StageConfig) -> list[int]:
    names = [item.path.rsplit("/", maxsplit=1)[-1] for item in lake.storage.list(_folder_of(stage))]
    stems = [name.removesuffix(".json") for name in names if name.endswith(".json")]
    return [int(stem) for stem in stems if stem.isdecimal()]


def _columns(stage: StageConfig, *, routed: bool) -> dict[str, Any]:
    columns = {"columns": describe_columns(stage.output)}
    return {**columns, "routed": True} if routed else columns


def _folder_of(stage: StageConfig) -> str:
    return f"{_SCHEMAS}/{stage.name}"


def _path(stage: StageConfig, number: int) -> str:
    return f"{_folder_of(stage)}/{number}.json"


def _folder(stage: StageConfig, number: int) -> str:
    # `@` is in no stage's name.
    return f"records/stage={stage.name}" + (f"@{number}" if number > 1 else "")
