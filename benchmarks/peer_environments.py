"""The peers of benchmarks/peers.py and the virtual environments that they run in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import ROOT

_UV = Path(sys.executable).with_name("uv")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """An arm of peer_arm.py and where it runs."""

    arm: str
    environment: str
    package: str
    """Whose version is shown."""


PEERS = {
    peer.arm: peer
    for peer in (
        Peer(arm="openai", environment="openai", package="openai"),
        Peer(arm="openai by document", environment="openai", package="openai"),
        Peer(arm="daft", environment="daft", package="daft"),
        Peer(arm="curator", environment="curator", package="bespokelabs-curator"),
        Peer(arm="docetl", environment="docetl", package="docetl"),
    )
}


def make_environments(
    folder: Path, peers: Sequence[Peer], notify: Callable[[str], None]
) -> dict[str, str]:
    """Make the environments that are missing or of other versions; return the peers' versions."""
    for name in dict.fromkeys(peer.environment for peer in peers):
        pinned = _pins(name)
        made = folder / name / "pinned.txt"
        if made.is_file() and made.read_text(encoding="utf-8") == pinned.read_text("utf-8"):
            continue
        notify(f"making the environment of {name} with {_count(pinned)} packages")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder / name], check=True)
        python = str(folder / name / "bin" / "python")
        install = [
            str(_UV),
            "pip",
            "install",
            "--quiet",
            "--compile-bytecode",
            f"--python={python}",
            "--requirements",
        ]
        subprocess.run([*install, str(pinned)], check=True)
        made.write_text(pinned.read_text(encoding="utf-8"), encoding="utf-8")
    return {peer.package: _version(peer) for peer in peers}


def _pins(name: str) -> Path:
    return ROOT / "benchmarks" / "peer_envs" / f"{name}.txt"


def _count(pinned: Path) -> int:
    return len(pinned.read_text(encoding="utf-8").splitlines())


def _version(peer: Peer) -> str:
    lines = _pins(peer.environment).read_text(encoding="utf-8").splitlines()
    return next(line.split("==")[1] for line in lines if line.startswith(f"{peer.package}=="))
