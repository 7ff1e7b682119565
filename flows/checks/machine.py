"""Checks of the machine itself: processor, memory, disks, folders, helpers outside Python."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from config.load import Surroundings
from engine.install import gpu_names
from flows.checks.finding import Finding, fail, ok, warn

ELSEWHERE = "--engine http://HOST:8000/v1"
"""The way out where this machine cannot run the embedded engine."""

MEMORY_GB = 4.0
"""Memory that the embedded engine takes: weights, 1 GiB of KV cache, vLLM's processes."""

LOW_GB, EMPTY_GB = 5.0, 1.0
"""Free disk space below which a folder gets a warning, and below which runs are likely to fail."""

GPU_LIMIT_S = 4.0
"""Seconds that the GPU's driver gets to answer."""

_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
_MEMORY_STAT = Path("/sys/fs/cgroup/memory.stat")


def check_python() -> Sequence[Finding]:
    """Return whether this is Python 3.11."""
    found = platform.python_version()
    if sys.version_info[:2] != (3, 11):
        mend = "make clean install PYTHON=/path/to/python3.11"
        return [fail("python", f"{found} in {sys.prefix}; 3.11 is needed", mend)]
    return [ok("python", f"{found} in {sys.prefix}")]


def check_cpu(dtype: str) -> Sequence[Finding]:
    """Return whether an engine runs on this processor; its numbers are of type `dtype`."""
    system = f"{platform.system()} {platform.machine()}"
    if system != "Linux x86_64":
        return [fail("cpu", f"{system}; the embedded engine needs Linux x86_64", ELSEWHERE)]
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    if "avx2" not in flags:
        return [fail("cpu", "no AVX2, which the embedded engine needs", ELSEWHERE)]
    widest = "AVX-512" if "avx512f" in flags else "AVX2"
    cores = len(os.sched_getaffinity(0))
    return [ok("cpu", f"{cores} cores with {widest}; the model runs in {dtype}")]


def check_gpu() -> Sequence[Finding]:
    """Return the NVIDIA GPUs, if there are any."""
    names = gpu_names(GPU_LIMIT_S)
    if not names:
        return [ok("gpu", "none; the embedded engine runs on the CPU")]
    return [ok("gpu", ", ".join(names))]


def check_memory() -> Sequence[Finding]:
    """Return whether there is room for the embedded engine beside what runs already."""
    free_gb = _available_bytes() / 1e9
    if free_gb < MEMORY_GB:
        says = f"{free_gb:.1f} GB available; the embedded engine takes about {MEMORY_GB:.0f} GB"
        return [warn("memory", says, f"end other programs, or {ELSEWHERE}")]
    return [ok("memory", f"{free_gb:.1f} GB available")]


def _available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", maxsplit=1) for line in lines)
    available = int(fields["MemAvailable"].split()[0]) * 1024
    limit = _MEMORY_LIMIT.read_text(encoding="utf-8").strip() if _MEMORY_LIMIT.exists() else "max"
    if limit == "max" or not _MEMORY_STAT.exists():
        return available
    # A container's own limit: what its programs hold counts, the cache of its files does not.
    stat = dict(line.split() for line in _MEMORY_STAT.read_text(encoding="utf-8").splitlines())
    return min(available, int(limit) - int(stat.get("anon", 0)))


def check_folders(surroundings: Surroundings) -> Sequence[Finding]:
    """Return for cache, state and temporary folder whether they can be written and have room."""
    folders = {
        "HEADRACE_CACHE": ("cache", surroundings.cache),
        "HEADRACE_STATE": ("state", surroundings.state),
        "TMPDIR": ("temp", Path(tempfile.gettempdir())),
    }
    return [_folder(name, path, variable) for variable, (name, path) in folders.items()]


def _folder(name: str, path: Path, variable: str) -> Finding:
    check, mend = f"{name} folder", f"export {variable}=/folder/with/space"
    there = nearest(path)
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as exc:
        return fail(check, f"{path} cannot be written ({exc.strerror})", mend)
    free_gb = shutil.disk_usage(there).free / 1e9
    says = f"{path}, {free_gb:.1f} GB free"
    if free_gb < EMPTY_GB:
        return fail(check, says, mend)
    return warn(check, says, mend) if free_gb < LOW_GB else ok(check, says)


def nearest(path: Path) -> Path:
    """Return the path, or the closest folder above it that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def check_tesseract() -> Sequence[Finding]:
    """Return whether the optional OCR program is there."""
    found = shutil.which("tesseract")
    says = found or "not installed; only `reader.ocr: tesseract` needs it, rapidocr comes along"
    return [ok("tesseract", says)]
