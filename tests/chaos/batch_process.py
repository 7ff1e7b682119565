"""Runs `headrace` in processes forked off one that has its modules already, so that many start fast."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_HANGS_S = 120.0
_POLL_S = 0.005

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["flows.cli", "flows.run.core", "flows.run.resume"])


class Ended(NamedTuple):
    """How an attempt ended; the code of a killed one is negative."""

    code: int
    out: str
    told: str


def attempt(
    arguments: Sequence[str],
    env: Mapping[str, str],
    folder: Path,
    is_killed: Callable[[], bool] = lambda: False,
) -> Ended:
    """Run a command of `headrace` and return how it ended, by itself or by SIGKILL to all of its processes."""
    out, told = folder / "stdout", folder / "stderr"
    process = _CONTEXT.Process(target=_main, args=(list(arguments), dict(env), out, told))
    process.start()
    assert process.pid is not None
    started = time.monotonic()
    try:
        while process.is_alive() and not is_killed():
            if time.monotonic() - started > _HANGS_S:
                raise AssertionError(f"{arguments} hangs: {told.read_text()}")
            time.sleep(_POLL_S)
    finally:
        # Its readers too.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    assert process.exitcode is not None
    return Ended(process.exitcode, out.read_text(), told.read_text())


def _main(arguments: list[str], env: dict[str, str], out: Path, told: Path) -> None:
    os.setsid()
    for number, file in enumerate((out, told), start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["headrace", *arguments]
    from flows.cli import main

    main()
