"""What `engine plan clarifai --emit` writes, read and sent by the clarifai package itself. Needs .venv-clarifai."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engine.serving.runner import RunnerSetUp, runner_command
from flows.cli import app
from tests.fakes.recording_vllm import install_vllm

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = ROOT / ".venv-clarifai" / "bin"
SCRIPTS = ROOT / "tests" / "clarifai_env"


@pytest.fixture(scope="module")
def emitted(tmp_path_factory):
    """The files, and what the command has said."""
    assert BIN.is_dir(), "there is no .venv-clarifai; make install-clarifai"
    folder = tmp_path_factory.mktemp("deploy")
    arguments = (
        "engine", "plan", "clarifai", "--emit", str(folder), "--user-id", "me", "--model-version", "v1",
        "--concurrency", "5", "--min-replicas", "0", "--json",
    )  # fmt: skip
    return folder, json.loads(CliRunner().invoke(app, arguments).stdout)["emitted"]


class _Hub(BaseHTTPRequestHandler):
    """A hub of weights that has every repository."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def clarifai(tmp_path_factory):
    """The fake API; yields the environment of the package's programs, and the lines that the API prints."""
    home = tmp_path_factory.mktemp("home")
    hub = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    bare = {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with subprocess.Popen(
        [BIN / "python", SCRIPTS / "api.py"], env=bare, stdout=subprocess.PIPE, text=True
    ) as api:
        try:
            base = api.stdout.readline().strip()
            config = home / ".config" / "clarifai" / "config"
            config.parent.mkdir(parents=True)
            context = {"CLARIFAI_PAT": "pat", "CLARIFAI_USER_ID": "me", "CLARIFAI_API_BASE": base}
            contexts = {"current_context": "default", "contexts": {"default": context}}
            config.write_text(json.dumps(contexts))
            hub_url = f"http://127.0.0.1:{hub.server_port}"
            yield {**bare, **context, "HF_ENDPOINT": hub_url}, api.stdout
        finally:
            api.terminate()
            hub.shutdown()
            hub.server_close()


def test_printed_commands_create_what_was_planned_when_clarifai_runs_them(emitted, clarifai):
    shown = emitted[1]
    environment, sent = clarifai
    created = [step for step in shown["next"] if " create " in step]
    assert len(created) == 3
    requests = {}
    for step in created:
        done = subprocess.run(
            [BIN / "clarifai", *shlex.split(step)[1:]],
            env=environment, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        kind, _, value = sent.readline().partition(" ")
        requests[kind] = json.loads(value)
    (cluster,) = requests["PostComputeClustersRequest"]["compute_clusters"]
    assert (cluster["cloud_provider"]["id"], cluster["region"]) == ("aws", "us-east-1")
    (pool,) = requests["PostNodepoolsRequest"]["nodepools"]
    assert pool["compute_cluster"] == {"id": cluster["id"], "user_id": "me"}
    assert pool["max_instances"] == 3
    (instance,) = pool["instance_types"]
    assert instance["compute_info"]["num_accelerators"] == 8
    assert instance["compute_info"]["accelerator_memory"] == "140Gi"
    (deployment,) = requests["PostDeploymentsRequest"]["deployments"]
    assert deployment["autoscale_config"]["max_replicas"] == 3
    assert deployment["autoscale_config"].get("min_replicas", 0) == 0
    assert deployment["nodepools"][0]["id"] == pool["id"]
    assert deployment["worker"]["model"]["model_version"]["id"] == "v1"
    assert shown["model"].endswith("/me/main/models/" + deployment["worker"]["model"]["id"])


def test_options_exist_when_a_command_is_printed_or_started(emitted, clarifai, tmp_path):
    wanted = RunnerSetUp(
        program="clarifai",
        model=tmp_path,
        mode="none",
        concurrency=8,
        log=tmp_path / "log",
        environment={},
    )
    steps = [shlex.split(step) for step in emitted[1]["next"] if step.startswith("clarifai ")]
    steps = [step for step in steps if "create" not in step and "login" not in step]
    for step in [*steps, runner_command(wanted).argv]:
        command = [word for word in step[1:3] if re.fullmatch("[a-z-]+", word) and word[0] != "-"]
        text = subprocess.run(
            [BIN / "clarifai", *command, "--help"],
            env=clarifai[0], capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert f"clarifai {' '.join(command)} " in text
        assert all(option in text for option in step if option.startswith("--")), step


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_script(name, argument, environment):
    """Run a script by the package's Python, and return the object that it prints."""
    done = subprocess.run(
        [BIN / "python", SCRIPTS / name, str(argument)],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout + done.stderr
    return json.loads(lines[0].removeprefix("RESULT "))


@pytest.fixture(scope="module")
def loaded(emitted, clarifai, tmp_path_factory):
    """What the loaded model answers, and what reached the vLLM that it has started."""
    place = tmp_path_factory.mktemp("vllm")
    install_vllm(place)
    environment = {
        **clarifai[0],
        "PATH": f"{place}:{clarifai[0]['PATH']}",
        "FAKE_VLLM_LOG": str(place / "log"),
        "HEADRACE_WEIGHTS": "/weights/k2.5",
        "HEADRACE_VLLM_PORT": str(_free_port()),
    }
    found = run_script("load_model.py", emitted[0] / "model", environment)
    return found, [json.loads(line) for line in (place / "log").read_text().splitlines()]


def test_model_is_read_with_the_planned_limits_when_clarifai_builds_it(emitted, clarifai):
    found = run_script("read_model.py", emitted[0] / "model", clarifai[0])
    assert found["model"] == {
        "id": "kimi-k2-5", "user_id": "me", "app_id": "main", "model_type_id": "any-to-any",
    }  # fmt: skip
    assert found["compute"] == {
        "cpu_limit": "64", "cpu_memory": "256Gi", "num_accelerators": 8,
        "accelerator_memory": "140Gi", "accelerator_type": ["NVIDIA-*"],
    }  # fmt: skip
    assert {"openai_transport", "openai_stream_transport", "predict", "generate"} <= {
        *found["methods"]
    }
    assert found["num_threads"] == 16
    dockerfile = (emitted[0] / "model" / "Dockerfile").read_text()
    assert "vllm/vllm-openai:v0.32.0" in dockerfile


def test_vllm_is_started_with_the_planned_flags_when_the_model_is_loaded(emitted, loaded):
    command = loaded[1][0]
    flags = json.loads((emitted[0] / "model/1/server.json").read_text())["flags"]
    assert command[:2] == ["serve", "/weights/k2.5"]
    assert command[4:] == flags
    assert loaded[0]["most_tokens"] == 8192
    assert loaded[0]["live"]


def test_mode_switch_reaches_vllm_when_asked_through_clarifai(loaded):
    found, (_, *requests) = loaded
    assert [request["chat_template_kwargs"] for request in requests] == [{"thinking": False}] * 4
    assert "response_format" in requests[0]
    answers = {found["answer"]["choices"][0]["message"]["content"]}
    pieces = [one["choices"][0]["delta"] for one in found["streamed"] if one["choices"]]
    answers.add("".join(piece.get("content") or "" for piece in pieces))
    assert answers <= {'"red"', '"blue"'}
    assert len(answers) == 1
    assert found["predicted"] == found["generated"]


def test_mode_switch_is_refused_when_the_package_is_left_alone(loaded):
    # Why the model has a class of its own; docs/engines.md says so.
    assert "unexpected keyword argument 'chat_template_kwargs'" in loaded[0]["stock"]["details"]


def test_model_answers_when_the_package_serves_it_here(emitted, clarifai, tmp_path):
    install_vllm(tmp_path)
    port, log = _free_port(), tmp_path / "served"
    environment = {
        **clarifai[0],
        "PATH": f"{tmp_path}:{clarifai[0]['PATH']}",
        "FAKE_VLLM_LOG": str(tmp_path / "log"),
        "HEADRACE_WEIGHTS": "/weights/k2.5",
        "HEADRACE_VLLM_PORT": str(_free_port()),
    }
    # The runner as `engine runner` starts it, but offline: --grpc in place of an account.
    command = [BIN / "clarifai", "model", "serve", emitted[0] / "model", "--mode", "none"]
    with (
        log.open("w") as out,
        subprocess.Popen(
            [*command, "--grpc", "--port", str(port)],
            env=environment, stdout=out, stderr=out, start_new_session=True,
        ) as runner,
    ):  # fmt: skip
        try:
            asked = run_script("ask_runner.py", port, environment)
        finally:
            os.killpg(runner.pid, signal.SIGKILL)
    assert asked["answer"]["choices"][0]["message"]["content"] in {'"red"', '"blue"'}, (
        log.read_text()
    )
    sent = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert sent[-1]["chat_template_kwargs"] == {"thinking": False}
