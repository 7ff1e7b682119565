"""Flow runs on a real Prefect server, started by the command in its own process."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from flows.artifacts import RunPage, describe
from flows.cli.app import EXIT_BUDGET
from flows.deployments import form
from flows.run.progress import Progress
from tests.fakes.batch_host import BatchHostServer
from tests.fakes.engine_server import FakeEngine, Fault
from tests.flows.batch_runs import check_paid_once, write_world
from tests.flows.stack_client import write_files

ROOT = Path(__file__).resolve().parent.parent.parent
HEADRACE = Path(sys.executable).with_name("headrace")


def environment(server):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return kept | server.environment


def arguments(tmp_path, engine, *more):
    source = write_files(tmp_path / "source", 6)
    return [
        HEADRACE, "run", "demo", f"--source={source}", f"--sink={tmp_path / 'lake'}",
        f"--engine={engine.url}", "--json", *more,
    ]  # fmt: skip


def run(server, command):
    return subprocess.run(
        command, cwd=ROOT, env=environment(server), capture_output=True, text=True, check=False
    )


def flow_run(server, run_id):
    """Return the flow run of a run."""
    request = urllib.request.Request(
        f"{server.address}/api/flow_runs/filter",
        data=json.dumps({"sort": "START_TIME_DESC"}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        runs = json.load(answer)
    return next(item for item in runs if item["parameters"].get("run_id") == run_id)


@pytest.mark.timeout(90)
@pytest.mark.parametrize(
    ("script", "options", "code", "state", "words"),
    [
        (None, [], 0, "Completed", "report: "),
        (lambda *_: Fault(status=422), [], 3, "OverFailureLimit", "headrace retry"),
        (None, ["--budget-tokens=600"], 4, "BudgetReached", "headrace run --resume"),
    ],
)
def test_final_state_says_what_happened_when_a_run_ends(
    prefect, tmp_path, script, options, code, state, words
):
    with FakeEngine(script=script) as engine:
        result = run(prefect, arguments(tmp_path, engine, *options))
    assert result.returncode == code, result.stderr[-2000:]
    manifest = json.loads(result.stdout)
    ended = flow_run(prefect, manifest["run_id"])
    assert ended["state"]["name"] == state
    assert words in ended["state"]["message"]
    assert "Traceback" not in result.stderr


@pytest.mark.timeout(150)
def test_flow_run_ends_while_batches_wait_and_the_next_one_collects_them(prefect, tmp_path):
    with BatchHostServer() as host:
        host.set(takes_to_end=False)
        write_world(tmp_path, host.url)
        sink = f"--sink={tmp_path / 'lake'}"
        leave = "--set=stages.*.batch_api.max_wait_s=0"
        begin = [f"--source={tmp_path}/in", f"--engine={tmp_path}/host.yaml", leave]
        first = run(prefect, [HEADRACE, "run", tmp_path / "waits.yaml", sink, "--json", *begin])
        assert first.returncode == EXIT_BUDGET, first.stderr[-2000:]
        run_id = json.loads(first.stdout)["run_id"]
        ended = flow_run(prefect, run_id)["state"]
        assert ended["name"] == "AwaitingBatch"
        assert "go on when the host has answered" in ended["message"]
        assert run_id in ended["message"]
        host.set(takes_to_end=True)
        go_on = [f"--resume={run_id}", "--set=stages.*.batch_api.max_wait_s=null"]
        last = run(prefect, [HEADRACE, "run", sink, "--json", *go_on])
        assert last.returncode == 0, last.stderr[-2000:]
        check_paid_once(tmp_path, host, json.loads(last.stdout))


@pytest.mark.timeout(90)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)
def test_flow_run_is_cancelled_and_resumable_when_the_command_gets_a_signal(
    prefect, tmp_path, number, code
):
    with FakeEngine(script=lambda *_: Fault(hang_s=2.0)) as engine:
        process = subprocess.Popen(
            arguments(tmp_path, engine), cwd=ROOT, env=environment(prefect),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 40
        while not engine.calls and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    run_id = stderr.split("--resume ")[1].split()[0]
    ended = flow_run(prefect, run_id)
    assert ended["state"]["name"] == "Cancelled"
    assert f"headrace run --resume {run_id}" in ended["state"]["message"]
    group = subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, check=False)
    assert group.stdout == b""


def test_one_message_is_printed_when_the_prefect_server_is_down(prefect, tmp_path, engine):
    command = arguments(tmp_path, engine)
    down = environment(prefect) | {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
    result = subprocess.run(
        command, cwd=ROOT, env=down, capture_output=True, text=True, check=False
    )
    assert result.returncode in {1, 2}
    assert "headrace up" in result.stderr
    assert "Traceback" not in result.stderr


# Outside of a flow run there is no page to write to, which Prefect would say first.
@pytest.mark.filterwarnings("ignore:Artifact creation outside:FutureWarning")
def test_page_that_cannot_be_written_is_one_warning_when_prefect_is_down(monkeypatch, caplog):
    prefect_settings = pytest.importorskip("prefect.settings")
    settings = {
        prefect_settings.PREFECT_API_URL: "http://127.0.0.1:9/api",
        prefect_settings.PREFECT_CLIENT_MAX_RETRIES: 0,
    }
    page, progress = RunPage("r1"), Progress(interval_s=0.0)
    progress.listen(page.show)
    with caplog.at_level(logging.WARNING, "flows"), prefect_settings.temporary_settings(settings):
        page.open()
        progress.enter("processing")
        progress.enter("done")
        page.close()
    said = [record.getMessage() for record in caplog.records if record.name == "flows.artifacts"]
    assert len(said) == 1
    assert "its page is not up to date" in said[0]


def test_first_line_says_the_most_when_progress_is_described():
    progress = Progress()
    progress.add(documents=4, read=2, chunks=3, requests=6)
    head, _, table = describe("r1", progress.snapshot()).partition("\n\n")
    assert head == "starting: 2 of 4 documents, no answer yet"
    assert table.splitlines()[:2] == ["| run | r1 |", "| --- | --- |"]


def test_form_has_plain_fields_when_parameters_may_be_left_out():
    schema = {
        "properties": {
            "limit": {
                "anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}],
                "default": None,
                "title": "limit",
            },
            "engine": {
                "anyOf": [{"type": "string"}, {"type": "null"}],
                "default": None,
                "enum": ["a", None],
            },
            "pipeline": {"type": "string", "default": "demo"},
        }
    }
    made = form(schema)
    assert made["additionalProperties"] is False
    assert made["properties"] == {
        "limit": {"type": "integer", "minimum": 1, "title": "limit"},
        "engine": {"type": "string", "enum": ["a"]},
        "pipeline": {"type": "string", "default": "demo"},
    }
