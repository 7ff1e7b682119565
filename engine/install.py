"""Creates the engine's own environment from locked versions. Runs before anything is installed.

Uses the standard library only: `python3.11 -m engine.install --venv .venv-engine --cache DIR`. A second
call with the same locks returns at once. docs/decisions/0001-two-environments.md says why there are two.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine import embedded, tiny
from engine.errors import PrerequisiteError

LOCKS = Path(__file__).resolve().parent.parent / "requirements"
FREE_GB = 6.0
"""Disk space needed: the CUDA build of torch with its libraries takes 5 GB."""

PROBE_S = 20
"""Seconds a package index for CPU builds gets to answer."""

_CUDA_PARTS = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)==")
_STAMP = "installed.json"


def install(venv: Path, cache: Path, environment: Mapping[str, str]) -> None:
    """Create or complete the environment, then write the models that it serves.

    Args:
        venv: Folder of the environment; made anew where its locks have changed.
        cache: Folder for the model.
        environment: Environment variables for the installers.

    Raises:
        PrerequisiteError: The machine cannot run the engine, or an installer failed.
    """
    check_machine(venv)
    lock = lock_for(gpu_names())
    wanted = hash_of(lock)
    if (installed_facts(venv) or {}).get("lock") == wanted:
        _say("already installed")
    else:
        started = time.monotonic()
        shutil.rmtree(venv, ignore_errors=True)
        way = _install_packages(venv, lock, environment)
        size_mb = _size_mb(venv)
        seconds = round(time.monotonic() - started)
        facts = {"lock": wanted, "torch": way, "seconds": seconds, "megabytes": size_mb}
        (venv / _STAMP).write_text(json.dumps(facts), encoding="utf-8")
        _say(f"installed {size_mb} MB in {seconds} s ({way})")
    for model in (embedded, tiny):
        model.prepare(venv / "bin" / "python", cache, environment, _say)
    _say("ready")


def gpu_names(limit_s: float | None = None) -> list[str]:
    """Return the NVIDIA GPUs that the driver lists; none where there is no driver.

    Raises:
        TimeoutExpired: The driver took longer than `limit_s`.
    """
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    result = subprocess.run(
        [command, "--query-gpu=name,memory.total", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    return result.stdout.strip().splitlines() if result.returncode == 0 else []


def lock_for(gpus: Sequence[str]) -> Path:
    """Return the lock of the environment on a machine with these GPUs."""
    return LOCKS / ("engine-cuda.lock" if gpus else "engine-cpu.lock")


def hash_of(lock: Path) -> str:
    """Return the hash by which an environment knows the lock it was built from."""
    return hashlib.sha256(lock.read_bytes()).hexdigest()


def installed_facts(venv: Path) -> dict[str, Any] | None:
    """Return what was noted at the end of an installation; None where none came to its end.

    The hash of its `lock`, its build of `torch`, the `seconds` it took, its size in `megabytes`.
    A damaged note is a ValueError.
    """
    try:
        text = (venv / _STAMP).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return dict(json.loads(text))


def installed_megabytes(venv: Path) -> int | None:
    """Return the size of an installed environment, as measured then; None where there is none."""
    try:
        return int((installed_facts(venv) or {})["megabytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_machine(venv: Path) -> None:
    """Check what cannot be installed.

    Raises:
        PrerequisiteError: System, CPU, Python or free space do not suffice.
    """
    way_out = "use an engine elsewhere: make demo ENGINE=<OpenAI-compatible URL>"
    system = f"{platform.system()} {platform.machine()}"
    if system != "Linux x86_64":
        raise PrerequisiteError(
            f"the embedded engine needs Linux x86_64, this is {system}; {way_out}"
        )
    if "avx2" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        raise PrerequisiteError(f"the embedded engine needs a CPU with AVX2; {way_out}")
    if sys.version_info[:2] != (3, 11):
        raise PrerequisiteError(
            f"Python 3.11 is needed, this is {platform.python_version()};"
            " run make PYTHON=/path/to/python3.11"
        )
    free_gb = shutil.disk_usage(venv.resolve().parent).free / 1e9
    if free_gb < FREE_GB and not (venv / _STAMP).exists():
        raise PrerequisiteError(
            f"{free_gb:.1f} GB are free beside {str(venv)!r}, {FREE_GB:.0f} GB are needed; free some"
        )


def _install_packages(venv: Path, lock: Path, environment: Mapping[str, str]) -> str:
    """Install all packages and return which build of torch was taken."""
    installer = _Installer(venv, environment)
    installer.create()
    if lock.name == "engine-cuda.lock":
        _say("installing vLLM for NVIDIA GPUs")
        installer.uv(["--no-deps", "-r", str(lock)])
        return "CUDA build, for the GPU"
    entries = lock_entries(lock)
    rest = [entry for entry in entries if not _CUDA_PARTS.match(entry)]
    _say(f"installing {len(rest)} locked packages")
    installer.uv_entries(rest)
    _say("installing torch 2.13.0, the CPU build if one is at hand")
    cpu = str(LOCKS / "torch-cpu.lock")
    if installer.try_pip(["--no-deps", "--only-binary=:all:", "-r", cpu]):
        return "CPU build of torch, found by pip"
    if installer.try_uv(["--no-deps", "--torch-backend=cpu", "-r", cpu]):
        return "CPU build of torch, from the CPU wheel index"
    cuda = [entry for entry in entries if _CUDA_PARTS.match(entry)]
    _say(
        f"no CPU build of torch is at hand; installing the CUDA build, {len(cuda)} packages, 3 GB more"
    )
    installer.uv_entries(cuda)
    return "CUDA build of torch, since no CPU build was at hand"


def lock_entries(lock: Path) -> list[str]:
    """Return a lock's entries, each with its hashes."""
    entries: list[str] = []
    for line in lock.read_text(encoding="utf-8").splitlines():
        if line.startswith((" ", "\t")) and entries:
            entries[-1] += "\n" + line
        elif line and not line.startswith("#"):
            entries.append(line)
    return entries


class _Installer:
    """pip and uv for one environment; every package is checked against its hash."""

    def __init__(self, venv: Path, environment: Mapping[str, str]) -> None:
        self._venv = venv
        self._python = str(venv / "bin" / "python")
        self._environment = {**environment, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def create(self) -> None:
        """Create the environment and put uv into it, checked against its hash."""
        _say(f"creating {self._venv}")
        self._run([sys.executable, "-m", "venv", str(self._venv)])
        self._run([*self._pip(), "-r", str(LOCKS / "uv.lock")])

    def uv(self, arguments: Sequence[str]) -> None:
        """Install with uv."""
        self._run([*self._uv(), *arguments])

    def uv_entries(self, entries: Sequence[str]) -> None:
        """Install the given entries of a lock, and nothing they depend on."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "requirements.txt"
            file.write_text("\n".join(entries), encoding="utf-8")
            self.uv(["--no-deps", "-r", str(file)])

    def try_pip(self, arguments: Sequence[str]) -> bool:
        """Install with pip as the user has configured it, if it finds the package."""
        return self._quietly([*self._pip(), *arguments], limit_s=None)

    def try_uv(self, arguments: Sequence[str]) -> bool:
        """Install with uv, if the index answers soon."""
        if not self._quietly([*self._uv(), "--dry-run", *arguments], limit_s=PROBE_S):
            return False
        return self._quietly([*self._uv(), *arguments], limit_s=None)

    def _pip(self) -> list[str]:
        return [self._python, "-m", "pip", "install", "--quiet", "--require-hashes"]

    def _uv(self) -> list[str]:
        uv = str(self._venv / "bin" / "uv")
        command = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--require-hashes"]
        return [*command, "--python", self._python]

    def _quietly(self, command: Sequence[str], *, limit_s: float | None) -> bool:
        try:
            result = subprocess.run(
                command, env=self._environment, capture_output=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            return False
        return result.returncode == 0

    def _run(self, command: Sequence[str]) -> None:
        result = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            raise PrerequisiteError(
                f"`{' '.join(command[:6])} ...` failed; check the package index and free space."
                f" Its last lines:\n{(result.stderr or result.stdout)[-1500:]}"
            )


def _size_mb(folder: Path) -> int:
    return round(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6)


def _say(line: str) -> None:
    # On stderr, since `headrace engine install --json` prints one object on stdout.
    sys.stderr.write(f"[engine] {line.removeprefix('engine: ')}\n")
    sys.stderr.flush()


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Create the engine's environment.")
    parser.add_argument("--venv", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        # The one program that runs before config.load can: it hands its environment on.
        install(arguments.venv, arguments.cache, dict(os.environ))
    except PrerequisiteError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
