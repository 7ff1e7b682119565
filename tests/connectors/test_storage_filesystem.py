"""Sources that fsspec opens: file systems of users' own, read only."""

import zipfile

import fsspec
import pytest

from connectors.errors import StorageError, StorageUnavailable
from connectors.storage import LocalStorage, open_source, open_storage

NAMES = ["a/x", "a.txt", "a-b/y", "aé", "a0", "Z", "a/b/c", "a/b.d", "a/b-e/f", "é/1"]


@pytest.fixture(params=["memory", "zip", "local"])
def source(request, tmp_path):
    """The same objects, in a store of each kind."""
    if request.param == "memory":
        files = fsspec.filesystem("memory")
        for name in NAMES:
            files.pipe(f"/{tmp_path.name}/in/{name}", name.encode())
        yield open_source(f"memory://{tmp_path.name}/in")
        files.rm(f"/{tmp_path.name}", recursive=True)
        return
    for name in NAMES:
        LocalStorage(tmp_path / "in").put(name, name.encode())
    if request.param == "local":
        yield open_source(f"local://{tmp_path}/in")
        return
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name in NAMES:
            archive.writestr(name, name)
    yield open_source(f"zip://::{tmp_path}/in.zip")


def test_objects_are_listed_and_read_when_a_file_system_holds_them(source):
    listed = [item for item in source.list() if not item.path.startswith("_headrace/")]
    assert [item.path for item in listed] == sorted(NAMES, key=str.encode)
    assert [b"".join(source.stream(item.path)) for item in listed] == [
        i.path.encode() for i in listed
    ]
    assert [item.size_bytes for item in listed] == [len(i.path.encode()) for i in listed]
    assert all(len(item.etag) > 2 for item in listed)
    assert [item.path for item in source.list("a")] == ["a/b-e/f", "a/b.d", "a/b/c", "a/x"]
    with pytest.raises(StorageError, match=r"gone\.txt.*: not found; check the address") as caught:
        list(source.stream("gone.txt"))
    assert not caught.value.retryable


def test_uri_names_the_object_and_its_archive_when_in_one(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("a/b.txt", "x")
    outer = f"::{tmp_path}/in.zip"
    assert open_source(f"zip://{outer}").uri("a/b.txt") == f"zip://a/b.txt{outer}"
    assert open_source(f"zip://a{outer}").uri("b.txt") == f"zip://a/b.txt{outer}"
    assert [item.path for item in open_source(f"zip://a{outer}").list()] == ["b.txt"]
    assert open_source("memory://b/in/").uri("a.txt") == "memory://b/in/a.txt"


def test_etag_changes_when_a_file_is_written_anew(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one")
    source = open_source(f"local://{tmp_path}")
    before = [item.etag for item in source.list()]
    (tmp_path / "a.txt").write_bytes(b"three")
    assert [item.etag for item in source.list()] != before


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nothing/here", "memory://nothing/here: not found; check the address"),
        ("nope://a/b", "cannot be opened: Protocol not known: nope; use s3://"),
        ("sftp://me:pw@host/in", "address of sftp://host holds a password"),
        ("zip://::sftp://me:pw@host/in.zip", "address of sftp://host holds a password"),
        ("s3://key:pw@bucket/in", "address of s3://bucket holds a password"),
    ],
)
def test_source_is_refused_with_the_reason_when_it_cannot_be_read(url, message):
    with pytest.raises(StorageError, match=message) as caught:
        list(open_source(url).list())
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(("scheme", "package"), [("gs", "gcsfs"), ("az", "adlfs")])
def test_package_is_named_when_it_is_not_installed(scheme, package):
    with pytest.raises(StorageError, match=f"not installed: .*{package}.*install it"):
        open_source(f"{scheme}://bucket/in")


@pytest.mark.parametrize("url", ["gs://bucket/out", "memory://out", "sftp://host/out"])
def test_sink_is_refused_when_it_has_no_conditional_put(url):
    with pytest.raises(StorageError, match="not a sink: .* two runs could both write; use s3://"):
        open_storage(url)


class _Faulty(fsspec.AbstractFileSystem):
    """A user's file system whose errors are its own."""

    protocol = "faulty"

    def ls(self, path, **options):
        if path.endswith("closed"):
            raise PermissionError(path)
        return [{"name": "top/a", "type": "file", "size": None, "ETag": '"1"'}]

    def _open(self, path, mode="rb", **options):
        raise EOFError("the line\nis dead")


@pytest.fixture
def faulty():
    fsspec.register_implementation("faulty", _Faulty, clobber=True)
    return open_source("faulty://top")


def test_errors_are_mapped_when_a_file_system_raises_its_own(faulty):
    (item,) = faulty.list()
    assert (item.path, item.size_bytes, item.etag) == ("a", 0, "1")
    with pytest.raises(StorageUnavailable, match=r"EOFError: the line is dead\); check address"):
        list(faulty.stream("a"))
    with pytest.raises(StorageError, match="access denied; check the credentials"):
        list(open_source("faulty://closed").list())


def test_one_member_is_refused_when_it_is_damaged_in_its_archive(tmp_path):
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "first text")
        archive.writestr("b.txt", "second text")
    path.write_bytes(path.read_bytes().replace(b"first text", b"fierce tex"))
    source = open_source(f"zip://::{path}")
    with pytest.raises(
        StorageError, match=r"a\.txt.*damaged or encrypted in its archive"
    ) as caught:
        list(source.stream("a.txt"))
    assert not isinstance(caught.value, StorageUnavailable)
    assert b"".join(source.stream("b.txt")) == b"second text"


@pytest.mark.parametrize("url", ["s3://[x", "zip://a::http://user:hunter2@[b"])
def test_address_that_cannot_be_split_is_refused_without_being_shown(url):
    with pytest.raises(StorageError, match="cannot be read: a bracket") as caught:
        open_source(url)
    assert "hunter2" not in str(caught.value)
