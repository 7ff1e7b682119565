"""Shards as Prefect task runs: which errors get another try. With a real server."""

import pytest

from connectors.errors import StorageError, StorageUnavailable
from engine.errors import EngineMisconfigured, EngineUnavailable
from flows.run.plan import ShardPlan

SHARD = ShardPlan(shard="s00000", sources=())


@pytest.fixture
def conduct(prefect):
    """Runs a worker over one shard inside a flow run, without waits between tries."""
    from prefect import flow
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.tasks import as_tasks

    def run(worker):
        @flow(name="tries")
        def tries():
            return [*as_tasks("notes", waits_s=(0.0, 0.0))(worker, [SHARD])]

        with temporary_settings({PREFECT_API_URL: f"{prefect.address}/api"}):
            return tries()

    return run


@pytest.mark.timeout(90)
@pytest.mark.parametrize("error", [StorageUnavailable("down"), EngineUnavailable("down")])
def test_shard_is_tried_again_when_its_error_may_pass(conduct, error, capfd):
    calls = []

    def worker(plan):
        calls.append(plan.shard)
        if len(calls) < 3:
            raise error
        return "report"

    assert conduct(worker) == ["report"]
    assert calls == ["s00000"] * 3
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.timeout(90)
@pytest.mark.parametrize(
    ("error", "tries"),
    [(StorageError("no"), 1), (EngineMisconfigured("no"), 1), (StorageUnavailable("down"), 3)],
)
def test_error_is_raised_when_it_stays_or_cannot_pass(conduct, error, tries):
    calls = []

    def worker(plan):
        calls.append(plan.shard)
        raise error

    with pytest.raises(type(error), match=str(error)):
        conduct(worker)
    assert len(calls) == tries
