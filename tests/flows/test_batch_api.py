"""Stages that go through the host's batch API: the same records, for less, and each line sent once."""

import pytest

from tests.fakes.batch_host import BatchHostServer
from tests.flows.batch_runs import (
    NUM_FILES,
    check_paid_once,
    records,
    run_in,
    usage,
    write_world,
)


@pytest.fixture
def host():
    with BatchHostServer() as fake:
        yield fake


def test_a_run_waits_for_its_batches_and_pays_the_lower_price(host, tmp_path):
    write_world(tmp_path, host.url)
    manifest = run_in(tmp_path)
    check_paid_once(tmp_path, host, manifest)
    # Two shards and two stages; the stage over the corpus asks at once.
    assert len(host.kept.submitted) == 4
    assert host.kept.at_once == 1
    table = usage(tmp_path, manifest["run_id"])
    by_stage = {name: rows for (name,), rows in table.group_by("stage")}
    assert all(len(ids) == 1 for ids in by_stage["kind"]["batch_ids"])
    assert all(len(ids) == 0 for ids in by_stage["all"]["batch_ids"])
    for name, factor in (("kind", 0.6), ("title", 0.6), ("all", 1.0)):
        rows = by_stage[name]
        full = (rows["prompt_tokens"].sum() * 1.0 + rows["completion_tokens"].sum() * 10.0) / 1e6
        assert rows["cost_usd"].sum() == pytest.approx(factor * full)
        assert manifest["stages"][name]["cost_usd"] == pytest.approx(factor * full)
    assert set(by_stage["kind"]["seconds"].round()) == {60.0}
    assert len(table) == 2 * NUM_FILES + 1


@pytest.mark.parametrize(
    "rules",
    [
        {"shuffle": True},
        {"double": True},
        {"strangers": 3},
        {"keeps_metadata": False},
        {"num_looks": 4},
    ],
    ids=lambda rules: next(iter(rules)),
)
def test_the_order_and_rest_of_a_hosts_files_do_not_matter(host, tmp_path, rules):
    host.set(**rules)
    write_world(tmp_path, host.url)
    check_paid_once(tmp_path, host, run_in(tmp_path))


def test_records_are_the_same_as_those_of_calls_at_once(host, tmp_path):
    write_world(tmp_path, host.url)
    run_in(tmp_path)
    before = host.kept.at_once
    run_in(tmp_path, "stages.*.batch_api=null", lake="other")
    assert host.kept.at_once - before == 2 * NUM_FILES + 1
    for stage in ("kind", "title", "all"):
        one, other = (records(tmp_path, stage, lake).sort("row_key") for lake in ("lake", "other"))
        assert one.equals(other)
