"""A program that stands in for `vllm serve`: health, models, slow answers, and ways to fail.

`install(folder, ...)` writes `bin/vllm` and `bin/nvidia-smi`. The server answers /health and /v1/models, takes
a second for /v1/chat/completions, ends at /crash, hangs at /deaf, and ends by SIGTERM as vLLM does: what is
under way is finished within --shutdown-timeout.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LISTING = "NVIDIA H200, 143771, 9.0, 580.95.05\n"


def install(folder: Path, listing: str = LISTING * 8, broken: Path | None = None) -> Path:
    """Write the programs below `folder`, an engine's environment, and return their folder.

    Args:
        folder: Where `bin` is made.
        listing: What nvidia-smi prints.
        broken: While this file is there, a server ends at its start.
    """
    programs = folder / "bin"
    programs.mkdir(parents=True)
    here = Path(__file__).resolve()
    (programs / "vllm").write_text(
        f'#!/bin/sh\nexec {sys.executable} {here} {broken or "-"} "$@"\n', encoding="utf-8"
    )
    (programs / "nvidia-smi").write_text(
        f"#!/bin/sh\ncat <<'END'\n{listing}END\n", encoding="utf-8"
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    return programs


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    model = ""
    deaf = False
    under_way = 0
    guard = threading.Lock()


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        if self.server.deaf:
            time.sleep(60)
        if self.path == "/v1/models":
            self._answer({"data": [{"id": self.server.model, "max_model_len": 4096}]})
        elif self.path == "/env":
            devices = os.environ.get("CUDA_VISIBLE_DEVICES")
            self._answer({"devices": devices, "under_way": self.server.under_way})
        else:
            self._answer({})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/crash":
            sys.stderr.write("CUDA error: an illegal memory access was encountered\n")
            sys.stderr.flush()
            os._exit(7)
        if self.path == "/deaf":
            self._answer({})
            self.server.deaf = True
            return
        with self.server.guard:
            self.server.under_way += 1
        time.sleep(1.0)
        self._answer({"done": True})
        with self.server.guard:
            self.server.under_way -= 1

    def _answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    """Serve until SIGTERM."""
    broken, command = sys.argv[1:3]
    assert command == "serve"
    if broken != "-" and Path(broken).exists():
        sys.stderr.write("ValueError: no room for the KV cache\n")
        sys.exit(1)
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--shutdown-timeout", type=int, default=0)
    given, _ = parser.parse_known_args(sys.argv[3:])
    server = _Server(("127.0.0.1", given.port), _Handler)
    server.model = given.served_model_name

    def end() -> None:
        deadline = time.monotonic() + given.shutdown_timeout
        while server.under_way and time.monotonic() < deadline:
            time.sleep(0.05)
        sys.stderr.write(f"ended with {server.under_way} under way\n")
        sys.stderr.flush()
        os._exit(0)

    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=end).start())
    sys.stderr.write("ready\n")
    server.serve_forever()


if __name__ == "__main__":
    main()
