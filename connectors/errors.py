"""What can go wrong between storage and document, by who must act.

ConnectorError
├── StorageError            the operator: wrong bucket, key, address, full disk
│   ├── StorageUnavailable  nobody yet: the same call may go through later (retryable)
│   └── DiskFull            the operator: make room, then resume
└── DocumentRejected        the owner of this document: it becomes a `rejected` row
"""

from __future__ import annotations

import errno
from typing import Literal

RejectionClass = Literal[
    "unknown_type",
    "empty",
    "damaged",
    "encrypted",
    "too_large",
    "timeout",
    "crashed",
    "memory",
    "unreadable_object",
]


class ConnectorError(Exception):
    """Base of everything the connectors raise on purpose."""

    retryable = False


class StorageError(ConnectorError):
    """Storage answered no; `uri` says where. The message carries the fix."""

    def __init__(self, message: str, *, uri: str = "") -> None:
        super().__init__(message)
        self.uri = uri

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_storage_error, (type(self), str(self), self.uri))


class StorageUnavailable(StorageError):
    """Storage did not answer, or said 'later'."""

    retryable = True


class DiskFull(StorageError):
    """A disk has no room left; what is on it stands, and the run goes on when there is room."""


def is_full(exc: OSError) -> bool:
    """Tell whether it says that a disk, or the share of it that one may use, has no room left."""
    return exc.errno in {errno.ENOSPC, errno.EDQUOT}


class DocumentRejected(ConnectorError):
    """This file cannot be read; `reason` says why in one word."""

    def __init__(self, message: str, *, reason: RejectionClass) -> None:
        super().__init__(message)
        self.reason: RejectionClass = reason

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_rejection, (str(self), self.reason))


def _rebuild_storage_error(cls: type[StorageError], message: str, uri: str) -> StorageError:
    return cls(message, uri=uri)


def _rebuild_rejection(message: str, reason: RejectionClass) -> DocumentRejected:
    return DocumentRejected(message, reason=reason)
