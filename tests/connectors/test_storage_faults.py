"""What a store's faults come to: what is tried again, what is not, and that no half object is left."""

import itertools

import botocore.session
import pytest

from connectors.errors import StorageError, StorageUnavailable
from connectors.storage import Access, open_storage
from tests.fakes.s3_proxy import Proxy
from tests.fakes.s3_server import FakeStore

MIB = 2**20


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408, 0])
def test_request_is_tried_again_when_the_store_says_later(bucket, status):
    faults = itertools.cycle([status, status, None])
    with FakeStore({"in/a.txt": b"x"}, fault=lambda _: next(faults)) as store:
        storage = open_storage("s3://b/in", Access(endpoint_url=store.url))
        assert storage.get("a.txt") == b"x"
        assert [item.path for item in storage.list()] == ["a.txt"]
    assert len(store.requests) == 6


def test_page_is_tried_again_when_botocore_lists_it(bucket):
    faults = iter([None, 503, 503])
    with FakeStore({"in/": b"", "in/a": b"x"}, fault=lambda _: next(faults, None)) as store:
        storage = open_storage("s3://b/in", Access(endpoint_url=store.url))
        assert [item.path for item in storage.list()] == ["a"]
    assert len(store.requests) == 4


def test_store_is_unavailable_when_it_says_later_each_time(bucket):
    with FakeStore({}, fault=lambda _: 503) as store:
        storage = open_storage("s3://b/in", Access(endpoint_url=store.url))
        with pytest.raises(StorageUnavailable, match="no usable answer") as caught:
            storage.get("a.txt")
    assert caught.value.retryable
    # Four tries, then one look at the bucket.
    assert len(store.requests) == 5


@pytest.mark.parametrize(("status", "message"), [(403, "access denied"), (404, "not found")])
def test_request_is_not_tried_again_when_the_answer_is_no(bucket, status, message):
    with FakeStore({"in/a.txt": b"x"}, fault=lambda number: None if number else status) as store:
        storage = open_storage("s3://b/in", Access(endpoint_url=store.url))
        with pytest.raises(StorageError, match=message) as caught:
            storage.get("a.txt")
    assert not caught.value.retryable
    assert len(store.requests) == 1


def test_region_is_named_when_the_bucket_is_in_another(bucket):
    with FakeStore({}, fault=lambda _: 301, region="eu-central-1") as store:
        storage = open_storage("s3://b/in", Access(endpoint_url=store.url))
        with pytest.raises(StorageError, match="in region 'eu-central-1', .* 'us-east-1'; set AWS"):
            list(storage.list())


def _uploads(storage):
    """Return the unfinished uploads below a storage."""
    client = botocore.session.Session().create_client("s3")
    found = client.list_multipart_uploads(Bucket=storage.bucket, Prefix=storage.prefix)
    return [upload["Key"] for upload in found.get("Uploads", [])]


def test_object_goes_in_parts_when_it_is_large(bucket, object_store):
    data = bytes(range(256)) * (12 * MIB // 256)
    with Proxy(object_store.address, fault=lambda *_: None) as proxy:
        storage = open_storage(bucket, Access(endpoint_url=proxy.url))
        storage.put("small.bin", data[: 5 * MIB - 1])
        storage.put("large.bin", data)
        assert storage.get("large.bin") == data
    parts = {seen.target for seen in proxy.requests if "partNumber=" in seen.target}
    assert len(parts) == 3
    assert all("large.bin" in target for target in parts)
    assert _uploads(storage) == []


@pytest.mark.parametrize("what", ["partNumber=2", "uploadId="])
def test_nothing_is_left_when_a_large_put_breaks_off(bucket, object_store, what):
    first, second = b"1" * (12 * MIB), b"2" * (12 * MIB)

    def fault(method, target):
        is_end = method == "POST" and "partNumber" not in target
        refused = what in target and (what != "uploadId=" or is_end)
        return 403 if refused and method in {"PUT", "POST"} else None

    open_storage(bucket).put("old.bin", first)
    with Proxy(object_store.address, fault) as proxy:
        storage = open_storage(bucket, Access(endpoint_url=proxy.url))
        for path in ("old.bin", "new.bin"):
            with pytest.raises(StorageError):
                storage.put(path, second)
    assert 403 in {seen.status for seen in proxy.requests}
    assert [item.path for item in open_storage(bucket).list()] == ["old.bin"]
    assert open_storage(bucket).get("old.bin") == first
    assert _uploads(storage) == []
