"""Claims on shards: one holder at a time, taken over from the dead, whatever clocks say."""

import threading
import time
from dataclasses import replace

import pytest

from connectors.storage import LocalStorage
from flows.run.claims import CLAIMS, Claims, ShardClaimed

LEASE_S = 1.2


class Elsewhere(Claims):
    """Claims as a process of another machine makes them: that it lives cannot be looked up."""

    def __init__(self, storage, run_id, **options):
        super().__init__(storage, run_id, **options)
        self._me = replace(self._me, machine="another", pid=1, pid_started="")


def test_second_run_is_refused_and_told_the_first_while_it_lives(tmp_path):
    storage = LocalStorage(tmp_path)
    with (
        Elsewhere(storage, "run-a", lease_s=LEASE_S) as first,
        Claims(storage, "run-b", lease_s=LEASE_S) as second,
        first.take("s00000", wait=False),
    ):
        for wait in (False, True):
            with (
                pytest.raises(ShardClaimed, match="by run run-a"),
                second.take("s00000", wait=wait),
            ):
                pass
        with second.take("s00001", wait=False):
            pass


def test_shard_is_taken_when_its_holder_gives_it_back(tmp_path):
    storage = LocalStorage(tmp_path)
    first = Elsewhere(storage, "run-a", lease_s=LEASE_S)
    with first, Claims(storage, "run-b", lease_s=LEASE_S) as second:
        with first.take("s00000", wait=False):
            pass
        with second.take("s00000", wait=False) as claim:
            assert claim.holder.run_id == "run-b"
    assert list(storage.list(CLAIMS)) == []


def test_claim_of_a_silent_machine_is_taken_over_after_the_lease(tmp_path, monkeypatch):
    storage = LocalStorage(tmp_path)
    # Never entered: it does not renew, as a process that was killed.
    silent = Elsewhere(storage, "run-a", lease_s=LEASE_S)._take("s00000", wait=False)
    assert silent.holder.run_id == "run-a"
    # Clocks of the machines are hours apart: nothing looks at them.
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() - 7200)
    with Claims(storage, "run-b", lease_s=LEASE_S) as second:
        with pytest.raises(ShardClaimed), second.take("s00000", wait=False):
            pass
        with second.take("s00000", wait=True) as claim:
            assert claim.holder.run_id == "run-b"


def test_claim_of_a_dead_process_of_this_machine_is_taken_over_at_once(tmp_path):
    storage = LocalStorage(tmp_path)
    dead = Claims(storage, "run-a", lease_s=600)
    dead._me = replace(dead._me, pid_started="0")
    dead._take("s00000", wait=False)
    with (
        Claims(storage, "run-b", lease_s=600) as second,
        second.take("s00000", wait=False) as claim,
    ):
        assert claim.holder.run_id == "run-b"


def test_holder_learns_that_it_lost_its_claim(tmp_path):
    storage = LocalStorage(tmp_path)
    with Claims(storage, "run-a", lease_s=0.6) as first, first.take("s00000", wait=False) as claim:
        held = storage.find(f"{CLAIMS}/s00000.json")
        while (
            storage.put_if_match(
                f"{CLAIMS}/s00000.json", held.data.replace(b"run-a", b"run-c"), held.etag
            )
            is None
        ):
            held = storage.find(f"{CLAIMS}/s00000.json")
        # Another token would be another run's; the same token is this run's own.
        taken = storage.find(f"{CLAIMS}/s00000.json")
        other = taken.data.replace(claim.holder.token.encode(), b"0" * 16)
        while storage.put_if_match(f"{CLAIMS}/s00000.json", other, taken.etag) is None:
            taken = storage.find(f"{CLAIMS}/s00000.json")
            other = taken.data.replace(claim.holder.token.encode(), b"0" * 16)
        gone = threading.Event()
        for _ in range(100):
            if claim.is_lost or gone.wait(0.05):
                break
        assert claim.is_lost
    # What another run holds is left alone.
    assert storage.find(f"{CLAIMS}/s00000.json") is not None
