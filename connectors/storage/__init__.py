"""Objects by path, in a local folder or an S3 bucket, behind one small protocol.

Sources are listed and read, sinks are written, through the same two classes. Writes are atomic: an
object is there whole or not at all. S3 goes through obstore, with the usual AWS credential chain
(environment, profile, SSO, instance) resolved by botocore. What else fsspec knows can be a source.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from connectors.errors import StorageError
from connectors.storage.access import Access
from connectors.storage.fetching import fetch
from connectors.storage.filesystem import FsspecSource
from connectors.storage.local import LocalStorage
from connectors.storage.objects import (
    STAGING_PREFIX,
    STATE_PREFIX,
    ObjectInfo,
    Source,
    Storage,
    Version,
)
from connectors.storage.s3 import S3Storage

__all__ = [
    "STAGING_PREFIX",
    "STATE_PREFIX",
    "Access",
    "LocalStorage",
    "ObjectInfo",
    "S3Storage",
    "Source",
    "Storage",
    "Version",
    "fetch",
    "open_source",
    "open_storage",
]


_LOCAL = frozenset({"", "file"})


def open_source(url: str, access: Access | None = None) -> Source:
    """Return what can be read at `url`: all that `open_storage` takes, and what else fsspec knows.

    Args:
        url: Where it is.
        access: How to get into a bucket; by the environment where None.

    Raises:
        StorageError: The address cannot be opened or holds a password.
    """
    parts = _split(url)
    if parts.scheme in {*_LOCAL, "s3"}:
        return open_storage(url, access)
    _check_password(url)
    return FsspecSource(url)


def open_storage(url: str, access: Access | None = None) -> Storage:
    """Return the storage at `url`: `s3://bucket/prefix`, `file:///path` or a local path.

    Args:
        url: Where it is.
        access: How to get into a bucket; by the environment where None.

    Raises:
        StorageError: It can at most be a source, or the bucket name is missing.
    """
    _check_password(url)
    parts = _split(url)
    if parts.scheme in _LOCAL:
        path = parts.path if parts.scheme else url
        return LocalStorage(Path(path).expanduser().resolve())
    if parts.scheme != "s3":
        raise StorageError(
            f"{parts.scheme}:// can be a source, not a sink: it has no put on condition that nothing is"
            " there, so two runs could both write; use s3://bucket/prefix (a compatible store will do)"
            " or a local folder",
            uri=url,
        )
    # Not the parts: `?` and `#` may stand in a key.
    bucket, _, prefix = url.partition("://")[2].partition("/")
    if not bucket:
        raise StorageError(f"storage {url!r} names no bucket; use s3://bucket/prefix", uri=url)
    return S3Storage(bucket, prefix.strip("/"), access)


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as exc:
        # Not shown: it may hold a password.
        scheme = url.partition("://")[0]
        raise StorageError(
            f"an address of {scheme}:// cannot be read: a bracket in its host is not closed, or"
            " it has characters that no host has"
        ) from exc


def _check_password(url: str) -> None:
    """Check that the address holds no password; those in an archive's are looked at too.

    Raises:
        StorageError: It does. Nothing of it is shown but the host.
    """
    for parts in map(_split, url.split("::")):
        if parts.password is not None:
            raise StorageError(
                f"the address of {parts.scheme}://{parts.hostname} holds a password, which would reach"
                " logs and records; use an AWS profile, or fsspec's own configuration"
            )
