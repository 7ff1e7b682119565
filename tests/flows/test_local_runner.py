"""Clarifai's local runner: started, asked, started again, ended, by a fake `clarifai` and a fake endpoint."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from config.load import read_yaml
from config.yaml_text import dump_yaml
from engine.errors import EngineMisconfigured
from flows.cli import app
from flows.local_runner import Running, run_local
from tests.fakes.clarifai import TOKEN, FakeClarifai, install_runner

HEADRACE = Path(sys.executable).with_name("headrace")


@pytest.fixture
def deploy(tmp_path, monkeypatch):
    """An emitted folder whose profile is at a fake host, and a fake `clarifai` on the PATH."""
    home, programs = tmp_path / "home", tmp_path / "bin"
    home.mkdir()
    programs.mkdir()
    install_runner(programs)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_RUNNER_HOME", str(home))
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CLARIFAI_PAT", TOKEN)
    folder = tmp_path / "deploy"
    emitted = ("engine", "plan", "clarifai", "--emit", str(folder), "--user-id", "me")
    assert CliRunner().invoke(app, emitted).exit_code == 0
    with FakeClarifai(runner=home / "serving") as host:
        profile = folder / "clarifai-kimi-k2-5.yaml"
        profile.write_text(dump_yaml({**read_yaml(profile), "base_url": host.url}))
        yield folder


def starts(deploy):
    return (deploy.parent / "home" / "started").read_text().splitlines()


def until(condition, limit_s=40):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.mark.timeout(120)
def test_runner_is_asked_started_again_and_ended_when_it_crashes(deploy):
    home = deploy.parent / "home"
    command = [HEADRACE, "engine", "runner", deploy, "--concurrency", "8", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as shown:
        try:
            profile = json.loads(shown.stdout.readline())["profile"]
            assert profile == str(deploy / "clarifai-kimi-k2-5.yaml")
            assert starts(deploy) == [f"{deploy / 'model'} --mode none --concurrency 8"]
            (home / "crash").touch()
            until(lambda: len(starts(deploy)) == 2 and (home / "serving").exists())
        finally:
            shown.send_signal(signal.SIGINT)
            said = shown.communicate(timeout=40)[1]
    assert shown.returncode == 130
    assert not (home / "serving").exists()
    assert "ended with code 3; starting it again in 2 s" in said
    assert "local runner ended" in said
    log = deploy.parent / "cache/engine/clarifai-kimi-k2-5.runner.log"
    assert TOKEN not in said + log.read_text()


def test_log_is_shown_when_the_runner_does_not_start(deploy):
    (deploy.parent / "home" / "broken").touch()
    result = CliRunner().invoke(app, ["engine", "runner", str(deploy)])
    assert result.exit_code == 1
    assert re.search(
        r"ended with code 1 before it was ready(.|\n)*Requirements not installed", result.output
    )


def test_runner_is_ended_when_the_key_is_wrong(deploy, monkeypatch):
    monkeypatch.setenv("CLARIFAI_PAT", "pat-wrong-1234")
    with pytest.raises(
        EngineMisconfigured, match="401: invalid key; check the API key in CLARIFAI_PAT"
    ) as caught:
        run_local(Running(folder=deploy), lambda _: None, lambda _: None)
    assert "pat-wrong" not in str(caught.value)
    assert not (deploy.parent / "home" / "serving").exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder, env: env.delenv("CLARIFAI_PAT"), "CLARIFAI_PAT is not set"),
        (lambda folder, env: env.setenv("PATH", "/nowhere"), "pip install clarifai==12.5.0"),
        (lambda folder, env: (folder / "model/config.yaml").unlink(), "expected one clarifai-"),
        (
            lambda folder, env: CliRunner().invoke(
                app, ["engine", "plan", "clarifai", "--emit", str(folder), "--overwrite"]
            ),
            "lacks your user id",
        ),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_when_nothing_can_be_started(deploy, monkeypatch, spoil, said):
    spoil(deploy, monkeypatch)
    result = CliRunner().invoke(app, ["engine", "runner", str(deploy)])
    assert result.exit_code in {1, 2}
    assert said in result.output
    assert not (deploy.parent / "home" / "started").exists()
