import os

import pytest

from connectors.errors import StorageError, StorageUnavailable
from connectors.storage import STAGING_PREFIX, LocalStorage, open_storage


@pytest.fixture(params=["local", "s3"])
def storage(request, tmp_path):
    if request.param == "local":
        return LocalStorage(tmp_path / "lake")
    return open_storage(request.getfixturevalue("bucket"))


def test_object_is_read_back_when_put(storage):
    storage.put("a/b.txt", b"one")
    storage.put("a/b.txt", b"two")
    assert storage.get("a/b.txt") == b"two"


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
    [("gs://bucket/x", "scheme 'gs'; use s3://"), ("s3:///x", "names no bucket")],
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
