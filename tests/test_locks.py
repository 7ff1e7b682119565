"""The environment is the locked one, and the locked Prefect server starts."""

import importlib.metadata
import re
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "requirements" / "dev.lock"


def locked():
    text = LOCK.read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9.-]+)(?:\[[a-z,]+\])?==([^\s;\\]+)", text, re.MULTILINE))


def test_installed_versions_are_the_locked_ones_when_compared():
    wrong = {
        name: (version, importlib.metadata.version(name))
        for name, version in locked().items()
        if importlib.metadata.version(name) != version
    }
    assert not wrong


def test_nothing_else_is_installed_when_compared():
    installed = {
        re.sub(r"[-_.]+", "-", dist.metadata["Name"]).lower()
        for dist in importlib.metadata.distributions()
    }
    assert installed - set(locked()) <= {"headrace", "pip", "setuptools", "wheel"}


def test_fastapi_is_one_that_the_prefect_server_imports_with_when_locked():
    major, minor = locked()["fastapi"].split(".")[:2]
    assert (int(major), int(minor)) < (0, 151)


def test_prefect_server_starts_when_only_the_lock_is_installed(prefect):
    assert prefect.is_ready()
