"""The world of the chaos tests, made once, and the undisturbed run that the others must equal."""

from __future__ import annotations

import pytest

from tests.chaos.checks import Reference, inputs_of, parts_of
from tests.chaos.driver import undisturbed
from tests.chaos.world import PIPELINE, PaidEngine, World, write_corpus


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chaos")
    write_corpus(folder / "source")
    (folder / "chaos.yaml").write_text(PIPELINE, encoding="utf-8")
    with PaidEngine(folder) as engine:
        yield World(source=folder / "source", pipeline=folder / "chaos.yaml", engine=engine)


@pytest.fixture(scope="session")
def reference(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    mark = world.engine.mark()
    manifest, pace = undisturbed(world, str(folder / "lake"), folder / "state")
    paid = world.engine.paid(mark)
    return Reference(parts_of(str(folder / "lake")), paid, inputs_of(manifest), pace)


@pytest.fixture(params=["folder", "bucket"])
def sinks(request, tmp_path):
    """A function that names a new sink, and how a reader of its own gets at it."""
    if request.param == "folder":
        return lambda name: str(tmp_path / name), None
    url, store = request.getfixturevalue("bucket"), request.getfixturevalue("object_store")
    return lambda name: f"{url}/{name}", store.environment
