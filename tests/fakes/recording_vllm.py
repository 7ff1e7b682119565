"""A fake `vllm`: `vllm serve WEIGHTS --host=H --port=P FLAGS`, on the fake engine; it writes down what it is told.

The file that FAKE_VLLM_LOG names gets the command line and then each request, a JSON line each.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.fakes.engine_server import FakeEngine


def main() -> None:
    """Serve until killed."""
    log = Path(os.environ["FAKE_VLLM_LOG"])

    def write(value: object) -> None:
        with log.open("a", encoding="utf-8") as out:
            out.write(json.dumps(value) + "\n")

    write(sys.argv[1:])
    (port,) = [int(word.removeprefix("--port=")) for word in sys.argv if word.startswith("--port=")]
    FakeEngine(port=port, script=lambda _number, body: write(body)).serve_until_killed()


def install_vllm(folder: Path) -> None:
    """Put this `vllm` into the folder, to be found on the PATH."""
    program = folder / "vllm"
    root = Path(__file__).resolve().parent.parent.parent
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} -m tests.fakes.recording_vllm "$@"\n',
        encoding="utf-8",
    )
    program.chmod(0o755)


if __name__ == "__main__":
    main()
