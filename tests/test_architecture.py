"""The house keeps its shape: directions of import, sizes of files, names that shadow nothing."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("flows", "engine", "connectors", "tools", "config")
MAX_LINES = 500


def test_imports_go_one_way_when_linted():
    lint = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_are_at_most_500_lines_when_counted(folder):
    long = {
        str(file.relative_to(ROOT)): count
        for file in (ROOT / folder).rglob("*.py")
        if (count := len(file.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert not long


@pytest.mark.parametrize("folder", FOLDERS)
def test_package_is_this_repository_when_imported_from_elsewhere(folder, tmp_path):
    code = f"import {folder}; print({folder}.__file__)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert Path(result.stdout.strip()).parent == ROOT / folder


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_with_code_is_a_package_when_walked(folder):
    code_folders = {file.parent for file in (ROOT / folder).rglob("*.py")}
    assert not [str(path) for path in code_folders if not (path / "__init__.py").exists()]


def test_flow_modules_shadow_no_standard_or_top_level_module_when_flows_is_on_the_path():
    names = {file.stem for file in (ROOT / "flows").glob("*.py")} - {"__init__"}
    assert not names & (set(sys.stdlib_module_names) | set(FOLDERS))


def test_all_eight_packages_are_named_when_pyproject_is_read():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in ("prefect", "torch", "vllm", "pyarrow", "polars", "pypdf", "opencv-python", "s3fs"):
        assert f'"{name}' in text


def test_torch_is_absent_when_looked_for_in_the_orchestrator():
    assert importlib.util.find_spec("torch") is None
    assert importlib.util.find_spec("vllm") is None


def test_lock_files_name_no_registry_when_read():
    for lock in (ROOT / "requirements").glob("*.lock"):
        text = lock.read_text(encoding="utf-8")
        assert "://" not in text, lock
        assert "--hash=sha256:" in text, lock
