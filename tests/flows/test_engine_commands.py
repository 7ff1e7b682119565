"""`headrace engine plan|serve|status|stop`: verdicts, commands, and a server from its start to its end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from config.load import PROFILES
from engine.server import _free_port as free_port
from flows.cli import app
from flows.planner_page import PAGES
from flows.planner_points import points, verdicts
from tests.fakes import vllm_program

ROOT = Path(__file__).resolve().parent.parent.parent
HEADRACE = Path(sys.executable).with_name("headrace")


def call(*arguments):
    return CliRunner().invoke(app, ["engine", *(str(argument) for argument in arguments)])


def as_json(*arguments):
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    return json.loads(line)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with eight H200 and a vLLM that stands in for the real one; the profile `ours`."""
    programs = vllm_program.install(tmp_path / "venv", broken=tmp_path / "broken")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HEADRACE_ENGINE_VENV", str(tmp_path / "venv"))
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HEADRACE_PROFILES", str(tmp_path / "profiles"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    text = (PROFILES / "kimi-k2.5.yaml").read_text(encoding="utf-8")
    text = text.replace("name: kimi-k2.5\n", "name: ours\n")
    text = text.replace(
        "base_url: http://localhost:8000", f"base_url: http://localhost:{free_port()}"
    )
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "ours.yaml").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("path", PAGES)
def test_page_is_what_the_planner_says_when_it_is_written_anew(path):
    assert (ROOT / path).read_text(encoding="utf-8") == PAGES[path](), "run `make reference`"


def test_every_point_is_met_or_says_why_when_the_page_is_written():
    missed = [one for one in points() if not one.is_met]
    assert [one.what for one in missed if not one.why] == []
    assert len(missed) == 5
    assert [one.setup for one in verdicts() if not one.is_met] == [
        "4xH200, Unsloth's file of 630 GB"
    ]
    assert sum(one.is_met and one.exact for one in points()) == 4


def test_plan_is_one_object_when_json_is_asked_for(tmp_path):
    drawn = tmp_path / "memory.svg"
    shown = as_json(
        "plan",
        "kimi-k2.5",
        "--gpus",
        "8xH200",
        "--utilization",
        "0.9",
        "--text-only",
        "--svg",
        drawn,
    )
    assert (shown["weights_bytes"], shown["kv_tokens"]) == (595_148_192_736, 715_072)
    assert (shown["fits"], shown["gpus"], shown["served"]) == (True, "8xH200", None)
    assert drawn.read_text(encoding="utf-8").startswith("<svg ")


def test_verdict_comes_first_when_a_person_asks():
    result = call("plan", "kimi-k2.5", "--gpus", "4xH200")
    assert result.stdout.startswith("does not fit  4xH200 do not hold Kimi K2.5 in INT4")
    assert "option        --gpus 8xH200" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "fits", "code"),
    [
        (("kimi-k2.5", "--gpus", "8xH200"), True, 0),
        (("kimi-k2.5", "--gpus", "4xH200"), False, 1),
        (("kimi-k2.5", "--gpus", "8xH200", "--concurrency", "20"), False, 1),
        # Nobody knows is no refusal: `fits` tells it from a yes.
        (("kimi-k2.6", "--gpus", "8xH200"), None, 0),
    ],
)
def test_exit_code_is_1_only_when_it_does_not_fit(arguments, fits, code):
    result = call("plan", *arguments, "--json")
    assert (json.loads(result.stdout)["fits"], result.exit_code) == (fits, code)
    assert call("plan", *arguments).exit_code == code


def test_profiles_own_hardware_is_planned_when_none_is_here():
    assert as_json("plan", "kimi-k2.5")["gpus"] == "8xH200"
    servers = as_json("plan", "our-cluster")
    assert servers["gpus"] == "16xH200"
    # Two servers of eight, and not one of sixteen.
    assert servers["kv_tokens"] == 2 * as_json("plan", "kimi-k2.5")["kv_tokens"]
    result = call("plan", "kimi-k2.5", "--gpus", "found")
    assert result.exit_code == 2
    assert "nvidia-smi lists no GPU on this machine; say which are meant" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("plan", "moonshot"), "does not say what its model is like"),
        (("plan", "kimi-k2.5", "--gpus", "8xFOO9"), "not in the catalogue"),
        (("plan", "kimi-k2.5", "--gpus", "8xH200", "--tp", "3"), "--tp 3 does not divide"),
        (("plan", "kimi-k2.5", "--gpus", "8xH200", "--context", "300000"), "exceeds what"),
        (("plan", "kimi-k2.5", "--gpus", "8xH200", "--kv-dtype", "int2"), "is none of auto"),
        (("plan", "embedded", "--gpus", "8xH200"), "is served on this machine's CPU"),
        (("serve", "kimi-k2.6", "--gpus", "8xH200", "--dry-run"), "not known, no plan"),
        (("plan", "--gpus", "8xH200", "--min-replicas", "3"), "give that folder"),
        (("serve", "kimi-k2.5", "--gpus", "4xH200", "--dry-run"), "4xH200 do not hold"),
        (("serve", "kimi-k2.5", "--gpus", "8xH200", "--lora", "x"), "expected NAME=FOLDER"),
        (("serve", "moonshot", "--dry-run"), "does not say what its model is like"),
        (("serve", "embedded", "--dry-run"), "is for profiles on GPUs"),
        (("status", "moonshot"), "is an engine elsewhere"),
    ],
)
def test_one_message_and_code_2_come_when_it_cannot_be(arguments, said):
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert said in result.output


def test_nothing_is_started_when_the_machine_has_no_gpu():
    result = call("serve", "kimi-k2.5", "--gpus", "8xH200")
    assert result.exit_code == 1
    assert (
        "nvidia-smi lists no GPU on this machine, and 8 are needed, so that nothing"
        in result.output
    )


def test_nothing_is_started_when_the_machine_has_too_few_gpus(machine):
    result = call("serve", "ours", "--gpus", "16xH200", "--nodes", "1", "--tp", "16")
    assert result.exit_code == 1
    assert "nvidia-smi lists 8xH200 on this machine, and 16 are needed" in result.output


def test_models_of_which_too_little_is_known_say_so_when_planned():
    shown = as_json("plan", "kimi-k2.6", "--gpus", "8xH200")
    assert (shown["fits"], shown["kv_tokens"]) == (None, None)
    assert call("plan", "kimi-k2.6", "--gpus", "8xH200").stdout.startswith(
        "not known     not known"
    )


def test_pipelines_plan_says_what_the_hardware_holds_when_it_is_known(tmp_path):
    (tmp_path / "a.txt").write_text("The sea was calm.", encoding="utf-8")
    arguments = ["plan", "demo", "--source", str(tmp_path), "--engine", "kimi-k2.5"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    held = json.loads(result.stdout)["capacity"]
    assert (held["gpus"], held["fits"], held["kv_tokens"]) == ("8xH200", True, 744_576)
    assert held["request_tokens"] > 700
    assert held["requests_at_once"] == 744_576 // held["request_tokens"]
    shown = CliRunner().invoke(app, arguments).stdout
    assert (
        f"holds   8xH200: KV cache has 744,576 tokens, {held['requests_at_once']} requests" in shown
    )


def test_gpus_of_the_machine_are_planned_when_none_are_named(machine):
    assert as_json("plan", "ours")["gpus"] == "8xH200"
    assert as_json("plan", "ours", "--gpus", "found")["gpus"] == "8xH200"


def test_command_is_printed_and_nothing_started_when_run_dry(machine):
    (line,) = as_json("serve", "ours", "--dry-run", "--dcp", "8", "--text-only")["commands"]
    assert line.startswith("vllm serve moonshotai/Kimi-K2.5 ")
    assert "--decode-context-parallel-size=8" in line
    assert as_json("status", "ours")["running"] is False


@pytest.mark.timeout(120)
def test_engine_is_kept_from_its_start_to_its_end_when_served_in_the_background(machine):
    shown = as_json_outside("serve", "ours", "--detach")
    try:
        state = as_json("status", "ours")
        assert (state["running"], state["address"]) == (True, shown["address"])
        assert httpx.get(f"{shown['address']}/models", timeout=10).is_success
        # Its keeper looks once a second, and gives up a server that ends before it has seen it answer.
        keeper_log = machine / "cache" / "engine" / "ours.keeper.log"
        deadline = time.monotonic() + 30
        while "ready after" not in keeper_log.read_text(encoding="utf-8"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        # A crash is not the end: whoever watches starts it again.
        with pytest.raises(httpx.HTTPError):
            httpx.post(f"{shown['address'].removesuffix('/v1')}/crash", timeout=10)
        deadline = time.monotonic() + 60
        while (again := as_json("status", "ours"))["pid"] in {None, state["pid"]}:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert again["watched_by"] == state["watched_by"]
    finally:
        ended = as_json("stop", "ours")
    assert ended == {"ended": True}
    assert as_json("status", "ours")["running"] is False
    assert as_json("stop", "ours") == {"ended": False}


@pytest.mark.timeout(120)
def test_engine_ends_with_its_command_when_it_is_interrupted(machine):
    with subprocess.Popen(
        [HEADRACE, "engine", "serve", "ours", "--json"], stdout=subprocess.PIPE, text=True
    ) as command:
        address = json.loads(command.stdout.readline())["address"]
        assert httpx.get(f"{address}/models", timeout=10).is_success
        command.send_signal(signal.SIGINT)
        assert command.wait(60) == 130
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{address}/models", timeout=5)


@pytest.mark.timeout(120)
def test_logs_end_is_shown_when_vllm_does_not_start(machine):
    (machine / "broken").touch()
    for extra in ((), ("--detach",)):
        result = subprocess.run(
            [HEADRACE, "engine", "serve", "ours", *extra],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 1
        assert "no room for the KV cache" in result.stderr


def as_json_outside(*arguments):
    """Return what a command prints that starts others of its kind, so that it needs a process of its own."""
    result = subprocess.run(
        [HEADRACE, "engine", *arguments, "--json"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
