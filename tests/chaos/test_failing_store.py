"""A run whose object store fails at random ends as one on a good store, after some attempts."""

import random

import pytest

from tests.chaos.checks import check_manifest, check_paid, check_tables
from tests.chaos.driver import Driver
from tests.chaos.watcher import Watcher
from tests.fakes.s3_proxy import Proxy, RandomFaults, Trouble

RATES = {
    500: 0.02,
    503: 0.02,
    Trouble.CUT_UPLOAD: 0.01,
    Trouble.LOST_ANSWER: 0.02,
    Trouble.CUT_DOWNLOAD: 0.01,
    Trouble.STALE_ETAG: 0.03,
    Trouble.CONFLICT: 0.01,
    Trouble.SILENCE: 0.01,
}


def suffer(world, reference, object_store, bucket, state, *, seed, kills=0, silences=0):
    """Run through a failing store until complete; return what requests met."""
    faults, mark = RandomFaults(seed, RATES, silences), world.engine.mark()
    sink = f"{bucket}/lake"
    with Proxy(object_store.address, faults) as proxy, Watcher(sink, object_store.environment) as w:
        driver = Driver(
            world=world, sink=sink, pace=reference.pace, state=state,
            random=random.Random(seed), may_fail=True, more={"AWS_ENDPOINT_URL": proxy.url},
        )  # fmt: skip
        manifest = driver.finish(max_kills=kills)
    w.look()
    assert w.seen == [], driver.report()
    check_manifest(manifest, reference)
    check_tables(sink, reference)
    # An attempt that the store ends is cut off as one that is killed.
    excess = check_paid(world.engine.paid(mark), reference, driver.kills + driver.failures)
    print(  # noqa: T201
        f"seed {seed}: {len(proxy.requests)} requests, {dict(faults.met)}, {driver.failures} failed"
        f" attempts, {driver.kills} kills, {excess} calls paid twice"
    )
    return faults.met


@pytest.mark.timeout(150)
def test_run_ends_as_if_undisturbed_when_the_store_fails_at_random(
    world, reference, object_store, bucket, tmp_path
):
    met = suffer(world, reference, object_store, bucket, tmp_path / "state", seed=1, kills=1)
    assert met[Trouble.LOST_ANSWER] > 0
    assert met[Trouble.CUT_UPLOAD] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(2, 14))
def test_run_ends_as_if_undisturbed_when_the_store_fails_and_the_run_is_killed(
    world, reference, object_store, bucket, tmp_path, seed
):
    suffer(
        world, reference, object_store, bucket, tmp_path / "state",
        seed=seed, kills=seed % 4, silences=seed % 3,
    )  # fmt: skip
