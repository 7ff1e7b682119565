"""Runs the readers in child processes that can be killed: the border against hostile files.

A reader that hangs, crashes or eats memory costs one rejected document. Children are started by
exec, never by fork: a fork copies the locks of threads that are not there any more, and spawning
through `multiprocessing` would import the caller's main module (Prefect, the CLI) into every child.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

import connectors
from connectors.document import Content, Span
from connectors.errors import ConnectorError, DocumentRejected
from connectors.readers import Password, ReaderOptions
from connectors.readers.child import PreviewRequest, ReadRequest, Reply, Request

logger = logging.getLogger(__name__)

DEFAULT_MEMORY_BYTES = 4 << 30
_WATCH_INTERVAL_S = 0.05
_MAX_STARTS = 3
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_CLOSED = "the reader pool is closed; open a new one to read more documents"
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from connectors.readers.child import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)


class ReaderPool:
    """Reads files in child processes. Blocking, and safe to call from several threads at once."""

    def __init__(
        self,
        num_processes: int,
        options: ReaderOptions,
        timeout_s: float = 120.0,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
    ) -> None:
        """Prepare a pool; children start with the first files.

        Args:
            num_processes: Most files that are read at the same time.
            options: How documents are read.
            timeout_s: Most seconds for one call.
            memory_bytes: Most resident memory of one child. Resident, because an address space
                limit would count what libraries only reserve, and turn a full one into a crash.

        Raises:
            ConnectorError: The OCR program, or what hears speech, is not installed.
            ValueError: There would be no process at all.
        """
        if num_processes < 1:
            raise ValueError(f"num_processes is {num_processes}; it must be at least 1")
        if options.ocr == "tesseract":
            # Only for this choice: the import costs OpenCV.
            from connectors.readers.ocr import check_ocr  # noqa: PLC0415

            check_ocr(options.ocr)
        if options.speech != "off":
            from connectors.readers.speech import check_speech  # noqa: PLC0415 - it costs PyAV

            check_speech(options.speech)
        self._options = options
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._slots: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        for _ in range(num_processes):
            self._slots.put(None)
        self._lock = threading.Lock()
        self._children: set[_Child] = set()
        self._closed = False
        # A child dies with the thread that started it (PR_SET_PDEATHSIG counts threads, not
        # processes), so one thread starts them all and stays until the pool is closed.
        self._starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader-pool")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def read(
        self, path: Path, name: str, media_dir: Path, *, password: Password | None = None
    ) -> Content:
        """Return the content of a local file; JPEGs of its pages or frames go into `media_dir`.

        Args:
            path: The file.
            name: The object's name in its corpus; breaks ties in finding the type.
            media_dir: An existing folder.
            password: Opens the file where it is encrypted.

        Raises:
            DocumentRejected: The file cannot be read; its reader was killed where it had to be.
            StorageError: `media_dir` cannot be written.
            ConnectorError: The pool was closed meanwhile.
        """
        request = ReadRequest(path=path, name=name, media_dir=media_dir, password=password)
        result = self._call(request)
        assert isinstance(result, Content)  # what `Reader.read` returns
        return result

    def preview(
        self,
        path: Path,
        name: str,
        span: Span,
        max_px: int = 480,
        *,
        password: Password | None = None,
    ) -> bytes | None:
        """Return a JPEG of the page or frame at `span`, at most `max_px` wide and high.

        Returns:
            None for sheets and text, which have no picture.

        Raises:
            DocumentRejected: There is no such page or frame, or drawing it failed.
            ConnectorError: The pool was closed meanwhile.
        """
        result = self._call(
            PreviewRequest(path=path, name=name, span=span, max_px=max_px, password=password)
        )
        assert not isinstance(result, Content)  # what `Reader.preview` returns
        return result

    def close(self) -> None:
        """Kill all children and wait for them; calls under way end with `ConnectorError`."""
        with self._lock:
            self._closed = True
            children = set(self._children)
        self._starter.shutdown(wait=True)
        with self._lock:
            children |= self._children
        for child in children:
            child.kill()
        while True:
            try:
                idle = self._slots.get_nowait()
            except queue.Empty:
                break
            if idle is not None:
                idle.hang_up()
        # Threads that wait for a child wake up one after the other and find the pool closed.
        self._slots.put(None)

    def _call(self, request: Request) -> Content | bytes | None:
        for _ in range(_MAX_STARTS):
            with self._borrowed() as child:
                reply = child.call(request, self._timeout_s, self._memory_bytes)
            if reply is not None:
                break
        else:
            raise ConnectorError(
                f"{_MAX_STARTS} reader processes ended before they took a file; to see why, run "
                f"{sys.executable} -c 'import connectors.readers.child'"
            )
        if reply.error is not None:
            if reply.traceback:
                logger.warning("document %s: %s\n%s", request.name, reply.error, reply.traceback)
            raise reply.error
        return reply.result

    @contextmanager
    def _borrowed(self) -> Iterator[_Child]:
        """Lend a live child; afterwards take it back, or leave its place to a new one.

        Raises:
            DocumentRejected: The child crashed.
            ConnectorError: The pool is closed.
        """
        child = self._slots.get()
        try:
            if self._closed:
                raise ConnectorError(_CLOSED)
            if child is None or not child.is_alive():
                if child is not None:
                    self._discard(child)
                child = self._start()
            yield child
        except (_ChildLost, OSError) as exc:
            if self._closed:
                raise ConnectorError(_CLOSED) from exc
            raise DocumentRejected(str(exc), reason="crashed") from exc
        finally:
            if child is not None and not child.is_alive():
                self._discard(child)
                child = None
            self._slots.put(child)

    def _start(self) -> _Child:
        try:
            return self._starter.submit(self._spawn).result()
        except RuntimeError as exc:
            raise ConnectorError(_CLOSED) from exc

    def _spawn(self) -> _Child:
        child = _Child(self._options)
        with self._lock:
            self._children.add(child)
        return child

    def _discard(self, child: _Child) -> None:
        child.kill()
        child.hang_up()
        with self._lock:
            self._children.discard(child)


class _ChildLost(Exception):
    """The child ended by itself, or the pool was closed."""


class _Child:
    """One child process and the socket to it."""

    def __init__(self, options: ReaderOptions) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            folder = str(Path(connectors.__file__).resolve().parent.parent)
            program = [sys.executable, "-P", "-c", _PROGRAM, folder]
            # Its own process group: Ctrl-C in the terminal is for the parent. No output: libraries
            # under the readers write to the terminal as they like.
            self._process = subprocess.Popen(
                [*program, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                process_group=0,
            )
        self._connection = Connection(ours.detach())
        # Made once: `Connection.poll` makes a selector for each call.
        self._poller = select.poll()
        self._poller.register(self._connection, select.POLLIN)
        with suppress(OSError):
            self._connection.send(options)

    def is_alive(self) -> bool:
        """Say whether the process runs and can be asked."""
        return not self._connection.closed and self._process.poll() is None

    def call(self, request: Request, timeout_s: float, memory_bytes: int) -> Reply | None:
        """Send a request and wait for its reply, with an eye on time and memory.

        Returns:
            None if the child was gone before it took the request, which is not the document's
            fault.

        Raises:
            DocumentRejected: The child was killed for its time or its memory.
            _ChildLost: The child ended without a reply.
        """
        has_begun = False
        try:
            self._connection.send(request)
            deadline = time.monotonic() + timeout_s
            while True:
                if self._poller.poll(1000 * _WATCH_INTERVAL_S):
                    reply: Reply | None = self._connection.recv()
                    if reply is not None:
                        return reply
                    has_begun = True
                    continue
                if time.monotonic() > deadline:
                    self.kill()
                    raise DocumentRejected(
                        f"reading took more than {timeout_s:g} s (reader.timeout_s); "
                        "its reader was killed",
                        reason="timeout",
                    )
                used = self._resident_bytes()
                if used > memory_bytes:
                    self.kill()
                    raise DocumentRejected(
                        f"reading took {used >> 20:,} MiB of memory; the limit is "
                        f"{memory_bytes >> 20:,} MiB, and its reader was killed",
                        reason="memory",
                    )
        except (EOFError, BrokenPipeError, ConnectionResetError) as exc:
            fate = self._fate()
            if not has_begun:
                return None
            raise _ChildLost(f"its reader {fate}") from exc

    def kill(self) -> None:
        """Kill the process and what it started, and wait until it is gone."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def hang_up(self) -> None:
        """Close the socket to a child that is gone."""
        self._connection.close()

    def _fate(self) -> str:
        code = self._process.wait()
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"ended with status {code}"

    def _resident_bytes(self) -> int:
        try:
            statm = Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii")
        except OSError:
            return 0
        return int(statm.split()[1]) * _PAGE_BYTES
