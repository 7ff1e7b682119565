"""Copies an object onto this machine: readers open whole local files.

A reader that fetched lazily would take a fault of the network for a damaged file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from connectors.errors import DiskFull, StorageError, is_full


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
        raise (DiskFull if is_full(exc) else StorageError)(
            f"cannot write {str(file)!r}: {exc.strerror}; free space there or set TMPDIR to"
            " another disk",
            uri=file.as_uri(),
        ) from exc
    return digest.hexdigest()
