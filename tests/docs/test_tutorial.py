"""The tutorial's commands, run in its order, on a folder of small files and the embedded engine."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.vllm
@pytest.mark.timeout(400)
def test_every_command_works_when_the_tutorial_is_followed(embedded_engine, tmp_path):
    shutil.copytree(ROOT / "config" / "demo_corpus" / "notes", tmp_path / "papers")
    commands = [
        line
        for block in re.findall(r"```sh\n(.*?)```", TUTORIAL, re.DOTALL)
        for line in block.splitlines()
    ]
    assert len(commands) == 11
    shown = {command: run(command, tmp_path) for command in commands}
    first = shown['headrace ask "What is it about?" papers --chunks 1']
    assert "harbour-log.md" in first
    assert "3 listed, 3 read" in first
    assert shown["headrace records --csv"].count("succeeded") == 3
    assert "complete" in shown["headrace status"]


def test_first_question_of_the_readme_is_the_tutorials_when_read():
    assert 'headrace ask "What is it about?" ./papers --chunks 1' in README


def run(command, folder):
    environment = {name: value for name, value in os.environ.items() if "PREFECT" not in name}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, f"{command}: {result.stderr}"
    return result.stdout
