"""Runs one piece of a tool's work in a process of its own, which may be killed at any moment.

What a model asks to be computed may use up memory, never end, or bring a library down. The process that
hosts the tools waits in a thread and reads a bounded reply, whatever becomes of the child.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import orjson

_LOGGER = logging.getLogger(__name__)
_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from tools.child_main import main; main(sys.argv[2])"
_FOLDER = str(Path(__file__).resolve().parent.parent)
_MAX_REPLY_BYTES = 4 * 2**20
_AT_ONCE = max(2, min(4, os.cpu_count() or 2))
"""Children at a time, for all requests of this process: each may take its limit of memory."""
Why = Literal["time", "size", "crash"]
_THREADS = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="tool-child")


class Ended(Exception):
    """A child gave no reply."""

    def __init__(self, why: Why, status: int | None = None) -> None:
        """Say why; `status` as `subprocess` gives it: a signal is negative."""
        super().__init__(why, status)
        self.why = why
        self.status = status

    def __str__(self) -> str:
        return f"the child process ended without a reply: {self.why}, status {self.status}"


async def in_child(module: str, request: Mapping[str, Any], timeout_s: float) -> Any:  # noqa: ANN401 - JSON
    """Return what the module's `answer` gives for a request: JSON in, JSON out.

    Args:
        module: Its `answer` takes the request and returns the reply.
        request: Handed to it.
        timeout_s: When it is killed, counted from its start.

    Raises:
        Ended: It gave no reply.
        CancelledError: The caller was cancelled; the child is killed.
    """
    child = _Child()
    loop = asyncio.get_running_loop()
    work = partial(child.run, module, orjson.dumps(request), timeout_s)
    try:
        return await loop.run_in_executor(_THREADS, work)
    except asyncio.CancelledError:
        child.kill()
        raise


class _Child:
    """One child process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._late = threading.Event()

    def kill(self) -> None:
        """End it with all it has started, now or as soon as it begins; nothing where it has ended."""
        with self._lock:
            self._late.set()
            self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def run(self, module: str, request: bytes, timeout_s: float) -> Any:  # noqa: ANN401 - JSON
        """Return its reply.

        Raises:
            Ended: It gave none.
        """
        with self._lock:
            if self._late.is_set():
                raise Ended("time")
            process = self._process = self._start(module)
        timer = threading.Timer(timeout_s, self.kill)
        timer.start()
        try:
            reply = self._exchange(process, request)
            if len(reply) <= _MAX_REPLY_BYTES:
                # Without reaping it: its number stays taken until its group is gone too.
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        finally:
            timer.cancel()
            with self._lock:
                is_late = self._late.is_set()
                self._kill()
                status = process.wait()
        if len(reply) > _MAX_REPLY_BYTES:
            raise Ended("size", status)
        try:
            answer = orjson.loads(reply)
        except orjson.JSONDecodeError as exc:
            is_late = is_late or status == -signal.SIGXCPU
            raise Ended("time" if is_late else "crash", status) from exc
        if "crashed" in answer:
            _LOGGER.warning("%s went wrong:\n%s", module, answer["crashed"])
            raise Ended("crash", status)
        return answer["reply"]

    @staticmethod
    def _start(module: str) -> subprocess.Popen[bytes]:
        # Isolated, and with an environment of nothing: no secret of this process is in the child.
        return subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", "-c", _PROGRAM, _FOLDER, module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"TZ": "UTC"},
            cwd="/",
            process_group=0,
        )

    @staticmethod
    def _exchange(process: subprocess.Popen[bytes], request: bytes) -> bytes:
        if process.stdin is None or process.stdout is None:
            raise Ended("crash")
        with process.stdout as answers:
            with contextlib.suppress(BrokenPipeError), process.stdin as questions:
                questions.write(request)
            return answers.read(_MAX_REPLY_BYTES + 1)
