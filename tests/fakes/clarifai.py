"""A fake of Clarifai's OpenAI-compatible endpoint, and of its local runner.

Requests name a model by its URL and carry a token; the list of models does not name it. A model is known once
a runner serves it. It thinks unless it is told not to, as Kimi K2.5 does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.fakes.engine_server import FakeEngine, Fault

TOKEN = "pat-canary-51c0ffee"
MODEL_URL = "https://clarifai.com/me/main/models/kimi-k2-5"


def said(code: int, description: str, details: str = "") -> bytes:
    """Return an error as Clarifai's API has it (clarifai_grpc, status/status.proto)."""
    return json.dumps({
        "status": {"code": code, "description": description, "details": details}
    }).encode()


class FakeClarifai(FakeEngine):
    """The endpoint; `served` are the URLs of models that it knows."""

    def __init__(self, *, served: set[str] | None = None, runner: Path | None = None) -> None:
        """Serve models by their URLs, or one while the file that a fake runner writes is there."""
        super().__init__(script=self._answer, api_key=TOKEN)
        self.served = served or set()
        self._runner = runner

    def _answer(self, _number: int, body: Mapping[str, Any]) -> Fault | None:
        if body["model"] not in self.served and not (self._runner and self._runner.exists()):
            return Fault(status=404, body=said(21200, "Model does not exist", body["model"]))
        kwargs = body.get("chat_template_kwargs", {})
        if kwargs.get("thinking", True):
            return Fault(message={"reasoning": "Line 1 says so.", "content": '{"answer": "red"}'})
        return Fault(content='{"answer": "red"}')


RUNNER = f"""#!{sys.executable}
import os, pathlib, signal, sys, time
assert sys.argv[1:3] == ["model", "serve"], sys.argv
home = pathlib.Path(os.environ["FAKE_RUNNER_HOME"])
with (home / "started").open("a") as log:
    log.write(" ".join(sys.argv[3:]) + "\\n")
print("Model is ready for API requests!", flush=True)
if (home / "broken").exists():
    sys.exit("Requirements not installed")
serving = home / "serving"
serving.write_text("yes")
def end(*_):
    serving.unlink(missing_ok=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
while not (home / "crash").exists():
    time.sleep(0.05)
(home / "crash").unlink()
serving.unlink()
sys.exit(3)
"""


def install_runner(folder: Path) -> None:
    """Put a `clarifai` into the folder that serves while it runs, crashes where told, and knows `model serve`."""
    program = folder / "clarifai"
    program.write_text(RUNNER, encoding="utf-8")
    program.chmod(0o755)
