import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from connectors.errors import StorageError, StorageUnavailable
from connectors.storage import STAGING_PREFIX, LocalStorage, open_storage
from tests.fakes.s3_server import FakeStore


@pytest.fixture(params=["local", "s3"])
def storage(request, tmp_path):
    if request.param == "local":
        return LocalStorage(tmp_path / "lake")
    return open_storage(request.getfixturevalue("bucket"))


def test_object_is_read_back_when_put(storage):
    storage.put("a/b.txt", b"one")
    storage.put("a/b.txt", b"two")
    assert storage.get("a/b.txt") == b"two"


def test_replacement_goes_through_only_for_the_version_it_was_made_for(storage):
    assert storage.put_if_match("part", b"new", "0" * 32) is None
    first = storage.put_if_absent("part", b"one")
    second = storage.put_if_match("part", b"two", first)
    assert second not in {None, first}
    assert storage.put_if_match("part", b"lost", first) is None
    # Sent again, as after a lost answer, it is known for what was put.
    assert storage.put_if_match("part", b"two", first) == second
    assert storage.put_if_absent("part", b"two") == second
    assert (storage.find("part").data, storage.find("part").etag) == (b"two", second)
    assert {item.path: item.etag for item in storage.list()} == {"part": second}
    storage.delete("part")
    storage.delete("part")
    assert storage.find("part") is None


def test_first_writer_wins_when_two_put_if_absent(storage):
    assert storage.put_if_absent("claim.json", b"first")
    assert not storage.put_if_absent("claim.json", b"second")
    assert storage.get("claim.json") == b"first"


def test_listing_is_relative_with_sizes_and_etags_when_objects_are_nested(storage):
    for path, data in {"a/1.txt": b"x", "a/b/2.txt": b"yy", "c.txt": b"zzz"}.items():
        storage.put(path, data)
    listed = {i.path: i.size_bytes for i in storage.list() if not i.path.startswith(STAGING_PREFIX)}
    assert listed == {"a/1.txt": 1, "a/b/2.txt": 2, "c.txt": 3}
    assert {item.path for item in storage.list("a")} == {"a/1.txt", "a/b/2.txt"}
    assert list(storage.list("nothing")) == []
    before = next(item.etag for item in storage.list("a/b"))
    storage.put("a/b/2.txt", b"zz!")
    assert next(item.etag for item in storage.list("a/b")) != before


def test_missing_object_says_what_and_where_when_read(storage):
    storage.put("here.txt", b"x")
    with pytest.raises(StorageError, match=r"gone\.txt") as caught:
        storage.get("gone.txt")
    assert not caught.value.retryable


def test_no_staged_file_is_left_when_a_local_put_is_done(tmp_path):
    storage = LocalStorage(tmp_path)
    storage.put("records/part.parquet", b"x")
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["part.parquet"]
    assert list((tmp_path / STAGING_PREFIX).iterdir()) == []


def test_folder_that_is_missing_is_named_when_listed(tmp_path):
    with pytest.raises(StorageError, match="does not exist; check the path"):
        list(LocalStorage(tmp_path / "gone").list())


@pytest.mark.parametrize(
    ("url", "message"),
    [("s3:///x", "names no bucket"), ("s3://me:pw@bucket/x", "holds a password")],
)
def test_url_is_refused_when_it_cannot_be_storage(url, message):
    with pytest.raises(StorageError, match=message):
        open_storage(url)


def test_bucket_that_is_missing_is_named_when_listed(bucket):
    with pytest.raises(StorageError, match="check that bucket 'no-such-bucket' exists") as caught:
        list(open_storage("s3://no-such-bucket/x").list())
    assert not isinstance(caught.value, StorageUnavailable)
    assert bucket


def test_credentials_are_named_as_the_cause_when_wrong(bucket, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(StorageError, match="access denied; the credentials in use") as caught:
        list(open_storage(bucket).list())
    assert "not-the-secret" not in str(caught.value)


def test_credentials_are_asked_for_when_there_are_none(bucket, monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("AWS_") and "ENDPOINT" not in name]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match="no AWS credentials were found"):
        list(open_storage(bucket).list())


def test_silent_store_is_retryable_when_nothing_listens(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageUnavailable, match="check AWS_ENDPOINT_URL"):
        list(open_storage(bucket).list())


@pytest.fixture
def fake_store(monkeypatch):
    """Serve objects from a fake store, and set the environment for it."""
    with ExitStack() as stack:

        def serve(objects, **options):
            store = stack.enter_context(FakeStore(objects, **options))
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                monkeypatch.delenv(name)
            monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            return store

        yield serve


_NAMES = ["a/x", "a.txt", "a-b/y", "aé", "a0", "Z", "a/b/c", "a/b.d", "a/b-e/f", "é/1"]


def test_listing_has_the_same_order_when_local_or_in_a_bucket(tmp_path, fake_store):
    local = LocalStorage(tmp_path)
    for name in _NAMES:
        local.put(name, b"x")
    fake_store(dict.fromkeys(_NAMES, b"x"))
    for prefix in ("", "a"):
        listed = [item.path for item in local.list(prefix)]
        listed = [path for path in listed if not path.startswith(STAGING_PREFIX)]
        assert listed == [item.path for item in open_storage("s3://bucket").list(prefix)]
        assert listed == sorted(listed, key=str.encode)
        assert len(listed) == (len(_NAMES) if not prefix else 4)


def test_listing_is_complete_when_the_store_orders_by_folders(bucket):
    # SeaweedFS does: a/x stands before a-b/y there.
    storage = open_storage(bucket)
    names = {f"{name}-{number}" for name in _NAMES for number in range(110)}
    with ThreadPoolExecutor(8) as threads:
        list(
            threads.map(lambda name: storage.put(name, b"" if name.endswith("7") else b"x"), names)
        )
    listed = [item.path for item in storage.list()]
    assert len(listed) == len(names) == 1100
    assert set(listed) == names


def test_listing_goes_on_when_a_local_entry_cannot_be_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one")
    (tmp_path / "broken.pdf").symlink_to(tmp_path / "gone.pdf")
    (tmp_path / "folder").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "folder")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"two")
    (tmp_path / "z.txt").write_bytes(b"three")
    storage = LocalStorage(tmp_path)
    listed = {item.path: item.size_bytes for item in storage.list()}
    reasons = {
        "broken.pdf": "gone.pdf'; mend or remove",
        r"caf\xe9.txt": "not UTF-8, rename it",
        "linked": "is a folder; a link to one is not followed",
        "loop": "symbolic links",
        "pipe": "is no regular file",
    }
    assert listed == {"a.txt": 3, **dict.fromkeys(reasons, 0), r"caf\xe9.txt": 3, "z.txt": 5}
    for path, reason in reasons.items():
        with pytest.raises(StorageError, match=reason):
            storage.get(path)


def test_listing_goes_on_when_files_and_folders_vanish_under_it(tmp_path):
    storage = LocalStorage(tmp_path)
    for name in ("a.txt", "b.txt", "c/d.txt", "e.txt"):
        storage.put(name, b"x")
    listing = storage.list()
    assert next(listing).path == "a.txt"
    (tmp_path / "b.txt").unlink()
    (tmp_path / "c" / "d.txt").unlink()
    (tmp_path / "c").rmdir()
    # b.txt was seen: it is a document, and reading it says what became of it.
    assert [item.path for item in listing] == ["b.txt", "e.txt"]
    with pytest.raises(StorageError, match="No such file"):
        storage.get("b.txt")


def test_folder_is_named_when_its_name_is_refused(tmp_path):
    with pytest.raises(StorageError, match="name too long; check path"):
        list(LocalStorage(tmp_path / ("x" * 300)).list())


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_every_key_is_listed_and_read_when_obstore_cannot_say_it(fake_store, page):
    objects = {
        "in/": b"", "in/a": b"", "in/a/": b"", "in/a/b": b"1", "in/a//b": b"2", "in/./c": b"3",
        "in/../d": b"4", "in//e": b"5", "in/f/": b"", "in/g": b"6", "in/h%2Fi j+é": b"7",
    }  # fmt: skip
    fake_store(objects, page=page)
    storage = open_storage("s3://bucket/in")
    marks = {"in/", "in/a/", "in/f/"}
    wanted = {key.removeprefix("in/"): data for key, data in objects.items() if key not in marks}
    listed = [item.path for item in storage.list()]
    assert listed == sorted(wanted, key=str.encode)
    assert {path: storage.get(path) for path in listed} == wanted
    assert storage.find("a//gone") is None


def test_unsayable_key_is_refused_when_written(fake_store):
    fake_store({})
    with pytest.raises(StorageError, match="is not written; choose another --sink"):
        open_storage("s3://bucket/out").put("a//b", b"x")


def test_folder_marks_cost_their_page_alone_when_listed(fake_store):
    objects = {f"in/{number:05d}": b"x" for number in range(5000)}
    store = fake_store({"in/": b"", **objects})
    listed = [item.path for item in open_storage("s3://bucket/in").list()]
    assert listed == [key.removeprefix("in/") for key in objects]
    # One page twice, then the rest as it comes.
    assert len(store.requests) <= 8


def test_prefix_is_taken_whole_when_it_has_the_marks_of_an_address(bucket):
    open_storage(f"{bucket}/a?b#c").put("x.txt", b"x")
    assert [item.path for item in open_storage(bucket).list()] == ["a?b#c/x.txt"]
    assert open_storage(f"{bucket}/a?b#c").get("x.txt") == b"x"
