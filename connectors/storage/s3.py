"""Objects in an S3 bucket, or in one of a compatible store."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import botocore.exceptions
import obstore
from obstore import exceptions as obstore_errors

from connectors.errors import StorageError, StorageUnavailable
from connectors.storage.access import ONE_TRY, Access, Session
from connectors.storage.objects import PIECE_BYTES, ObjectInfo, Version

if TYPE_CHECKING:
    from obstore import PutMode

_LIST_PAGE = 1000
_MISSING = (obstore_errors.NotFoundError, FileNotFoundError)
_CONDITION_TRIES, _CONDITION_PAUSE_S = 4, 0.2
_UNMET = (obstore_errors.AlreadyExistsError, obstore_errors.PreconditionError)
_DENIED = (obstore_errors.PermissionDeniedError, obstore_errors.UnauthenticatedError)


class S3Storage:
    """A prefix of an S3 bucket, or of one of a compatible store.

    obstore does the work. It cannot say every key: it takes the folder mark `a/` for an object `a`,
    and fails at `a//b` and `./b`. Where such keys are, botocore lists, and it reads them.
    """

    def __init__(self, bucket: str, prefix: str, access: Access | None = None) -> None:
        """Resolve how the bucket is reached; nothing is asked of it yet.

        Raises:
            StorageError: The AWS configuration cannot be resolved.
        """
        self.bucket = bucket
        self.prefix = prefix
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        try:
            self.session = Session(access or Access())
        except (botocore.exceptions.BotoCoreError, ValueError) as exc:
            raise StorageError(f"AWS configuration for {self.url!r}: {exc}", uri=self.url) from exc
        self._skipped = len(prefix) + 1 if prefix else 0
        self._client = self.session.worker
        self._store = self.session.store(bucket)
        self.bucket_region = self.session.region
        """Where the bucket is, as far as the store has said; it says so to `diagnose`."""

    def uri(self, path: str) -> str:
        """Return `s3://bucket/prefix/path`."""
        return f"{self.url}/{path}"

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects below `prefix`; an empty one whose key ends in `/` is a folder mark."""
        top = self._key(prefix).rstrip("/")
        after: str | None = ""
        with self._errors(prefix):
            while after is not None:
                if _is_plain(top) and _is_plain(after):
                    after = yield from self._list_fast(top, after)
                is_odd = after is not None
                # Odd keys seldom come alone.
                while is_odd and after is not None:
                    after, is_odd = yield from self._list_page(top, after)

    def _list_fast(self, top: str, after: str) -> Generator[ObjectInfo, None, str | None]:
        """Yield pages as long as obstore tells them as they are; return the last key, None at the end."""
        pages = obstore.list(self._store, top or None, offset=after or None, chunk_size=_LIST_PAGE)
        try:
            for page in pages:
                # Any empty object may be a folder mark.
                if not all(item["size"] for item in page):
                    return after
                for item in page:
                    yield self._info(item["path"], item["size"], item["e_tag"])
                    after = item["path"]
        except obstore_errors.InvalidPathError:
            return after
        return None

    def _list_page(
        self, top: str, after: str
    ) -> Generator[ObjectInfo, None, tuple[str | None, bool]]:
        """Yield one page with its keys as they are.

        Returns:
            The last key, None at the end, and whether obstore would have failed at the page.
        """
        page = self._client.list_objects_v2(
            Bucket=self.bucket, Prefix=f"{top}/" if top else "", StartAfter=after
        )
        found = page.get("Contents", [])
        for item in found:
            if item["Size"] or not item["Key"].endswith("/"):
                yield self._info(item["Key"], item["Size"], item["ETag"])
        is_odd = any(not item["Size"] or not _is_plain(item["Key"]) for item in found)
        return str(found[-1]["Key"]) if page.get("IsTruncated") else None, is_odd

    def _info(self, key: str, size_bytes: int, etag: str | None) -> ObjectInfo:
        return ObjectInfo(path=key[self._skipped :], size_bytes=size_bytes, etag=_bare(etag))

    def get(self, path: str) -> bytes:
        """Return the object's bytes."""
        with self._errors(path):
            return self._read(path).data

    def stream(self, path: str) -> Iterator[bytes]:
        """Yield the object's bytes; what is lost on the way is asked for again from there on."""
        key = self._key(path)
        with self._errors(path):
            if _is_plain(key):
                for piece in obstore.get(self._store, key).stream(min_chunk_size=PIECE_BYTES):
                    yield bytes(piece)
                return
            found = self._client.get_object(Bucket=self.bucket, Key=key)
            yield from found["Body"].iter_chunks(PIECE_BYTES)

    def find(self, path: str) -> Version | None:
        """Return the object's bytes and ETag, or None where there is no such object."""
        with self._errors(path):
            try:
                return self._read(path)
            except (*_MISSING, self._client.exceptions.NoSuchKey):
                return None

    def _read(self, path: str) -> Version:
        key = self._key(path)
        if _is_plain(key):
            found = obstore.get(self._store, key)
            data = found.bytes().to_bytes()
            return Version(data=data, etag=_bare(found.meta["e_tag"]))
        answer = self._client.get_object(Bucket=self.bucket, Key=key)
        return Version(data=bytes(answer["Body"].read()), etag=_bare(answer["ETag"]))

    def put(self, path: str, data: bytes) -> None:
        """Put the object in one request, or in parts where it is large."""
        key = self._key_to_put(path)
        with self._errors(path):
            obstore.put(self._store, key, data)

    def put_if_absent(self, path: str, data: bytes) -> str | None:
        """Put with `If-None-Match: *`."""
        return self._put_if(path, data, "create")

    def put_if_match(self, path: str, data: bytes, etag: str) -> str | None:
        """Put with `If-Match`."""
        return self._put_if(path, data, {"e_tag": f'"{etag}"'})

    def _put_if(self, path: str, data: bytes, mode: PutMode) -> str | None:
        key = self._key_to_put(path)
        before = _bare(mode["e_tag"]) if isinstance(mode, dict) else None
        with self._errors(path):
            for _ in range(_CONDITION_TRIES):
                try:
                    put = obstore.put(self._store, key, data, mode=mode, use_multipart=False)
                except (*_UNMET, *_MISSING):
                    held = self.find(path)
                    # A put that went through is sent again where its answer was lost, and refused.
                    if held is not None and held.data == data:
                        return held.etag
                    if (None if held is None else held.etag) != before:
                        return None
                    # Refused though the condition holds: a delete is under way, or it erred.
                    time.sleep(_CONDITION_PAUSE_S)
                else:
                    return _bare(put["e_tag"])
        uri = self.uri(path)
        raise StorageUnavailable(
            f"{uri}: the object store refuses a conditional put although its condition holds",
            uri=uri,
        )

    def delete(self, path: str) -> None:
        """Remove the object, if it is there."""
        key = self._key_to_put(path)
        with self._errors(path), suppress(*_MISSING):
            obstore.delete(self._store, key)

    def _key(self, path: str) -> str:
        return f"{self.prefix}/{path}" if self.prefix else path

    def _key_to_put(self, path: str) -> str:
        key = self._key(path)
        if not _is_plain(key):
            uri = self.uri(path)
            raise StorageError(
                f"{uri}: a key with an empty part, `.` or `..` is not written; choose another --sink",
                uri=uri,
            )
        return key

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except (
            obstore_errors.BaseError,
            botocore.exceptions.ClientError,
            botocore.exceptions.BotoCoreError,
            OSError,
        ) as exc:
            _raise_s3(exc, self, path)

    def diagnose(self) -> Literal["missing", "denied", "silent", "fine"]:
        """Return what a bare request for the bucket says, by HTTP status."""
        try:
            self._note_region(self.session.client(ONE_TRY).head_bucket(Bucket=self.bucket))
        except botocore.exceptions.ClientError as exc:
            self._note_region(exc.response)
            status = _status(exc)
            return "missing" if status == 404 else "denied" if status in {401, 403} else "silent"
        except botocore.exceptions.NoCredentialsError:
            return "denied"
        except botocore.exceptions.BotoCoreError:
            return "silent"
        return "fine"

    def _note_region(self, answer: Mapping[str, Any]) -> None:
        headers = answer["ResponseMetadata"].get("HTTPHeaders", {})
        self.bucket_region = headers.get("x-amz-bucket-region", self.session.region)

    def advise(self, kind: Literal["missing", "denied"]) -> str:
        """Return what an operator should check."""
        if kind == "missing":
            return f"check that bucket {self.bucket!r} exists and the key is spelled right"
        profile = self.session.profile
        if self.session.is_anonymous:
            return f"bucket {self.bucket!r} is not public; leave `anonymous` out, or name a profile"
        if self.session.keys is None:
            return (
                "no AWS credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,"
                " or AWS_PROFILE"
            )
        return (
            f"the credentials {f'of profile {profile!r}' if profile else 'in use'} may not access"
            f" bucket {self.bucket!r};"
            " check key, secret and policy"
        )


def _bare(etag: str | None) -> str:
    return (etag or "").strip('"')


def _is_plain(key: str) -> bool:
    """Tell whether obstore can say this key."""
    return not key or not {"", ".", ".."} & set(key.split("/"))


def _status(exc: BaseException) -> int | None:
    """Return the HTTP status of an error of botocore, None for others."""
    if not isinstance(exc, botocore.exceptions.ClientError):
        return None
    return int(exc.response["ResponseMetadata"]["HTTPStatusCode"])


def _raise_s3(exc: Exception, storage: S3Storage, path: str) -> NoReturn:
    uri = storage.uri(path) if path else storage.url
    failure = storage.session.keys and storage.session.keys.failure
    if failure:
        # Not of this object alone, so the run must stop.
        raise StorageUnavailable(
            f"{uri}: the AWS credentials cannot be renewed: {failure}; sign in again, such as with"
            " `aws sso login`, and resume the run",
            uri=uri,
        ) from exc
    kind: str
    if isinstance(exc, _MISSING) or _status(exc) == 404:
        kind = "missing"
    elif isinstance(exc, (*_DENIED, PermissionError)) or _status(exc) in {401, 403}:
        kind = "denied"
    else:
        # obstore reports a refused listing as a generic error, with its status in the text only.
        kind = storage.diagnose()
    if kind == "missing":
        raise StorageError(f"{uri}: not found; {storage.advise('missing')}", uri=uri) from exc
    if kind == "denied":
        raise StorageError(f"{uri}: access denied; {storage.advise('denied')}", uri=uri) from exc
    ours, theirs = storage.session.region, storage.bucket_region
    if theirs != ours:
        raise StorageError(
            f"{uri}: bucket {storage.bucket!r} is in region {theirs!r}, and requests go to {ours!r};"
            f" set AWS_REGION={theirs}, or `region` in the pipeline's storage",
            uri=uri,
        ) from exc
    raise StorageUnavailable(
        f"{uri}: no usable answer from the object store ({type(exc).__name__});"
        f" check AWS_ENDPOINT_URL, that the store is running at {storage.session.endpoint_url}, and"
        " that a session token has not expired",
        uri=uri,
    ) from exc
