"""The child process of a reader pool: takes one file at a time, and may be killed at any moment.

Started by `connectors.reader_pool` with one end of a socket pair. Imports of libraries wait for the
first file of their type, so that a child is ready in a tenth of a second.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import signal
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

from connectors.document import Content, Span
from connectors.errors import ConnectorError, DocumentRejected, StorageError
from connectors.readers import Password, ReaderOptions, detect_media_type, load_reader
from connectors.readers.heap import trim

GC_PACE = (50_000, 20, 100)
"""A reader makes a hundred thousand small values that live until it is done: looking for garbage
among them at Python's usual pace takes a sixth of its time."""

_PR_SET_PDEATHSIG = 1
_NOT_THE_DOCUMENT = frozenset({
    errno.EDQUOT,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOSPC,
    errno.EROFS,
})
"""The machine's faults: no other document would fare better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRequest:
    """Asks for a file's content. `name` is the object's name in its corpus."""

    path: Path
    name: str
    media_dir: Path
    password: Password | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewRequest:
    """Asks for a picture of one place in a file."""

    path: Path
    name: str
    span: Span
    max_px: int
    password: Password | None = None


Request = ReadRequest | PreviewRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What became of a request; the traceback is there when the reader itself went wrong."""

    result: Content | bytes | None = None
    error: ConnectorError | None = None
    traceback: str = ""


def main(descriptor: int, parent_pid: int) -> None:
    """Answer requests until the parent hangs up."""
    _follow_parent(parent_pid)
    # Ctrl-C goes to the whole terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.set_threshold(*GC_PACE)
    with Connection(descriptor) as connection:
        options: ReaderOptions = connection.recv()
        while True:
            try:
                request: Request = connection.recv()
            except EOFError:
                return
            # From here on the document is to blame if this process ends.
            connection.send(None)
            connection.send(_answer(request, options))
            trim()


def _follow_parent(parent_pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        # It died before it could be followed.
        os._exit(1)
    # When memory runs out, the kernel should take a reader, not the engine or the run.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


def _answer(request: Request, options: ReaderOptions) -> Reply:
    try:
        return Reply(result=_carry_out(request, options))
    except ConnectorError as exc:
        return Reply(error=exc)
    except MemoryError:
        error = DocumentRejected("the reader ran out of memory", reason="memory")
        return Reply(error=error, traceback=traceback.format_exc())
    except Exception as exc:  # noqa: BLE001 - the border of the process: one file must not end a run
        return Reply(error=_unforeseen(exc), traceback=traceback.format_exc())


def _carry_out(request: Request, options: ReaderOptions) -> Content | bytes | None:
    media_type = detect_media_type(request.path, request.name)
    reader = load_reader(media_type)
    if isinstance(request, ReadRequest):
        options = replace(options, password=request.password)
        return reader.read(request.path, media_type, request.media_dir, options)
    return reader.preview(
        request.path, media_type, request.span, request.max_px, password=request.password
    )


def _unforeseen(exc: Exception) -> ConnectorError:
    if isinstance(exc, OSError) and exc.errno in _NOT_THE_DOCUMENT:
        return StorageError(f"a reader cannot go on: {exc}; free what is used up and resume")
    return DocumentRejected(f"the reader raised {type(exc).__name__}: {exc}", reason="crashed")
