"""Servers that tests share: one fake engine per test, one S3 server and one real engine per session."""

import os
from pathlib import Path

import pytest

from flows.services import PrefectServer
from tests.fakes.engine_server import FakeEngine
from tests.fakes.object_store import SharedStore


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory):
    """A state folder of the tests' own, for this process and those it starts."""
    before = os.environ.get("HEADRACE_STATE")
    os.environ["HEADRACE_STATE"] = str(tmp_path_factory.mktemp("state"))
    yield Path(os.environ["HEADRACE_STATE"])
    if before is None:
        del os.environ["HEADRACE_STATE"]
    else:
        os.environ["HEADRACE_STATE"] = before


@pytest.fixture
def engine():
    """A fake engine that answers every request."""
    with FakeEngine() as fake:
        yield fake


@pytest.fixture(scope="session")
def object_store(tmp_path_factory):
    """A real S3 server, SeaweedFS."""
    with SharedStore(tmp_path_factory.mktemp("s3"), notify=lambda _: None) as store:
        yield store


@pytest.fixture
def bucket(object_store, monkeypatch, request):
    """The URL of an empty prefix on the S3 server, with the environment set for it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{object_store.bucket}/{request.node.nodeid.split('::')[-1].replace('[', '-').rstrip(']')}"


@pytest.fixture(scope="session")
def prefect(tmp_path_factory):
    """A real Prefect server, from the locked versions."""
    with PrefectServer(tmp_path_factory.mktemp("prefect"), notify=lambda _: None) as server:
        yield server


@pytest.fixture(scope="session")
def embedded_engine():
    """The embedded engine, started or found running; its endpoint."""
    from flows.run.bench import open_engine

    with open_engine("embedded", notify=lambda _: None) as endpoint:
        yield endpoint


@pytest.fixture
def demo_corpus():
    """The sample corpus of the demo."""
    return Path(__file__).resolve().parent.parent / "config" / "demo_corpus"
