"""What must hold when a disturbed run is complete, next to one that nothing disturbed."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from connectors.storage import open_storage
from tests.chaos.driver import Pace
from tests.chaos.watcher import TABLES
from tests.chaos.world import IN_FLIGHT, JOURNAL_WINDOW


class Reference(NamedTuple):
    """An undisturbed run."""

    parts: Mapping[str, bytes]
    paid: Counter[str]
    num_inputs: int
    pace: Pace


def parts_of(sink: str) -> dict[str, bytes]:
    """Return the bytes of all parts of a sink's tables, by name."""
    storage = open_storage(sink)
    return {item.path: storage.get(item.path) for table in TABLES for item in storage.list(table)}


def inputs_of(manifest: Mapping[str, Any]) -> int:
    """Return how many questions a run had, those about parts of what is reduced included."""
    return sum(stage["inputs"] + stage["parts"] for stage in manifest["stages"].values())


def check_tables(sink: str, reference: Reference) -> None:
    """Check that no row is lost, doubled or another one, and that every part has the same bytes."""
    parts = parts_of(sink)
    for table in TABLES:
        want, have = _rows(reference.parts, table), _rows(parts, table)
        assert not want - have, f"{table}: lost {list(want - have)[:3]}"
        assert not have - want, f"{table}: doubled or strange {list(have - want)[:3]}"
    assert parts.keys() == reference.parts.keys()
    other = [name for name, data in parts.items() if data != reference.parts[name]]
    assert not other, "\n".join(_difference(name, parts, reference.parts) for name in other)


def check_counts(manifest: Mapping[str, Any]) -> None:
    """Check that the manifest says complete and its counts add up."""
    assert manifest["verdict"] == "complete"
    for name, stage in manifest["stages"].items():
        assert stage["inputs"] == sum(stage["outcomes"].values()), (name, stage)


def check_manifest(manifest: Mapping[str, Any], reference: Reference) -> None:
    """Check that the manifest tells of all inputs, and its counts add up."""
    check_counts(manifest)
    assert inputs_of(manifest) == reference.num_inputs


def check_paid(paid: Counter[str], reference: Reference, num_kills: int) -> int:
    """Check that no more was paid than what was under way at a kill; return the excess."""
    assert paid.keys() == reference.paid.keys()
    limit = reference.num_inputs + num_kills * (IN_FLIGHT + JOURNAL_WINDOW)
    assert paid.total() <= limit
    # An attempt asks a question as often as a run does, at most.
    often = {key: count for key, count in paid.items() if count > reference.paid[key] + num_kills}
    assert not often
    return (paid - reference.paid).total()


def _rows(parts: Mapping[str, bytes], table: str) -> Counter[tuple[Any, ...]]:
    rows: Counter[tuple[Any, ...]] = Counter()
    for name, data in parts.items():
        if name.startswith(f"{table}/"):
            found = pq.read_table(io.BytesIO(data), columns=list(TABLES[table])).to_pylist()
            rows.update((name.rsplit("/", 1)[0], *row.values()) for row in found)
    return rows


def _difference(name: str, parts: Mapping[str, bytes], wanted: Mapping[str, bytes]) -> str:
    """Return in which columns a part differs, for a message."""
    have, want = (pq.read_table(io.BytesIO(side[name])) for side in (parts, wanted))
    columns = [c for c in want.column_names if c not in have.column_names or have[c] != want[c]]
    return f"{name}: other bytes; columns {columns or 'the same'}"
