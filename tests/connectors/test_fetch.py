import hashlib
import re

import pytest

from connectors.errors import StorageError
from connectors.storage import LocalStorage, fetch, open_storage
from tests.fakes.served import QuietHandler, Served

DATA = bytes(range(256)) * 100_000


class BreakingStore(Served):
    """Serves DATA by ranges; the first answers break off after nine million bytes."""

    def __init__(self, num_breaks):
        self.num_breaks = num_breaks
        self.asked = []

    def handler(self):
        store = self

        class Handler(QuietHandler):
            def do_GET(self):  # noqa: N802 - the name that the library calls
                store.asked.append(self.headers.get("Range"))
                found = re.match(r"bytes=(\d+)-", store.asked[-1] or "")
                start = int(found[1]) if found else 0
                self.send_response(206 if found else 200)
                if found:
                    self.send_header("Content-Range", f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")
                self.send_header("Content-Length", str(len(DATA) - start))
                self.send_header("ETag", '"one"')
                self.send_header("Last-Modified", "Wed, 21 Oct 2026 07:28:00 GMT")
                self.end_headers()
                breaks = len(store.asked) <= store.num_breaks
                self.wfile.write(DATA[start : start + 9_000_000] if breaks else DATA[start:])
                self.close_connection = breaks

        return Handler


def test_object_is_whole_when_the_connection_breaks_on_the_way(tmp_path, monkeypatch):
    with BreakingStore(num_breaks=2) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        key = fetch(open_storage("s3://bucket").stream("film.mp4"), tmp_path / "film")
    # What has arrived is not asked for again.
    assert store.asked == [None, "bytes=9000000-25599999", "bytes=18000000-25599999"]
    assert key == hashlib.sha256(DATA).hexdigest()
    assert (tmp_path / "film").read_bytes() == DATA


@pytest.mark.parametrize("kind", ["local", "s3"])
@pytest.mark.parametrize("data", [b"", b"x", DATA])
def test_key_is_that_of_the_bytes_when_fetched(kind, data, tmp_path, request):
    storage = LocalStorage(tmp_path / "lake")
    if kind == "s3":
        storage = open_storage(request.getfixturevalue("bucket"))
    storage.put("a/object", data)
    key = fetch(storage.stream("a/object"), tmp_path / "copy")
    assert key == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "copy").read_bytes() == data


def test_error_names_the_copy_when_it_cannot_be_written(tmp_path):
    with pytest.raises(StorageError, match=r"cannot write .*copy.*set TMPDIR") as caught:
        fetch(iter([b"x"]), tmp_path / "gone" / "copy")
    assert caught.value.uri.endswith("/gone/copy")


def test_error_names_the_object_when_it_is_gone(tmp_path):
    (tmp_path / "lake").mkdir()
    with pytest.raises(StorageError, match=r"gone\.pdf"):
        fetch(LocalStorage(tmp_path / "lake").stream("gone.pdf"), tmp_path / "copy")
