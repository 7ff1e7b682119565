import asyncio

import pytest

from config.load import set_environment
from connectors.sinks.lake import Lake
from engine.batch import WINDOW, Amount
from engine.request import Result, Usage
from flows.run.claims import Claims
from flows.run.ledger import Ledger, journal_spent


@pytest.mark.parametrize("num_steps", range(6))
def test_flushing_ends_when_it_is_cancelled_as_the_window_fills(tmp_path, num_steps):
    set_environment({"HEADRACE_STATE": str(tmp_path / "state")})
    lake = Lake(str(tmp_path / "lake"))
    results = [
        Result(request_key=f"{number}", stage="kind", outcome="succeeded", mode="instant")
        for number in range(WINDOW)
    ]

    async def end_while_full(ledger):
        flushing = asyncio.ensure_future(ledger.keep_flushing())
        await asyncio.sleep(0.01)
        for result in results:
            ledger.note(result)
        # A cancellation may come at any step of the loop after that.
        for _ in range(num_steps):
            await asyncio.sleep(0)
        flushing.cancel()
        done, _ = await asyncio.wait({flushing}, timeout=5)
        flushing.cancel()
        return bool(done)

    with Claims(lake.storage, "run") as claims, claims.take("s00000", wait=False) as claim:
        ledger = Ledger(lake, "run", "new", claim)
        assert asyncio.run(end_while_full(ledger))
        ledger.save()


def result(stage, number):
    return Result(
        request_key=f"{stage}-{number}",
        stage=stage,
        outcome="succeeded",
        mode="instant",
        usage=Usage(prompt_tokens=100, completion_tokens=number),
        cost_usd=0.5,
        gpu_seconds=2.0,
    )


def test_each_stage_keeps_what_it_spent_when_a_run_stops_in_a_shard(tmp_path):
    lake = Lake(str(tmp_path))
    with Claims(lake.storage, "run") as claims, claims.take("s00000", wait=False) as claim:
        ledger = Ledger(lake, "run", "new", claim)
        for number in (1, 2):
            ledger.note(result("kind", number))
        ledger.note(result("title", 3))
        ledger.save()
        mine = claim.holder.token
    spent = {
        "kind": Amount(tokens=203, usd=1.0, gpu_seconds=4.0),
        "title": Amount(tokens=103, usd=0.5, gpu_seconds=2.0),
    }
    assert journal_spent(lake, "s00000", "run", ()) == spent
    # Neither what a marker counts already, nor what another run has paid.
    assert journal_spent(lake, "s00000", "run", {mine}) == {}
    assert journal_spent(lake, "s00000", "other", ()) == {}
    with Claims(lake.storage, "run") as claims, claims.take("s00000", wait=False) as claim:
        assert Ledger(lake, "run", "resume", claim).paid(()) == spent
