"""Looks whether a store keeps the conditions of puts, which two writers are kept apart by."""

from __future__ import annotations

import secrets

from config.errors import ConfigError
from connectors.storage import STATE_PREFIX, Storage


def check_conditions(storage: Storage, what: str = "sink") -> None:
    """Check that the store keeps the conditions of puts: two runs are kept apart by them alone.

    Args:
        storage: The store.
        what: What it is to be, for the message.

    Raises:
        ConfigError: It does not.
    """
    path = f"{STATE_PREFIX}/probe-{secrets.token_hex(8)}"
    etag = storage.put_if_absent(path, b"first")
    try:
        twice = storage.put_if_absent(path, b"second") is not None
        stale = storage.put_if_match(path, b"third", "0" * 32) is not None
        fresh = etag is not None and storage.put_if_match(path, b"fourth", etag) is not None
    finally:
        storage.delete(path)
    if twice or stale or not fresh:
        ignored = "If-None-Match" if twice else "If-Match"
        raise ConfigError(
            f"{what} {storage.url!r}: the store does not keep {ignored}, so two runs could overwrite"
            " each other; use a store with conditional writes (S3, MinIO, SeaweedFS, R2) or a local"
            " folder"
        )
