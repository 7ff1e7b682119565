"""Objects by path, in a local folder or an S3 bucket, behind one small protocol.

Sources are listed and read, sinks are written, through the same two classes. Writes are atomic: an
object is there whole or not at all. S3 goes through obstore, with the usual AWS credential chain
(environment, profile, instance) resolved by botocore.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NoReturn, Protocol
from urllib.parse import urlsplit

import botocore.exceptions
import botocore.session
import obstore
from botocore.config import Config
from obstore import exceptions as obstore_errors
from obstore.store import S3Store

from connectors.errors import StorageError, StorageUnavailable

STAGING_PREFIX = "_headrace/staging/"
"""Where a local sink stages objects before the rename: inside the sink (one file system), outside
every folder that readers glob."""

PIECE_BYTES = 8 << 20
"""How much of an object is in memory while it is fetched: a film may have gigabytes."""

_LIST_PAGE = 1000
_PROBE = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """One listed object."""

    path: str
    """Relative to the storage's root, with forward slashes."""
    size_bytes: int
    etag: str


class Storage(Protocol):
    """A folder of objects."""

    url: str

    def uri(self, path: str) -> str:
        """Return the full address of `path`."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects below `prefix`, in path order, while the listing arrives."""

    def get(self, path: str) -> bytes:
        """Return the whole object."""

    def stream(self, path: str) -> Iterator[bytes]:
        """Yield the object's bytes in order, some megabytes at a time."""

    def find(self, path: str) -> bytes | None:
        """Return the whole object, or None where there is none."""

    def put(self, path: str, data: bytes) -> None:
        """Write the object, in place of an older one."""

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Write the object and return True, or return False where there is one already."""


def open_storage(url: str) -> Storage:
    """Return the storage at `url`: `s3://bucket/prefix`, `file:///path` or a local path.

    Raises:
        StorageError: The scheme is unknown or the bucket name is missing.
    """
    parts = urlsplit(url)
    if parts.scheme in {"", "file"}:
        path = parts.path if parts.scheme else url
        return LocalStorage(Path(path).expanduser().resolve())
    if parts.scheme != "s3":
        raise StorageError(
            f"storage {url!r} has scheme {parts.scheme!r}; use s3://bucket/prefix or a local path",
            uri=url,
        )
    if not parts.netloc:
        raise StorageError(f"storage {url!r} names no bucket; use s3://bucket/prefix", uri=url)
    return S3Storage(parts.netloc, parts.path.strip("/"))


def fetch(pieces: Iterable[bytes], file: Path) -> str:
    """Write an object that streams in into a local file, and return the SHA-256 of its bytes.

    Raises:
        StorageError: The file cannot be written; what the storage raises passes through.
    """
    digest = hashlib.sha256()
    try:
        with file.open("wb") as target:
            for piece in pieces:
                digest.update(piece)
                target.write(piece)
    except OSError as exc:
        raise StorageError(
            f"cannot write {str(file)!r}: {exc.strerror}; free space there or set TMPDIR to"
            " another disk",
            uri=file.as_uri(),
        ) from exc
    return digest.hexdigest()


class LocalStorage:
    """A local folder. ETags are modification time and size."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def uri(self, path: str) -> str:
        """Return the absolute path as a `file://` URI."""
        return (self.root / path).as_uri()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the files below `prefix`; symbolic links to folders are not followed.

        Raises:
            StorageError: The folder does not exist or cannot be listed.
        """
        top = self.root / prefix
        if not top.is_dir():
            if prefix:
                return
            raise StorageError(f"folder {str(top)!r} does not exist; check the path", uri=self.url)
        for folder, folders, names in os.walk(top, onerror=_raise_local):
            folders.sort()
            for name in sorted(names):
                file = Path(folder) / name
                with _local_errors(file):
                    stat = file.stat()
                yield ObjectInfo(
                    path=file.relative_to(self.root).as_posix(),
                    size_bytes=stat.st_size,
                    etag=f"{stat.st_mtime_ns:x}-{stat.st_size:x}",
                )

    def get(self, path: str) -> bytes:
        """Return the file's bytes."""
        file = self.root / path
        with _local_errors(file):
            return file.read_bytes()

    def stream(self, path: str) -> Iterator[bytes]:
        """Yield the file's bytes."""
        source = self.root / path
        with _local_errors(source), source.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece

    def find(self, path: str) -> bytes | None:
        """Return the file's bytes, or None where there is no such file."""
        file = self.root / path
        with _local_errors(file):
            try:
                return file.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def put(self, path: str, data: bytes) -> None:
        """Stage, sync and rename into place."""
        target = self.root / path
        with _local_errors(target), self._staged(data) as staged:
            target.parent.mkdir(parents=True, exist_ok=True)
            staged.replace(target)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Stage, sync and link into place; the link fails where the name is taken."""
        target = self.root / path
        with _local_errors(target), self._staged(data) as staged:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.hardlink_to(staged)
            except FileExistsError:
                return False
            return True

    @contextmanager
    def _staged(self, data: bytes) -> Iterator[Path]:
        folder = self.root / STAGING_PREFIX
        folder.mkdir(parents=True, exist_ok=True)
        # Not tempfile: its files are for their owner only, and a rename would keep that.
        staged = folder / secrets.token_hex(16)
        try:
            with staged.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield staged
        finally:
            staged.unlink(missing_ok=True)


class S3Storage:
    """A prefix of an S3 bucket, or of a compatible store named by AWS_ENDPOINT_URL."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._store, self._client, self._signed = _open_bucket(bucket)
        self.endpoint_url = str(self._client.meta.endpoint_url)
        """Address of the object store, for libraries that bring a client of their own."""

    def uri(self, path: str) -> str:
        """Return `s3://bucket/prefix/path`."""
        return f"{self.url}/{path}"

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects below `prefix`; a key ending in `/` is a folder mark, not an object."""
        top = "/".join(part for part in (self.prefix, prefix.rstrip("/")) if part)
        with self._errors(prefix):
            for page in obstore.list(self._store, top or None, chunk_size=_LIST_PAGE):
                for item in page:
                    key = item["path"]
                    if key.endswith("/"):
                        continue
                    yield ObjectInfo(
                        path=key[len(self.prefix) :].lstrip("/"),
                        size_bytes=item["size"],
                        etag=(item["e_tag"] or "").strip('"'),
                    )

    def get(self, path: str) -> bytes:
        """Return the object's bytes."""
        with self._errors(path):
            return obstore.get(self._store, self._key(path)).bytes().to_bytes()

    def stream(self, path: str) -> Iterator[bytes]:
        """Yield the object's bytes; what is lost on the way is asked for again from there on."""
        with self._errors(path):
            found = obstore.get(self._store, self._key(path))
            for piece in found.stream(min_chunk_size=PIECE_BYTES):
                yield bytes(piece)

    def find(self, path: str) -> bytes | None:
        """Return the object's bytes, or None where there is no such object."""
        with self._errors(path):
            try:
                return obstore.get(self._store, self._key(path)).bytes().to_bytes()
            except (obstore_errors.NotFoundError, FileNotFoundError):
                return None

    def put(self, path: str, data: bytes) -> None:
        """Put the object in one request, or in parts where it is large."""
        with self._errors(path):
            obstore.put(self._store, self._key(path), data)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Put with `If-None-Match: *`."""
        with self._errors(path):
            try:
                obstore.put(self._store, self._key(path), data, mode="create", use_multipart=False)
            except obstore_errors.AlreadyExistsError:
                return False
            return True

    def _key(self, path: str) -> str:
        return str(PurePosixPath(self.prefix, path))

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except (obstore_errors.BaseError, OSError) as exc:
            _raise_s3(exc, self, path)

    def diagnose(self) -> Literal["missing", "denied", "silent", "fine"]:
        """Return what a bare request for the bucket says, by HTTP status."""
        try:
            self._client.head_bucket(Bucket=self.bucket)
        except botocore.exceptions.ClientError as exc:
            status = exc.response["ResponseMetadata"]["HTTPStatusCode"]
            return "missing" if status == 404 else "denied" if status in {401, 403} else "silent"
        except botocore.exceptions.NoCredentialsError:
            return "denied"
        except botocore.exceptions.BotoCoreError:
            return "silent"
        return "fine"

    def advise(self, kind: Literal["missing", "denied"]) -> str:
        """Return what an operator should check."""
        if kind == "missing":
            return f"check that bucket {self.bucket!r} exists and the key is spelled right"
        if not self._signed:
            return (
                "no AWS credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,"
                " or AWS_PROFILE"
            )
        return (
            f"the credentials in use may not access bucket {self.bucket!r};"
            " check key, secret and policy"
        )


def _open_bucket(bucket: str) -> tuple[S3Store, Any, bool]:
    """Return the store, a botocore client and whether their requests are signed.

    Raises:
        StorageError: The AWS configuration cannot be resolved.
    """
    try:
        session = botocore.session.Session()
        region = session.get_config_variable("region") or "us-east-1"
        # Resolves the endpoint from environment and profile, and diagnoses what obstore cannot.
        client = session.create_client("s3", region_name=region, config=_PROBE)
        endpoint = str(client.meta.endpoint_url)
        credentials = session.get_credentials()
    except botocore.exceptions.BotoCoreError as exc:
        raise StorageError(f"AWS configuration for bucket {bucket!r}: {exc}", uri=bucket) from exc
    options: dict[str, Any] = {"region": region}
    if ".amazonaws.com" not in endpoint:
        options["endpoint"] = endpoint
    if credentials is None:
        options["skip_signature"] = True
    else:
        frozen = credentials.get_frozen_credentials()
        options["access_key_id"] = frozen.access_key
        options["secret_access_key"] = frozen.secret_key
        if frozen.token:
            options["session_token"] = frozen.token
    store = S3Store(
        bucket,
        client_options={"allow_http": endpoint.startswith("http://"), "connect_timeout": "5s"},
        retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=30)},
        **options,
    )
    return store, client, credentials is not None


_DENIED = (obstore_errors.PermissionDeniedError, obstore_errors.UnauthenticatedError)


def _raise_s3(exc: Exception, storage: S3Storage, path: str) -> NoReturn:
    uri = storage.uri(path) if path else storage.url
    kind: str
    if isinstance(exc, (obstore_errors.NotFoundError, FileNotFoundError)):
        kind = "missing"
    elif isinstance(exc, (*_DENIED, PermissionError)):
        kind = "denied"
    else:
        # obstore reports a refused listing as a generic error, with its status in the text only.
        kind = storage.diagnose()
    if kind == "missing":
        raise StorageError(f"{uri}: not found; {storage.advise('missing')}", uri=uri) from exc
    if kind == "denied":
        raise StorageError(f"{uri}: access denied; {storage.advise('denied')}", uri=uri) from exc
    raise StorageUnavailable(
        f"{uri}: no usable answer from the object store ({type(exc).__name__});"
        " check AWS_ENDPOINT_URL and that the store is running",
        uri=uri,
    ) from exc


def _raise_local(exc: OSError) -> NoReturn:
    name = str(exc.filename)
    raise StorageError(f"{name!r}: {exc.strerror}; check the path and its permissions", uri=name)


@contextmanager
def _local_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        fix = (
            "free space or choose another --sink" if exc.errno == 28 else "check path, permissions"
        )
        raise StorageError(f"{str(file)!r}: {exc.strerror}; {fix}", uri=str(file)) from exc
