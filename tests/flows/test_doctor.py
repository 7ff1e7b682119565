"""The doctor names what is wrong and what mends it, and never shows a secret."""

import json
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from config.errors import ConfigError
from connectors.storage import open_storage
from engine.process import start_mark
from flows.checks.install import differing_packages
from flows.checks.services import check_ports
from flows.doctor import diagnose, is_well

CANARY = "canary-7f3a9d"


def run_doctor(*options):
    """Run the command as a user does."""
    command = [str(Path(sys.executable).with_name("headrace")), "doctor", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def find(findings, check):
    """Return the one finding of a check."""
    (finding,) = [finding for finding in findings if finding.check == check]
    return finding


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """State of its own, and no Prefect server but the ones that tests name."""
    monkeypatch.setenv("HEADRACE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


@pytest.fixture
def serve():
    """Start HTTP servers of a handler class each, and return their addresses."""
    servers = []

    def start(handler):
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_all_is_well_when_an_engine_answers_and_storage_works(engine, bucket, tmp_path):
    open_storage(bucket).put("in/a.txt", b"hello")
    findings = diagnose(engine.url, f"{bucket}/in", f"{bucket}/out")
    assert [f for f in findings if f.status == "fail"] == []
    assert is_well(findings)
    assert "first object is a.txt" in find(findings, "source").says
    assert find(findings, "clock").status == "ok"
    assert [item.path for item in open_storage(f"{bucket}/out").list()] == []


def test_json_is_one_object_when_a_check_fails(free_port):
    result = run_doctor("--json", "--engine", f"http://127.0.0.1:{free_port}/v1")
    value = json.loads(result.stdout)
    assert result.returncode == 1
    assert value["ok"] is False
    assert set(value["findings"][0]) == {"check", "status", "says", "mend"}
    assert result.stderr == ""


@pytest.fixture
def free_port():
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_engine_fails_with_a_command_when_its_address_is_dead(free_port):
    result = run_doctor("--engine", f"http://127.0.0.1:{free_port}/v1")
    assert result.returncode == 1
    assert f"mend: curl http://127.0.0.1:{free_port}/v1/models" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_engine_environment_fails_when_the_folder_is_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADRACE_ENGINE_VENV", str(tmp_path))
    finding = find(diagnose(), "engine environment")
    assert (finding.status, finding.mend) == ("fail", "headrace engine install")


def test_engine_environment_warns_when_its_stamp_is_unreadable(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    (tmp_path / "installed.json").write_text("{")
    monkeypatch.setenv("HEADRACE_ENGINE_VENV", str(tmp_path))
    finding = find(diagnose(), "engine environment")
    assert finding.status == "warn"
    assert "could not be checked" in finding.says


def test_engine_environment_warns_when_built_from_another_lock(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    (tmp_path / "installed.json").write_text('{"lock": "older"}')
    monkeypatch.setenv("HEADRACE_ENGINE_VENV", str(tmp_path))
    finding = find(diagnose(), "engine environment")
    assert finding.status == "warn"
    assert "another lock" in finding.says


def test_model_fails_when_a_file_of_it_is_empty(tmp_path, monkeypatch):
    from engine.embedded import model_folder

    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    folder = model_folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / "config.json").touch()
    finding = find(diagnose(), "embedded model")
    assert finding.status == "fail"
    assert finding.mend.startswith(f"rm -r {folder} && ")


def test_engine_warns_when_its_process_lives_but_does_not_answer(tmp_path, monkeypatch, free_port):
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    (tmp_path / "engine").mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        state = {
            "pid": process.pid, "started": start_mark(process.pid),
            "base_url": f"http://127.0.0.1:{free_port}/v1", "model": "m", "log": "x.log",
        }  # fmt: skip
        (tmp_path / "engine" / "embedded.json").write_text(json.dumps(state))
        finding = find(diagnose(), "engine")
        process.communicate(b"\n")
    assert finding.status == "warn"
    assert finding.mend == "headrace engine stop"


def test_state_folder_fails_when_a_file_is_in_its_place(tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("HEADRACE_STATE", str(tmp_path / "taken"))
    finding = find(diagnose(), "state folder")
    assert finding.status == "fail"
    assert finding.mend.startswith("export HEADRACE_STATE=")


def test_port_warns_when_another_program_has_it():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        (finding,) = check_ports(None, ports=[port])
    assert finding.status == "warn"
    assert finding.mend.startswith("headrace up --port ")


def test_sink_fails_when_credentials_are_wrong(bucket, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    findings = diagnose(source=bucket, sink=bucket)
    for check in ("source", "sink"):
        assert find(findings, check).status == "fail"
        assert "AWS_ACCESS_KEY_ID" in find(findings, check).mend
    assert CANARY not in str(findings)


def test_sink_fails_when_its_bucket_is_missing(bucket):
    finding = find(diagnose(sink="s3://no-such-bucket/x"), "sink")
    assert finding.status == "fail"
    assert finding.mend == "aws s3 mb s3://no-such-bucket"


class _Careless(BaseHTTPRequestHandler):
    """An object store that takes every put, whatever its conditions."""

    def do_PUT(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer({"ETag": '"1"'})

    def do_HEAD(self):
        self._answer({})

    def do_DELETE(self):
        self._answer({})

    def _answer(self, headers):
        self.send_response(200)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        """Say nothing."""


def test_sink_fails_when_the_store_ignores_conditions(bucket, monkeypatch, serve):
    monkeypatch.setenv("AWS_ENDPOINT_URL", serve(_Careless))
    finding = find(diagnose(sink="s3://lake/out"), "sink")
    assert finding.status == "fail"
    assert "ignores If-None-Match" in finding.says


def test_local_sink_is_as_before_when_it_was_checked(tmp_path):
    (tmp_path / "there").mkdir()
    findings = diagnose(sink=str(tmp_path / "new" / "sink"))
    assert find(findings, "sink").status == "ok"
    assert not (tmp_path / "new").exists()
    diagnose(sink=str(tmp_path / "there"))
    assert list((tmp_path / "there").iterdir()) == []


def test_source_warns_when_it_holds_nothing(tmp_path):
    assert find(diagnose(source=str(tmp_path)), "source").status == "warn"


class _Echo(BaseHTTPRequestHandler):
    """An engine that refuses each key, and says which one it was."""

    def do_GET(self):
        body = f"no such key: {self.headers['Authorization']}".encode()
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_key_never_appears_when_the_engine_echoes_it(monkeypatch, serve, options):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    result = run_doctor("--engine", serve(_Echo), *options)
    assert result.returncode == 1
    assert "OPENAI_API_KEY is set" in result.stdout
    assert "export OPENAI_API_KEY=" in result.stdout
    assert CANARY not in result.stdout + result.stderr


def profile_file(folder, url, more):
    """Write a profile of a host that asks for the key HARBOUR_KEY, and return its path."""
    file = folder / "harbour.yaml"
    file.write_text(
        f"name: harbour\nmodel: kimi\nbase_url: {url}\napi_key_env: HARBOUR_KEY\ncontext_tokens: 8192\n"
        f"modes: {{instant: {{sampling: {{temperature: 0.6}}}}}}\n{more}",
        encoding="utf-8",
    )
    return str(file)


def test_key_fails_when_it_is_not_set_and_the_host_needs_one(engine, tmp_path, monkeypatch):
    monkeypatch.delenv("HARBOUR_KEY", raising=False)
    needing = profile_file(tmp_path, engine.url, "needs_key: true\nlisted: false\n")
    finding = find(diagnose(needing), "engine key")
    assert (finding.status, finding.mend) == ("fail", "export HARBOUR_KEY=<your key>")
    assert "harbour answers nobody without a key" in finding.says
    profile_file(tmp_path, engine.url, "listed: false\n")
    assert find(diagnose(needing), "engine key").status == "ok"


def test_model_is_not_confirmed_when_the_list_need_not_name_it(engine, tmp_path):
    file = profile_file(tmp_path, engine.url, "listed: false\n")
    finding = find(diagnose(file), "engine")
    assert (finding.status, finding.mend) == ("warn", f"headrace engine check {file}")
    assert "that it has kimi is not confirmed" in finding.says
    assert "8,192" not in finding.says


def test_password_never_appears_when_an_address_has_one(monkeypatch, free_port):
    monkeypatch.setenv("PREFECT_API_URL", f"http://me:{CANARY}@127.0.0.1:{free_port}/api")
    findings = diagnose()
    assert find(findings, "prefect").status == "fail"
    assert CANARY not in str(findings)
    with pytest.raises(ConfigError, match="holds a user name or password") as caught:
        diagnose(f"http://me:{CANARY}@127.0.0.1:{free_port}/v1")
    assert CANARY not in str(caught.value)


def test_engine_warns_when_it_does_not_answer_in_time():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        finding = find(diagnose(url, limit_s=0.5), "engine")
    assert finding.status == "warn"
    assert "not finished within 0.5 s" in finding.says


def test_prefect_fails_when_its_server_is_down(monkeypatch, free_port):
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port}/api")
    finding = find(diagnose(), "prefect")
    assert finding.status == "fail"
    assert "headrace up" in finding.mend


def test_deployments_warn_when_the_server_has_none(monkeypatch, prefect):
    monkeypatch.setenv("PREFECT_API_URL", prefect.environment["PREFECT_API_URL"])
    findings = diagnose()
    assert find(findings, "prefect").status == "ok"
    # Other tests may have deployed to this server.
    deployed = find(findings, "deployments")
    assert deployed.status == "ok" or deployed.mend == "headrace up"


def test_packages_differ_when_the_lock_names_others(tmp_path):
    lock = tmp_path / "main.lock"
    lock.write_text("prefect==0.0.1 \\\n    --hash=sha256:00\nno-such-package==1.0\nRich[x]==0.1\n")
    differing = differing_packages(lock)
    assert list(differing) == ["prefect", "no-such-package", "rich"]
    assert differing["no-such-package"] == "no-such-package 1.0 missing"


def test_unknown_profile_is_wrong_usage_when_given():
    with pytest.raises(ConfigError, match="did you mean 'moonshot'"):
        diagnose("moonshoot")
