"""Checks of source and sink: reached, allowed, and written with conditions that hold."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress

from connectors.errors import StorageError, StorageUnavailable
from connectors.probe import clock_skew_s, remove
from connectors.storage import (
    STAGING_PREFIX,
    STATE_PREFIX,
    Access,
    LocalStorage,
    S3Storage,
    Source,
    Storage,
    open_source,
    open_storage,
)
from flows.checks.finding import Finding, fail, ok, warn
from flows.checks.machine import nearest

MAX_SKEW_S = 60.0
"""Seconds between this clock and the store's that still pass; S3 refuses requests at 15 minutes."""

_CREDENTIALS = "export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=..."
_ANOTHER = "headrace doctor --source s3://BUCKET/PREFIX --sink s3://BUCKET/PREFIX"
_ADDRESS = "export AWS_ENDPOINT_URL=http://HOST:PORT"


def check_source(url: str, access: Access | None = None) -> Sequence[Finding]:
    """Return whether the source can be listed and its first object read."""
    try:
        storage = open_source(url, access)
    except StorageError as exc:
        return [fail("source", str(exc), _ANOTHER)]
    if isinstance(storage, S3Storage):
        refused = _refused("source", storage)
        if refused is not None:
            return [refused]
    try:
        first = next(iter(storage.list()), None)
        if first is None:
            return [warn("source", f"{storage.url} holds no object", f"ls {url}")]
        next(storage.stream(first.path), b"")
    except StorageError as exc:
        return [_failed("source", storage, exc)]
    return [ok("source", f"{storage.url} is listed and read; its first object is {first.path}")]


def check_sink(url: str, access: Access | None = None, *, check: str = "sink") -> Sequence[Finding]:
    """Return whether a sink or cache takes a conditional put; what is written is removed again."""
    try:
        storage = open_storage(url, access)
    except StorageError as exc:
        return [fail(check, str(exc), _ANOTHER)]
    if isinstance(storage, S3Storage):
        refused = _refused(check, storage)
        if refused is not None:
            return [refused]
        return [_put(check, storage), *(_clock(storage) if check == "sink" else [])]
    assert isinstance(storage, LocalStorage)
    staging = storage.root / STAGING_PREFIX
    there = nearest(staging)
    finding = _put(check, storage)
    # Folders that the probe made go again, unless somebody has put something into them since.
    with suppress(OSError):
        for folder in (staging, *staging.parents):
            if folder == there:
                break
            folder.rmdir()
    return [finding]


def _put(check: str, storage: Storage) -> Finding:
    """Put an object twice on condition that it is not there: once it must work, once not."""
    path = f"{STATE_PREFIX}/doctor-{secrets.token_hex(8)}"
    try:
        if not storage.put_if_absent(path, b"first"):
            return fail(check, f"{storage.url} refuses a conditional put of a new object", _STORE)
        try:
            holds = not storage.put_if_absent(path, b"second")
        finally:
            remove(storage, path)
    except StorageError as exc:
        return _failed(check, storage, exc)
    if not holds:
        says = f"{storage.url} ignores If-None-Match, so two runs could overwrite each other"
        return fail(check, says, _STORE)
    return ok(check, f"{storage.url} takes conditional puts; the probe is removed again")


_STORE = "headrace doctor --sink s3://BUCKET/PREFIX of a store with conditional writes"


def _refused(check: str, storage: S3Storage) -> Finding | None:
    """Return what a bare request for the bucket says, if it says no; it is quick to fail."""
    said = storage.diagnose()
    if said == "fine":
        return None
    if said == "silent":
        says = f"{storage.url}: no usable answer from {storage.session.endpoint_url}"
        return fail(check, says, _ADDRESS)
    mend = _CREDENTIALS if said == "denied" else f"aws s3 mb s3://{storage.bucket}"
    return fail(check, f"{storage.url}: {said}; {storage.advise(said)}", mend)


def _failed(check: str, storage: Source, exc: StorageError) -> Finding:
    if isinstance(exc, StorageUnavailable):
        return fail(check, str(exc), _ADDRESS)
    local = isinstance(storage, LocalStorage)
    return fail(check, str(exc), f"ls -ld {storage.url}" if local else _CREDENTIALS)


def _clock(storage: S3Storage) -> Sequence[Finding]:
    skew_s = clock_skew_s(storage)
    if skew_s is None:
        return []
    says = f"{abs(skew_s):.0f} s apart from the object store's"
    if abs(skew_s) > MAX_SKEW_S:
        return [warn("clock", f"{says}; S3 refuses requests at 900 s", "timedatectl set-ntp true")]
    return [ok("clock", says)]
