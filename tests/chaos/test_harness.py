"""The chaos tests see what they look for: these make it happen."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.chaos.checks import check_manifest, check_paid, check_tables
from tests.chaos.watcher import Watcher
from tests.chaos.world import IN_FLIGHT, JOURNAL_WINDOW

PARTS = {"documents/s0": "path", "chunks/s0": "path", "records/stage=kind/s0": "row_key"}


@pytest.fixture
def lake(tmp_path):
    """A sink with one part of each table."""
    for name, column in PARTS.items():
        write(tmp_path / f"{name}.parquet", {column: ["a", "b"], "ordinal": [0, 0]})
    return tmp_path


def write(file, columns):
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)


def look(lake):
    watcher = Watcher(str(lake))
    watcher.look()
    return watcher


def test_watcher_is_content_when_every_row_stands_once(lake):
    watcher = look(lake)
    assert watcher.seen == []
    assert watcher.most_rows == 6


@pytest.mark.parametrize(("name", "column"), PARTS.items())
def test_watcher_tells_when_a_row_stands_in_two_parts(lake, name, column):
    write(lake / f"{name}1.parquet", {column: ["b"], "ordinal": [0]})
    (seen,) = look(lake).seen
    assert "stands 2 times" in seen


def test_watcher_tells_when_a_part_is_broken(lake):
    part = lake / "documents" / "s0.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    (seen,) = look(lake).seen
    assert "cannot be read" in seen


def test_watcher_tells_when_something_else_lies_among_the_parts(lake):
    (lake / "chunks" / "s0.parquet.tmp").write_bytes(b"")
    (seen,) = look(lake).seen
    assert "is none" in seen


def test_tables_are_refused_when_a_row_is_lost_or_other(world, reference, tmp_path):
    def put(parts):
        for name, data in parts.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(data)

    put(reference.parts)
    check_tables(str(tmp_path), reference)
    name = next(name for name in reference.parts if name.startswith("records/stage=title"))
    whole = pq.read_table(tmp_path / name)
    pq.write_table(whole.slice(1), tmp_path / name)
    with pytest.raises(AssertionError, match="lost"):
        check_tables(str(tmp_path), reference)
    pq.write_table(pa.concat_tables([whole, whole.slice(1)]), tmp_path / name)
    with pytest.raises(AssertionError, match="doubled"):
        check_tables(str(tmp_path), reference)
    place = whole.column_names.index("title")
    other = pa.array(["another line"] * len(whole), whole.schema.field("title").type)
    pq.write_table(whole.set_column(place, whole.schema.field("title"), other), tmp_path / name)
    with pytest.raises(AssertionError, match=r"columns \['title'\]"):
        check_tables(str(tmp_path), reference)


def test_manifest_is_refused_when_its_counts_do_not_add_up(reference):
    stages = {"kind": {"inputs": reference.num_inputs, "outcomes": {"succeeded": 3}}}
    with pytest.raises(AssertionError):
        check_manifest({"verdict": "complete", "stages": stages}, reference)


def test_calls_are_refused_when_more_were_paid_than_a_kill_can_lose(reference):
    assert check_paid(reference.paid, reference, 0) == 0
    some = type(reference.paid)(dict.fromkeys([*reference.paid][: IN_FLIGHT + JOURNAL_WINDOW], 1))
    assert check_paid(reference.paid + some, reference, 1) == some.total()
    with pytest.raises(AssertionError):
        check_paid(reference.paid + some, reference, 0)
    with pytest.raises(AssertionError):
        check_paid(reference.paid + some + some, reference, 1)
