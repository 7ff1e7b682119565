"""A real `headrace up` for tests, and its API."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from flows.services import free_ports, is_free

ROOT = Path(__file__).resolve().parent.parent.parent
HEADRACE = Path(sys.executable).with_name("headrace")
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
SECRET = "not-to-be-seen-anywhere"


def two_ports():
    """Return a port whose next one is free too."""
    while True:
        (port,) = free_ports(1)
        if is_free(port + 1):
            return port


def below(pid):
    """Return the processes below `pid`."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    children = [int(line) for line in found.stdout.split()]
    return children + [one for child in children for one in below(child)]


class Stack:
    """`headrace up` in a state folder of its own."""

    def __init__(self, folder):
        self.state = folder / "state"
        self.port = two_ports()
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PREFECT_", "AWS_"))
        }
        self.environment |= {"HEADRACE_STATE": str(self.state), "AWS_SECRET_ACCESS_KEY": SECRET}

    def headrace(self, *arguments):
        return subprocess.run(
            [HEADRACE, *map(str, arguments)],
            cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False,
            timeout=180,
        )  # fmt: skip

    def up(self, *arguments):
        result = self.headrace("up", "--no-engine", "--json", *arguments)
        assert result.returncode == 0, result.stderr[-3000:]
        return json.loads(result.stdout)

    def api(self, path, body=None, method=None):
        """Return the status and what the server's API answers."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as exc:
            if exc.code == 503:
                # SQLite was locked by another write.
                time.sleep(0.5)
                return self.api(path, body, method)
            return exc.code, exc.read().decode()

    def deployment(self, name):
        _, found = self.api("deployments/filter", {"deployments": {"name": {"any_": [name]}}})
        return found[0]

    def create_run(self, name, parameters):
        path = f"deployments/{self.deployment(name)['id']}/create_flow_run"
        return self.api(path, {"parameters": parameters})

    def wait(self, run_id, states=ENDED, limit_s=60):
        """Return the flow run once it is in one of the states."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            _, run = self.api(f"flow_runs/{run_id}")
            if run["state"] and run["state"]["type"] in states:
                return run
            time.sleep(0.3)
        raise AssertionError(f"still {run['state']} after {limit_s} s")

    def runs(self, name):
        """Return the flow runs of a deployment."""
        chosen = {"flow_runs": {"deployment_id": {"any_": [self.deployment(name)["id"]]}}}
        return self.api("flow_runs/filter", chosen)[1]

    def heartbeats(self, run_id):
        """Return the heartbeats of a flow run that the server has."""
        chosen = {
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "resource": {"id": [f"prefect.flow-run.{run_id}"]},
        }
        return self.api("events/filter", {"filter": chosen})[1]["events"]

    def artifacts(self, run_id):
        chosen = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
        return {item["key"]: item for item in self.api("artifacts/filter", chosen)[1]}


def write_files(folder, count):
    """Write small text files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        text = f"Day {number}. The crane stopped at noon, and the pilot boat left at dawn.\n"
        (folder / f"{number:03d}.txt").write_text(text, encoding="utf-8")
    return folder
