"""Objects by path, in a local folder or an S3 bucket, behind one small protocol.

Sources are listed and read, sinks are written, through the same two classes. Writes are atomic: an
object is there whole or not at all. S3 goes through obstore, with the usual AWS credential chain
(environment, profile, SSO, instance) resolved by botocore.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from connectors.errors import StorageError
from connectors.storage.access import Access
from connectors.storage.local import LocalStorage
from connectors.storage.objects import STAGING_PREFIX, ObjectInfo, Storage
from connectors.storage.s3 import S3Storage

__all__ = [
    "STAGING_PREFIX",
    "Access",
    "LocalStorage",
    "ObjectInfo",
    "S3Storage",
    "Storage",
    "open_storage",
]


def open_storage(url: str, access: Access | None = None) -> Storage:
    """Return the storage at `url`: `s3://bucket/prefix`, `file:///path` or a local path.

    Args:
        url: Where it is.
        access: How to get into a bucket; by the environment where None.

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
    return S3Storage(parts.netloc, parts.path.strip("/"), access)
