"""Objects in a local folder."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from connectors.errors import DiskFull, StorageError, is_full
from connectors.storage.objects import PIECE_BYTES, STAGING_PREFIX, ObjectInfo, Version


class LocalStorage:  # noqa: PLR0904 - the methods of the protocol
    """A local folder. ETags are modification time and size."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def uri(self, path: str) -> str:
        """Return the absolute path as a `file://` URI."""
        return (self.root / path).as_uri()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield what lies below `prefix`, in the order in which a bucket has the same keys.

        What is there but cannot be read is listed too, so that it becomes a rejected document: a link
        that leads nowhere or to a folder (none is followed), a name that is not UTF-8.

        Raises:
            StorageError: The folder does not exist, or one below it cannot be listed.
        """
        top = self.root / prefix
        with _local_errors(top):
            is_there = top.is_dir()
        if not is_there:
            if prefix:
                return
            raise StorageError(f"folder {str(top)!r} does not exist; check the path", uri=self.url)
        # The folders one is in, each with what is left of it: memory for these, not for the tree.
        open_folders = [iter(_entries(top))]
        while open_folders:
            entry = next(open_folders[-1], None)
            if entry is None:
                open_folders.pop()
            elif entry.is_dir(follow_symlinks=False):
                open_folders.append(iter(_entries(Path(entry.path))))
            else:
                yield self._info(entry)

    def _info(self, entry: os.DirEntry[str]) -> ObjectInfo:
        path = entry.path[len(self.url) :].lstrip("/")
        size_bytes, etag = 0, "unreadable"
        try:
            found = entry.stat()
        except OSError:
            # A broken link, or a file that has just gone: `get` will say so, of this one alone.
            pass
        else:
            if stat.S_ISREG(found.st_mode):
                size_bytes = found.st_size
                etag = _etag(found)
        if not path.isascii():
            path = os.fsencode(path).decode("utf-8", errors="backslashreplace")
        return ObjectInfo(path=path, size_bytes=size_bytes, etag=etag)

    def get(self, path: str) -> bytes:
        """Return the file's bytes.

        Raises:
            StorageError: There is no such file, it is none, or it cannot be read.
        """
        file = self.root / path
        with _local_errors(file):
            _require_file(file)
            return file.read_bytes()

    def stream(self, path: str) -> Iterator[bytes]:
        """Yield the file's bytes.

        Raises:
            StorageError: There is no such file, it is none, or it cannot be read.
        """
        source = self.root / path
        with _local_errors(source):
            _require_file(source)
            with source.open("rb") as file:
                while piece := file.read(PIECE_BYTES):
                    yield piece

    def find(self, path: str) -> Version | None:
        """Return the file's bytes and ETag, or None where there is no such file.

        Raises:
            StorageError: It cannot be read.
        """
        file = self.root / path
        with _local_errors(file):
            try:
                with file.open("rb") as opened:
                    return Version(data=opened.read(), etag=_etag(os.fstat(opened.fileno())))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def put(self, path: str, data: bytes) -> None:
        """Stage, sync and rename into place."""
        target = self.root / path
        with _local_errors(target), self._staged(data) as staged, self._locked():
            target.parent.mkdir(parents=True, exist_ok=True)
            _move(staged, target)

    def put_if_absent(self, path: str, data: bytes) -> str | None:
        """Stage, sync and link into place; the link fails where the name is taken."""
        target = self.root / path
        with _local_errors(target), self._staged(data) as staged:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.hardlink_to(staged)
            except FileExistsError:
                held = self.find(path)
                return held.etag if held is not None and held.data == data else None
            _sync(target.parent)
            return _etag(staged.stat())

    def put_if_match(self, path: str, data: bytes, etag: str) -> str | None:
        """Stage, sync, and rename into place while no other process of the sink writes."""
        target = self.root / path
        with _local_errors(target), self._staged(data) as staged, self._locked():
            held = self.find(path)
            if held is None or (held.etag != etag and held.data != data):
                return None
            return _move(staged, target) if held.data != data else held.etag

    def delete(self, path: str) -> None:
        """Remove the file, if it is there."""
        target = self.root / path
        with _local_errors(target), self._locked():
            target.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from replacing files meanwhile; the lock of one that dies is free."""
        folder = self.root / STAGING_PREFIX
        folder.mkdir(parents=True, exist_ok=True)
        # The folder itself: a file would be one more that a listing has.
        opened = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX)
            yield
        finally:
            os.close(opened)

    @contextmanager
    def _staged(self, data: bytes) -> Iterator[Path]:
        folder = self.root / STAGING_PREFIX
        folder.mkdir(parents=True, exist_ok=True)
        # Not tempfile: its files are for their owner only, and a rename would keep that.
        staged = folder / secrets.token_hex(16)
        try:
            with staged.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield staged
        finally:
            staged.unlink(missing_ok=True)


def _etag(found: os.stat_result) -> str:
    return f"{found.st_mtime_ns:x}-{found.st_size:x}"


def _move(staged: Path, target: Path) -> str:
    """Rename into place under a later time than the file there has, and return the ETag."""
    try:
        earlier_ns = target.stat().st_mtime_ns
    except FileNotFoundError:
        earlier_ns = 0
    found = staged.stat()
    if found.st_mtime_ns <= earlier_ns:
        # The clock of a file system ticks in milliseconds, and clocks of machines differ.
        os.utime(staged, ns=(found.st_atime_ns, earlier_ns + 1))
    staged.replace(target)
    _sync(target.parent)
    return _etag(target.stat())


def _sync(folder: Path) -> None:
    """Make the names in a folder outlast a loss of power, as the files' bytes do."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder, by the bytes of its keys: those in folder `a` begin with `a/`.

    Raises:
        StorageError: It cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=_key)
    except FileNotFoundError:
        # It has just gone, and its files with it.
        return []
    except OSError as exc:
        name = str(folder)
        fix = "check the path and its permissions"
        raise StorageError(f"{name!r}: {exc.strerror}; {fix}", uri=name) from exc


def _key(entry: os.DirEntry[str]) -> bytes:
    return os.fsencode(entry.name) + (b"/" if entry.is_dir(follow_symlinks=False) else b"")


def _require_file(file: Path) -> None:
    mode = file.stat().st_mode
    if stat.S_ISREG(mode):
        return
    what = "is no regular file; a pipe, socket or device is not read"
    if stat.S_ISDIR(mode):
        what = "is a folder; a link to one is not followed, so name its target as a source"
    raise StorageError(f"{str(file)!r} {what}", uri=str(file))


@contextmanager
def _local_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        fix = "check path, permissions"
        if is_full(exc):
            fix = "free space or choose another --sink"
            raise DiskFull(f"{str(file)!r}: {exc.strerror}; {fix}", uri=str(file)) from exc
        if exc.errno == errno.ENOENT and file.is_symlink():
            fix = f"the link leads to {str(file.readlink())!r}; mend or remove it"
        elif exc.errno == errno.ENOENT and "\\x" in file.name:
            fix = "if its name is not UTF-8, rename it"
        raise StorageError(f"{str(file)!r}: {exc.strerror}; {fix}", uri=str(file)) from exc
