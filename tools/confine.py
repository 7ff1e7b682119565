"""What the child processes of tools give up before they look at anything that a model wrote.

A tool has its own fences first: DuckDB without files, an interpreter without a system. This is the one
behind them, for the day a fence has a hole. Files are by Landlock, calls by seccomp, amounts by rlimits;
a kernel that has one of the first two not goes on with the rest. Nothing here needs rights.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2

_LIBC = ctypes.CDLL(None, use_errno=True)


class Amounts(NamedTuple):
    """What a child may use up."""

    memory_bytes: int
    """Address space."""
    cpu_s: int
    """Time on processors, all threads together; behind the time limit of who waits for it."""


def limit(amounts: Amounts) -> None:
    """Bound what this process and its children may use, and let them end with the parent."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # When the machine's memory runs out, the kernel should take this one, not the run.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800", encoding="ascii")
    for which, most in (
        (resource.RLIMIT_AS, amounts.memory_bytes),
        (resource.RLIMIT_CPU, amounts.cpu_s),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 256),
    ):
        _, hard = resource.getrlimit(which)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))


# -- Files ------------------------------------------------------------------------------------------

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
"""How many rights over files each version of Landlock knows; 16 from version 5."""
_TCP_RIGHTS = 0b11
_SCOPES = 0b11
"""Abstract sockets, and signals to processes outside."""
_OPEN_PATH = getattr(os, "O_PATH", 0)
_SYSTEM = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/proc/meminfo",
    "/proc/cpuinfo",
    "/proc/self",
    "/sys/fs/cgroup",
    "/sys/devices/system/cpu",
    "/dev/null",
    "/dev/urandom",
)


def see_only(files: Iterable[Path], programs: Iterable[Path] = ()) -> bool:
    """Leave this thread, and all that come from it, the sight of Python, of `files`, and of no network.

    Args:
        files: To be read.
        programs: To be run.

    Returns:
        Whether the kernel does it.
    """
    version = _LIBC.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return False
    rights = (1 << _FILE_RIGHTS.get(version, 16)) - 1
    # Sizes of the struct: one field, then TCP from version 4, scopes from version 6.
    fields = (rights, _TCP_RIGHTS, _SCOPES)[: 3 if version >= 6 else 2 if version >= 4 else 1]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    rules = _LIBC.syscall(_LANDLOCK_CREATE, attributes, len(attributes), 0)
    if rules < 0:
        return False
    try:
        seen = [*_SYSTEM, sys.prefix, sys.base_prefix, str(Path(__file__).parent)]
        for path in (*map(Path, seen), *files):
            _allow(rules, path, _READ_FILE | _READ_DIR)
        loaders = ("/lib", "/lib64", "/usr/lib", "/usr/lib64") if programs else ()
        for path in (*loaders, *programs):
            _allow(rules, Path(path), _EXECUTE | _READ_FILE)
        return bool(_LIBC.syscall(_LANDLOCK_RESTRICT, rules, 0) == 0)
    finally:
        os.close(rules)


def _allow(rules: int, path: Path, rights: int) -> None:
    if not path.is_dir():
        rights &= ~_READ_DIR
    with contextlib.suppress(OSError):
        place = os.open(path, _OPEN_PATH | os.O_CLOEXEC)
        try:
            rule = struct.pack("=Qi", rights, place)
            _LIBC.syscall(_LANDLOCK_ADD, rules, 1, rule, 0)
        finally:
            os.close(place)


# -- Calls ------------------------------------------------------------------------------------------

_CLONE_THREAD = 0x00010000
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_X32 = 0x40000000


class _Calls(NamedTuple):
    """Numbers of system calls on one kind of machine."""

    audit: int
    out: tuple[int, ...]
    """Sockets, io_uring, which opens some by itself, and other processes' memory."""
    processes: tuple[int, ...]
    """fork, vfork, execve, execveat; the first two do not exist everywhere."""
    clone: int
    clone3: int


_MACHINES = {
    "x86_64": _Calls(0xC000003E, (41, 425, 101, 310, 311), (57, 58, 59, 322), 56, 435),
    "aarch64": _Calls(0xC00000B7, (198, 425, 117, 270, 271), (221, 281), 220, 435),
}


def call_nothing_outside(*, processes: bool) -> bool:
    """Take from this thread, and all that come from it, sockets and other processes' memory.

    Args:
        processes: Whether it may still start processes; threads it may in any case.

    Returns:
        Whether the kernel does it.
    """
    calls = _MACHINES.get(platform.machine())
    if calls is None:
        return False
    program = _program(calls, processes=processes)
    code = b"".join(struct.pack("=HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: a length, padding, a pointer.
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    argument = ctypes.create_string_buffer(head, len(head))
    return bool(_LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, argument, 0, 0) == 0)


def _program(calls: _Calls, *, processes: bool) -> list[tuple[int, int, int, int]]:
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    # The C library starts a thread by clone where the kernel has no clone3, whose flags a filter cannot see.
    absent = (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)
    allow = (_RETURN, 0, 0, _ALLOW)
    steps = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, calls.audit),
        refuse,
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 1, _X32),
        refuse,
    ]
    for number in calls.out + (() if processes else calls.processes):
        steps += [(_EQUAL, 0, 1, number), refuse]
    if not processes:
        steps += [(_EQUAL, 0, 1, calls.clone3), absent]
        steps += [(_EQUAL, 0, 4, calls.clone), (_LOAD, 0, 0, 16), (_AND, 0, 0, _CLONE_THREAD)]
        steps += [(_EQUAL, 0, 1, 0), refuse]
    return [*steps, allow]
