"""The journal: what outlasts a process, a machine, a cut line and a store that fails."""

import pytest

from connectors.errors import StorageError, StorageUnavailable
from connectors.sinks.journal import Journal
from connectors.storage import LocalStorage


class Failing(LocalStorage):
    down = True

    def put_if_absent(self, path, data):
        if self.down:
            raise StorageUnavailable("the store is down")
        return super().put_if_absent(path, data)


def test_lines_are_found_by_another_machine_once_they_are_flushed(tmp_path):
    storage = LocalStorage(tmp_path / "sink")
    first = Journal(storage, "journal/s00000", tmp_path / "here")
    assert first.add(["a", "b"]) == 2
    first.flush()
    assert first.add(["c"]) == 1
    elsewhere = Journal(storage, "journal/s00000", tmp_path / "there")
    assert list(elsewhere.lines()) == ["a", "b"]
    # On the same machine the process alone is gone, not what it wrote.
    assert "c" in list(Journal(storage, "journal/s00000", tmp_path / "here").lines())


def test_attempts_never_take_each_others_segments(tmp_path):
    storage = LocalStorage(tmp_path / "sink")
    attempts = [Journal(storage, "journal/s", tmp_path / str(n)) for n in range(3)]
    for number, journal in enumerate(attempts):
        journal.add([f"line {number}"])
        journal.flush()
    found = list(Journal(storage, "journal/s", tmp_path / "new").lines())
    assert sorted(found) == ["line 0", "line 1", "line 2"]


@pytest.mark.parametrize("cut", ["", '{"half', 'x\n{"half'])
def test_cut_line_is_dropped_and_the_next_one_stands_alone(tmp_path, cut):
    storage, file = LocalStorage(tmp_path / "sink"), tmp_path / "file"
    file.write_text(cut, encoding="utf-8")
    whole = [line for line in cut.split("\n")[:-1] if line]
    assert list(Journal(storage, "journal/s", file).lines()) == whole
    journal = Journal(storage, "journal/s", file)
    journal.add(["next"])
    assert list(Journal(storage, "journal/s", file).lines()) == [*whole, "next"]


def test_lines_wait_for_the_next_flush_when_the_store_fails(tmp_path):
    storage = Failing(tmp_path / "sink")
    journal = Journal(storage, "journal/s", tmp_path / "here")
    journal.add(["a"])
    with pytest.raises(StorageUnavailable):
        journal.flush()
    journal.add(["b"])
    storage.down = False
    journal.flush()
    assert list(Journal(storage, "journal/s", tmp_path / "there").lines()) == ["a", "b"]


def test_place_is_named_when_the_file_cannot_be_written(tmp_path):
    (tmp_path / "state").write_text("a file, not a folder", encoding="utf-8")
    journal = Journal(LocalStorage(tmp_path / "sink"), "journal/s", tmp_path / "state" / "file")
    with pytest.raises(StorageError, match="state/file.*HEADRACE_STATE"):
        journal.add(["a"])


def test_nothing_is_left_when_a_journal_is_removed(tmp_path):
    storage = LocalStorage(tmp_path / "sink")
    journal = Journal(storage, "journal/s", tmp_path / "here")
    journal.add(["a"])
    journal.flush()
    journal.remove()
    assert list(storage.list("journal")) == []
    assert not (tmp_path / "here").exists()
