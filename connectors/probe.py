"""What a check of storage needs and a run does not: removing an object, and the store's clock."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import PurePosixPath

import botocore.exceptions
from botocore.config import Config

from connectors.errors import StorageError
from connectors.storage import LocalStorage, S3Storage, Storage

_ONE_TRY = Config(connect_timeout=2, read_timeout=3, retries={"total_max_attempts": 1})


def remove(storage: Storage, path: str) -> None:
    """Remove an object that the caller has put.

    Raises:
        StorageError: It is still there.
    """
    try:
        if isinstance(storage, LocalStorage):
            (storage.root / path).unlink()
        elif isinstance(storage, S3Storage):
            key = str(PurePosixPath(storage.prefix, path))
            storage.session.client(_ONE_TRY).delete_object(Bucket=storage.bucket, Key=key)
    except (OSError, botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as exc:
        uri = storage.uri(path)
        raise StorageError(f"{uri}: cannot be removed ({type(exc).__name__})", uri=uri) from exc


def clock_skew_s(storage: S3Storage) -> float | None:
    """Return the seconds that this machine's clock is ahead of the store's; None if not known."""
    try:
        answer = storage.session.client(_ONE_TRY).head_bucket(Bucket=storage.bucket)
    except botocore.exceptions.ClientError as exc:
        answer = exc.response
    except botocore.exceptions.BotoCoreError:
        return None
    date = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("date")
    if not date:
        return None
    return (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()
