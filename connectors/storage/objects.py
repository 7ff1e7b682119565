"""What a storage is: a folder of objects with paths below it, and how to get into it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

PIECE_BYTES = 8 << 20
"""How much of an object is in memory while it streams: a film may have gigabytes."""

STATE_PREFIX = "_headrace"
"""Where a sink keeps what it knows of itself, outside every folder that readers glob."""

STAGING_PREFIX = f"{STATE_PREFIX}/staging/"
"""Where a local sink stages objects before the rename: inside the sink (one file system), outside
every folder that readers glob."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """One listed object."""

    path: str
    """Relative to the storage's root, with forward slashes."""
    size_bytes: int
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """An object as it was at one moment."""

    data: bytes
    etag: str


class Source(Protocol):
    """A folder of objects to read."""

    url: str

    def uri(self, path: str) -> str:
        """Return the full address of `path`."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects below `prefix` while the listing arrives.

        They come in the order of their paths' bytes, as S3 has it; where a compatible store has
        another one (SeaweedFS goes folder by folder), in that.
        """

    def stream(self, path: str) -> Iterator[bytes]:
        """Yield the object's bytes in order, some megabytes at a time."""


class Storage(Source, Protocol):
    """A folder of objects that can be written too, also on a condition.

    The conditional puts are what several machines agree by. One whose answer was lost is known again
    by its bytes, so what must tell two writers apart stands in the object.
    """

    def get(self, path: str) -> bytes:
        """Return the whole object."""

    def find(self, path: str) -> Version | None:
        """Return the whole object, or None where there is none."""

    def put(self, path: str, data: bytes) -> None:
        """Write the object, in place of an older one."""

    def put_if_absent(self, path: str, data: bytes) -> str | None:
        """Write the object and return its ETag; None where there is another one already."""

    def put_if_match(self, path: str, data: bytes, etag: str) -> str | None:
        """Replace the object that has this ETag and return the new one; None where it has another."""

    def delete(self, path: str) -> None:
        """Remove the object, if it is there."""
