"""Checks of what is installed: the orchestrator's packages, the engine's environment, its model."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path

from config.load import Surroundings, child_environment
from engine.install import LOCKS, gpu_names, hash_of, installed_facts, lock_for
from engine.local_models import LOCAL_MODELS, LocalModelName
from flows.checks.finding import Finding, fail, ok, warn
from flows.checks.machine import GPU_LIMIT_S

INSTALL = "headrace engine install"
_REINSTALL = "rm -f .venv/installed && make install-main"
_LOCKED = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)
_SHOWN = 3
_IMPORT_LIMIT_S = 4.5


def check_packages() -> Sequence[Finding]:
    """Return whether this environment holds what requirements/main.lock says."""
    differing = differing_packages(LOCKS / "main.lock")
    if not differing:
        return [ok("packages", "all at the versions of requirements/main.lock")]
    shown = ", ".join(list(differing.values())[:_SHOWN])
    more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    absent = any("missing" in text for text in differing.values())
    says = f"not as locked: {shown}{more}"
    # Another version often works; a missing package does not.
    found = fail if absent else warn
    return [found("packages", says, _REINSTALL), *_check_server_imports(differing)]


def differing_packages(lock: Path) -> dict[str, str]:
    """Return what differs between the lock and this environment, in words, by package."""
    installed = {
        _normal(found.metadata["Name"]): found.version
        for found in distributions()
        if found.metadata["Name"]
    }
    differing = {}
    for name, version in _LOCKED.findall(lock.read_text(encoding="utf-8")):
        found = installed.get(_normal(name))
        if found is None:
            differing[_normal(name)] = f"{name} {version} missing"
        elif found != version:
            differing[_normal(name)] = f"{name} {found} in place of {version}"
    return differing


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _check_server_imports(differing: Mapping[str, str]) -> Sequence[Finding]:
    """Return whether Prefect's server still imports, where its web stack is not the locked one."""
    if not {"prefect", "fastapi", "starlette", "pydantic"} & set(differing):
        return []
    command = [sys.executable, "-c", "import prefect.server.api.concurrency_limits_v2"]
    try:
        result = subprocess.run(
            command,
            env=child_environment(),
            capture_output=True,
            text=True,
            timeout=_IMPORT_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [warn("prefect server", "did not finish its import in time", _REINSTALL)]
    if result.returncode == 0:
        return []
    last = (result.stderr.strip().splitlines() or ["no message"])[-1]
    return [fail("prefect server", f"does not import: {last}", _REINSTALL)]


def check_engine_environment(surroundings: Surroundings) -> Sequence[Finding]:
    """Return whether the engine's own environment is there and built from the present lock."""
    check, venv = "engine environment", surroundings.engine_venv
    if not (venv / "bin" / "python").exists():
        return [fail(check, f"there is none at {venv}", INSTALL)]
    facts = installed_facts(venv)
    if facts is None:
        return [fail(check, f"{venv} was not installed to its end", INSTALL)]
    lock = lock_for(gpu_names(GPU_LIMIT_S))
    if facts.get("lock") != hash_of(lock):
        return [warn(check, f"{venv} was built from another lock than {lock.name}", INSTALL)]
    return [ok(check, f"{venv}, {facts.get('torch')}")]


def check_model(surroundings: Surroundings, name: LocalModelName) -> Sequence[Finding]:
    """Return whether a model that this machine serves lies in the cache and can be read."""
    model = LOCAL_MODELS[name]
    folder, check = model.model_folder(surroundings.cache), f"{name} model"
    if not folder.is_dir():
        return [warn(check, f"not yet in {folder.parent}; the first start writes it", INSTALL)]
    for file_name in model.FILES:
        try:
            with (folder / file_name).open("rb") as file:
                empty = not file.read(1)
        except OSError as exc:
            return [_broken_model(check, folder, f"{file_name}: {exc.strerror}")]
        if empty:
            return [_broken_model(check, folder, f"{file_name} is empty")]
    return [ok(check, str(folder))]


def _broken_model(check: str, folder: Path, what: str) -> Finding:
    return fail(check, f"{folder}: {what}", f"rm -r {folder} && {INSTALL}")
