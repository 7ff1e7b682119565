"""GPUs: a catalogue of kinds, a set as a person writes it, and the set that this machine has."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from engine.errors import SetUpImpossible

GIB = 2**30
_MIB = 2**20

MIN_DRIVER = 580
"""Least NVIDIA driver for CUDA 13.0, which requirements/engine-cuda.lock pins with vLLM 0.32 (CUDA Toolkit
13.0 release notes, minimum driver of CUDA 13.x)."""

PROBE_S = 10.0
"""Seconds that the driver gets to list its GPUs."""

Vendor = Literal["nvidia", "amd"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One kind of GPU."""

    name: str
    memory_bytes: int
    """All of it, as the driver reports it; the nominal size is larger or rounded."""
    vendor: Vendor | None
    """None: not known, where only its memory was given."""
    capability: float | None
    """CUDA compute capability; None for AMD, and where it is not known."""
    source: str
    """Where the size is written."""


_LISTED = "in public listings"
_UNSEEN = "as generally known; no listing was read for it"


def _nvidia(name: str, mebibytes: int, capability: float, seen: str = _LISTED) -> Gpu:
    return Gpu(
        name=name,
        memory_bytes=mebibytes * _MIB,
        vendor="nvidia",
        capability=capability,
        source=f"nvidia-smi: {mebibytes} MiB, {seen}; capability: NVIDIA's CUDA GPUs page",
    )


CATALOGUE: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        _nvidia("A100-40", 40_960, 8.0, _UNSEEN),
        _nvidia("A100-80", 81_920, 8.0),
        _nvidia("L20", 46_068, 8.9, _UNSEEN),
        _nvidia("L40S", 46_068, 8.9),
        _nvidia("RTX4090", 24_564, 8.9),
        _nvidia("H20", 97_871, 9.0),
        _nvidia("H100", 81_559, 9.0),
        _nvidia("H800", 81_559, 9.0, _UNSEEN),
        _nvidia("H200", 143_771, 9.0),
        _nvidia("B200", 183_359, 10.0),
        _nvidia("GB200", 189_471, 10.0),
        _nvidia("B300", 275_040, 10.3),
        _nvidia("GB300", 284_208, 10.3),
        Gpu(
            name="MI300X",
            memory_bytes=205_822_885_888,
            vendor="amd",
            capability=None,
            source="rocm-smi: 205822885888 B, in public listings",
        ),
        Gpu(
            name="MI325X",
            memory_bytes=256 * 205_822_885_888 // 192,
            vendor="amd",
            capability=None,
            source="AMD data sheet: 256 GB, taken as the 192 GB of MI300X turn out",
        ),
        Gpu(
            name="MI355X",
            memory_bytes=309_220_868_096,
            vendor="amd",
            capability=None,
            source="rocm-smi: 309220868096 B of MI350X and MI355X, in public listings",
        ),
    )
}
"""Kinds by name. Not complete: any other is given by its memory, such as `8x96GiB`."""

_ALIASES = {"A100": "A100-80", "4090": "RTX4090", "H100-80": "H100"}

_SET = re.compile(r"(?:(?P<count>\d+)\s*[x*×]\s*)?(?P<kind>[A-Za-z0-9][\w. -]*)")  # noqa: RUF001
_SIZE = re.compile(r"(?P<size>\d+(?:\.\d+)?)\s*(?P<unit>GiB|GB)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Gpus:
    """GPUs of one kind."""

    count: int
    gpu: Gpu

    def __str__(self) -> str:
        """Return them as they are written, such as 8xH200."""
        return f"{self.count}x{self.gpu.name}"


def parse_gpus(text: str) -> Gpus:
    """Return the GPUs that a person has written: `8xH200`, `H100`, `8x96GiB`.

    Raises:
        SetUpImpossible: A kind is not known, they are mixed, or there are none.
    """
    parts = [part.strip() for part in re.split(r"[+,]", text) if part.strip()]
    found = [_one(part, text) for part in parts]
    if not found:
        raise SetUpImpossible(f"--gpus {text!r} names no GPU; write count and kind, such as 8xH200")
    kinds = {one.gpu.name for one in found}
    if len(kinds) > 1:
        raise SetUpImpossible(_mixed(found, f"--gpus {text!r}"))
    return Gpus(sum(one.count for one in found), found[0].gpu)


def _mixed(found: list[Gpus], where: str) -> str:
    alone = " or ".join(f"--gpus {one}" for one in found)
    return (
        f"{where} mixes kinds of GPU; vLLM gives each GPU of a server the same share, so that the"
        f" smallest would bound them all: plan {alone}, or a server for each kind"
    )


def _one(part: str, text: str) -> Gpus:
    match = _SET.fullmatch(part)
    count = int(match["count"] or 1) if match else 0
    if match is None or count < 1:
        raise SetUpImpossible(f"--gpus {text!r}: write count and kind, such as 8xH200 or 8x96GiB")
    kind = match["kind"].strip()
    size = _SIZE.fullmatch(kind)
    if size is not None:
        unit = GIB if size["unit"].lower() == "gib" else 10**9
        memory_bytes = int(float(size["size"]) * unit)
        if memory_bytes < 1:
            raise SetUpImpossible(
                f"--gpus {text!r}: a GPU has some memory; write how much, such as {count}x96GiB"
            )
        return Gpus(count, _by_memory(kind, memory_bytes))
    gpu = kind_of(kind)
    if gpu is None:
        raise SetUpImpossible(
            f"GPU {kind!r} is not in the catalogue ({', '.join(CATALOGUE)}); give the memory of one and"
            f" their count instead, such as --gpus {count}x96GiB"
        )
    return Gpus(count, gpu)


def _by_memory(name: str, memory_bytes: int) -> Gpu:
    return Gpu(
        name=name, memory_bytes=memory_bytes, vendor=None, capability=None, source="as given"
    )


def kind_of(name: str) -> Gpu | None:
    """Return the kind that a name means, as people or the driver write it; None where it is not known."""
    text = re.sub(r"(?i)\b(?:nvidia|amd|instinct|geforce|tesla)\b", "", name).strip().upper()
    plain = re.sub(r"[\s_]", "", text)
    plain = _ALIASES.get(plain, plain)
    if plain in CATALOGUE:
        return CATALOGUE[plain]
    # The driver adds form and memory: `A100-SXM4-40GB`, `H100 80GB HBM3`, `B300 SXM6 AC`.
    first = re.split(r"[\s-]", text)[0]
    if first == "A100":
        return CATALOGUE["A100-40" if "40GB" in plain else "A100-80"]
    return CATALOGUE.get(first)


def find_gpus() -> Gpus | None:
    """Return the NVIDIA GPUs of this machine, with the memory that the driver reports; None: there are none.

    Raises:
        SetUpImpossible: They are mixed, or the driver is too old for the engine's CUDA.
    """
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = "name,memory.total,compute_cap,driver_version"
    try:
        result = subprocess.run(
            [command, f"--query-gpu={query}", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=PROBE_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return read_listing(result.stdout) if result.returncode == 0 else None


def read_listing(text: str) -> Gpus | None:
    """Return the GPUs of a listing by nvidia-smi: name, memory in MiB, compute capability, driver.

    Raises:
        SetUpImpossible: They are mixed, or the driver is too old for the engine's CUDA.
    """
    rows = [
        [cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()
    ]
    rows = [row for row in rows if len(row) == 4 and row[1].isdigit()]
    if not rows:
        return None
    for name, _, _, driver in rows:
        major = driver.partition(".")[0]
        if major.isdigit() and int(major) < MIN_DRIVER:
            raise SetUpImpossible(
                f"the NVIDIA driver of {name} is {driver}; vLLM 0.32 as locked here comes with CUDA 13.0,"
                f" which needs driver {MIN_DRIVER} or later: update the driver, or serve the model"
                " elsewhere and give its URL with --engine"
            )
    kinds = {tuple(row[:3]) for row in rows}
    if len(kinds) > 1:
        names = [row[0] for row in rows]
        mixed = [
            Gpus(names.count(name), kind_of(name) or _by_memory(name, 0))
            for name in sorted(set(names))
        ]
        raise SetUpImpossible(_mixed(mixed, "this machine"))
    name, mebibytes, capability, _ = rows[0]
    known = kind_of(name)
    gpu = Gpu(
        name=known.name if known is not None else name,
        memory_bytes=int(mebibytes) * _MIB,
        vendor="nvidia",
        capability=float(capability) if re.fullmatch(r"\d+\.\d+", capability) else None,
        source="nvidia-smi of this machine",
    )
    return Gpus(len(rows), gpu)
