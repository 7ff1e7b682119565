"""A real `headrace up`: its servers, deployments, form, schedule, cancelling, and its end."""

import os
import signal
import socket
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest

from engine.process import start_mark
from tests.fakes.engine_server import FakeEngine, Fault
from tests.flows.stack_client import SECRET, Stack, below, two_ports, write_files


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = Stack(tmp_path_factory.mktemp("up"))
    stack.first = stack.up("--port", stack.port)
    yield stack
    stack.headrace("down")


def pids(shown):
    return {name: shown[name]["pid"] for name in ("prefect", "worker", "reports")}


@pytest.mark.timeout(120)
def test_everything_is_left_alone_when_up_is_called_again(stack):
    again = stack.up()
    assert pids(again) == pids(stack.first)
    assert {again[name]["state"] for name in pids(again)} == {"running already"}
    assert again["prefect"]["address"] == f"http://127.0.0.1:{stack.port}"


@pytest.mark.timeout(120)
def test_only_the_dead_piece_is_started_when_one_was_killed(stack):
    os.kill(stack.first["reports"]["pid"], signal.SIGKILL)
    again = stack.up()
    assert again["reports"]["state"] == "started"
    assert pids(again) | {"reports": 0} == pids(stack.first) | {"reports": 0}
    with urllib.request.urlopen(f"{again['reports']['address']}/health", timeout=5) as answer:
        assert answer.status == 200


def test_form_offers_lists_help_and_ranges_when_it_is_opened(stack):
    schema = stack.deployment("process-corpus")["parameter_openapi_schema"]
    fields = schema["properties"]
    assert fields["pipeline"]["default"] == "demo"
    assert "demo" in fields["pipeline"]["enum"]
    assert {"embedded", "moonshot"} <= set(fields["engine"]["enum"])
    assert fields["limit"]["minimum"] == 1
    assert fields["failure_limit"]["maximum"] == 1
    assert not [name for name, field in fields.items() if not field.get("description")]
    assert not [name for name, field in fields.items() if "anyOf" in field]
    assert list(fields)[:3] == ["pipeline", "source", "sink"]


def test_schedule_and_limit_are_there_and_off_when_deployed(stack):
    deployment = stack.deployment("process-corpus")
    (schedule,) = deployment["schedules"]
    assert not schedule["active"]
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert stack.deployment("retry-failed")
    assert stack.deployment("report")


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"pipelin": "demo"}, "'pipelin' was unexpected"),
        ({"pipeline": "nope"}, "'nope' is not one of"),
        ({"engine": "kimi"}, "'kimi' is not one of"),
        ({"limit": 0}, "0 is less than the minimum of 1"),
        ({"failure_limit": 2}, "2 is greater than the maximum of 1"),
        ({"budget_usd": "many"}, "field 'budget_usd'"),
        ({"secret_blocks": ["sk-Abc/123"]}, "does not match"),
    ],
)
def test_run_is_refused_when_a_parameter_is_wrong(stack, parameters, words):
    status, answer = stack.create_run("process-corpus", parameters)
    assert status == 409
    assert words in answer


@pytest.mark.timeout(120)
def test_run_completes_when_its_schedule_fires(stack, tmp_path, engine):
    source = write_files(tmp_path / "source", 4)
    deployment = stack.deployment("process-corpus")["id"]
    schedule = {
        "active": True,
        "schedule": {"interval": 5.0, "anchor_date": datetime.now(UTC).isoformat()},
        "parameters": {
            "source": str(source),
            "sink": str(tmp_path / "lake"),
            "engine_url": engine.url,
        },
    }
    status, (made,) = stack.api(f"deployments/{deployment}/schedules", [schedule])
    assert status == 201
    chosen = {
        "flow_runs": {
            "deployment_id": {"any_": [deployment]},
            "state": {"type": {"any_": ["PENDING", "RUNNING", "COMPLETED"]}},
        }
    }
    deadline = time.monotonic() + 60
    while not (fired := stack.api("flow_runs/filter", chosen)[1]) and time.monotonic() < deadline:
        time.sleep(0.3)
    stack.api(f"deployments/{deployment}/schedules/{made['id']}", method="DELETE")
    assert fired
    assert fired[0]["auto_scheduled"]
    run = stack.wait(fired[0]["id"])
    assert run["state"]["name"] == "Completed", run["state"]
    assert run["name"].startswith("demo 20")
    artifacts = stack.artifacts(run["id"])
    assert set(artifacts) == {"progress", "report", "summary", "outcomes", "took"}
    assert artifacts["progress"]["data"] == 100.0
    assert "| documents | 4 of 4 read |" in artifacts["progress"]["description"]
    report = artifacts["report"]["data"]
    address = report[report.index("(") + 1 : report.rindex(")")]
    assert address.startswith(f"http://127.0.0.1:{stack.port + 1}/runs/")
    with urllib.request.urlopen(address, timeout=10) as answer:
        assert "script-src" not in answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        page = answer.read().decode()
    assert "000.txt" in page
    with urllib.request.urlopen(f"http://127.0.0.1:{stack.port + 1}/", timeout=10) as answer:
        assert address.split("/runs/")[1] in answer.read().decode()
    _leave_no_runs(stack)


def _leave_no_runs(stack):
    """Delete the runs that the schedule has asked for already."""
    chosen = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}}}}
    for run in stack.api("flow_runs/filter", chosen)[1]:
        stack.api(f"flow_runs/{run['id']}", method="DELETE")


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/runs/..%2F..%2Fetc/", None, 404),
        ("/runs/../../etc/passwd", None, 404),
        ("/runs/20000101T000000Z-none/", None, 404),
        ("/elsewhere", None, 404),
        ("/", "reports.example.com", 403),
    ],
)
def test_report_server_refuses_when_asked_for_anything_but_a_run(stack, path, host, status):
    url = f"http://127.0.0.1:{stack.port + 1}{path}"
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    assert caught.value.code == status
    caught.value.close()


@pytest.mark.timeout(120)
def test_run_ends_cancelled_without_leftovers_when_cancelled_from_the_ui(stack, tmp_path):
    source = write_files(tmp_path / "source", 40)
    with FakeEngine(script=lambda *_: Fault(hang_s=1.0)) as engine:
        parameters = {
            "source": str(source),
            "sink": str(tmp_path / "lake"),
            "engine_url": engine.url,
            "settings": ["documents_per_shard=20"],
        }
        status, run = stack.create_run("process-corpus", parameters)
        assert status == 201
        deadline = time.monotonic() + 60
        while len(engine.calls) < 30 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert len(engine.calls) >= 30
        worker = stack.first["worker"]["pid"]
        assert below(worker)
        stack.api(f"flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}})
        ended = stack.wait(run["id"], limit_s=40)
    assert ended["state"]["name"] == "Cancelled"
    assert "headrace run --resume" in ended["state"]["message"]
    deadline = time.monotonic() + 15
    while below(worker) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not below(worker)
    saved = (tmp_path / "lake" / "_headrace" / "journal").rglob("*.jsonl")
    assert any('"result"' in file.read_text(encoding="utf-8") for file in saved)


@pytest.mark.timeout(120)
def test_key_reaches_the_engine_and_nothing_else_when_it_is_in_a_secret_block(stack, tmp_path):
    _, kind = stack.api("block_types/slug/secret")
    chosen = {"block_schemas": {"block_type_id": {"any_": [kind["id"]]}}}
    _, schemas = stack.api("block_schemas/filter", chosen)
    block = {
        "name": "openai-api-key",
        "data": {"value": SECRET},
        "block_type_id": kind["id"],
        "block_schema_id": schemas[0]["id"],
    }
    assert stack.api("block_documents/", block)[0] == 201
    parameters = {
        "source": str(write_files(tmp_path / "source", 2)),
        "sink": str(tmp_path / "lake"),
        "secret_blocks": ["openai-api-key"],
    }
    with FakeEngine(api_key=SECRET) as engine:
        _, run = stack.create_run("process-corpus", {**parameters, "engine_url": engine.url})
        assert stack.wait(run["id"])["state"]["name"] == "Completed"
        missing = {**parameters, "engine_url": engine.url, "secret_blocks": ["nowhere"]}
        _, other = stack.create_run("process-corpus", missing)
        state = stack.wait(other["id"])["state"]
    assert state["type"] == "FAILED"
    assert "there is no Secret block 'nowhere'" in state["message"]
    for path in (tmp_path / "lake").rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()
    _, logs = stack.api("logs/filter", {})
    assert not [
        line for line in logs if SECRET in line["message"] or "Traceback" in line["message"]
    ]


def test_secrets_of_the_environment_are_in_no_file_when_all_has_run(stack):
    files = [path for path in stack.state.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert (stack.state / "up").stat().st_mode & 0o077 == 0


@pytest.mark.timeout(60)
def test_nothing_is_left_when_all_is_ended(stack):
    running = pids(stack.up())
    started = time.monotonic()
    result = stack.headrace("down")
    assert result.returncode == 0
    assert set(result.stdout.removeprefix("ended: ").strip().split(", ")) == set(running)
    assert time.monotonic() - started < 20
    assert not [pid for pid in running.values() if start_mark(pid)]
    again = stack.headrace("down")
    assert (again.returncode, again.stdout.strip()) == (0, "nothing was running")


def test_port_is_named_when_it_is_taken(tmp_path):
    stack, port = Stack(tmp_path), two_ports()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port + 1))
        taken.listen()
        result = stack.headrace("up", "--no-engine", "--port", port)
    assert result.returncode == 1
    assert f"port {port + 1} is taken" in result.stderr
    assert "--port" in result.stderr
    assert stack.headrace("down").stdout.strip() == "nothing was running"


@pytest.mark.timeout(120)
def test_password_is_hidden_and_nothing_left_when_the_database_does_not_answer(tmp_path):
    stack = Stack(tmp_path)
    stack.environment["HEADRACE_DATABASE_URL"] = "postgresql://me:topsecret@127.0.0.1:9/prefect"
    result = stack.headrace("up", "--no-engine", "--port", stack.port)
    assert result.returncode == 1
    assert "its log" in result.stderr
    assert "topsecret" not in result.stderr + result.stdout
    assert "Traceback (most recent call last)" not in result.stderr.split("ends with:")[0]
    assert stack.headrace("down").stdout.strip() == "nothing was running"
    for path in Path(stack.state).rglob("*.json"):
        assert "topsecret" not in path.read_text(encoding="utf-8")
