"""Objects of any file system that fsspec knows (gs://, az://, sftp://, zip://...), for reading only."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fsspec.core import url_to_fs

from connectors.errors import StorageError, StorageUnavailable
from connectors.storage.objects import PIECE_BYTES, ObjectInfo

_VERSIONS = ("etag", "ETag", "version", "CRC")
_TIMES = ("mtime", "last_modified", "LastModified", "updated", "created")
_MAX_REASON_CHARS = 200
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
"""What `zipfile` raises for a member that it cannot read."""


class FsspecSource:
    """A folder of a file system that brings its own package and reads its own settings.

    It has no conditional put, so it is no sink. ETags are the file system's (an archive's: checksums), or time and size.
    """

    def __init__(self, url: str) -> None:
        """Open the file system.

        Raises:
            StorageError: There is none of that name, or its package is not installed.
        """
        self.url = url if url.endswith("://") else url.rstrip("/")
        with self._errors(url):
            self._files, root = _open(url)
        self._root = root.rstrip("/")

    def uri(self, path: str) -> str:
        """Return the address of `path`; in an archive the place of the archive stands behind it."""
        inner, mark, outer = self.url.partition("::")
        slash = "" if inner.endswith("/") else "/"
        return f"{inner}{slash}{path}{mark}{outer}"

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects below `prefix`, folder by folder, by the bytes of their paths.

        Raises:
            StorageError: The folder does not exist or cannot be listed.
        """
        top = self._full(prefix).rstrip("/")
        with self._errors(self.url):
            self._files.invalidate_cache()
            open_folders = [iter(self._entries(top))]
        while open_folders:
            entry = next(open_folders[-1], None)
            if entry is None:
                open_folders.pop()
                continue
            name = entry["name"].rstrip("/")
            if entry["type"] != "directory":
                yield self._info(name, entry)
                continue
            with self._errors(self.uri(self._path(name))):
                try:
                    open_folders.append(iter(self._entries(name)))
                except FileNotFoundError:
                    # It has just gone, and its files with it.
                    continue

    def _entries(self, folder: str) -> Sequence[Mapping[str, Any]]:
        # Some stores list the mark of a folder in it.
        found = [
            entry
            for entry in self._files.ls(folder, detail=True)
            if entry["name"].strip("/") != folder.strip("/")
        ]
        return sorted(found, key=_key)

    def _info(self, name: str, entry: Mapping[str, Any]) -> ObjectInfo:
        size_bytes = int(entry.get("size") or 0)
        etag = next((str(entry[key]) for key in _VERSIONS if entry.get(key)), "")
        if not etag:
            time = next((entry[key] for key in _TIMES if entry.get(key)), "")
            etag = f"{time}-{size_bytes:x}"
        return ObjectInfo(path=self._path(name), size_bytes=size_bytes, etag=etag.strip('"'))

    def stream(self, path: str) -> Iterator[bytes]:
        """Yield the object's bytes.

        Raises:
            StorageError: There is none, or it may not be read.
        """
        with self._errors(self.uri(path)), self._files.open(self._full(path), "rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}" if self._root else path

    def _path(self, name: str) -> str:
        return name.removeprefix(self._root).lstrip("/")

    @contextmanager
    def _errors(self, uri: str) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except FileNotFoundError as exc:
            raise StorageError(f"{uri}: not found; check the address", uri=uri) from exc
        except PermissionError as exc:
            raise StorageError(f"{uri}: access denied; check the credentials", uri=uri) from exc
        except _DAMAGED as exc:
            if self._files.protocol != "zip":
                raise _silent(uri, exc) from exc
            raise StorageError(
                f"{uri}: damaged or encrypted in its archive: {_said(exc)}; store it outside of it",
                uri=uri,
            ) from exc
        except Exception as exc:
            raise _silent(uri, exc) from exc


def _silent(uri: str, exc: Exception) -> StorageUnavailable:
    return StorageUnavailable(
        f"{uri}: no usable answer ({type(exc).__name__}: {_said(exc)}); check address, credentials"
        " and that the server is running",
        uri=uri,
    )


def _said(exc: Exception) -> str:
    return " ".join(str(exc).split())[:_MAX_REASON_CHARS]


def _open(url: str) -> tuple[Any, str]:
    """Return the file system of an address and the folder in it.

    Raises:
        StorageError: There is none of that name, or its package is not installed.
    """
    try:
        files, root = url_to_fs(url)
    except ImportError as exc:
        raise StorageError(
            f"storage {url!r} needs a package that is not installed: {exc}; install it into this"
            " environment, or use s3:// or a folder",
            uri=url,
        ) from exc
    except ValueError as exc:
        raise StorageError(
            f"storage {url!r} cannot be opened: {exc}; use s3://bucket/prefix, a local path, or an"
            " address that fsspec knows, such as gs://bucket/prefix",
            uri=url,
        ) from exc
    return files, str(root)


def _key(entry: Mapping[str, Any]) -> bytes:
    name = str(entry["name"]).rstrip("/")
    return (f"{name}/" if entry["type"] == "directory" else name).encode(errors="surrogateescape")
