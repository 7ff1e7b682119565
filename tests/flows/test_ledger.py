import asyncio
from dataclasses import asdict, replace

import pytest

from config.load import set_environment
from connectors.sinks.lake import Lake
from engine.batch import WINDOW, Amount
from engine.request import Result, Usage
from flows.run.answers import result_from_json
from flows.run.claims import Claims
from flows.run.ledger import Ledger, journal_spent
from flows.run.rows import usage_row


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


def test_result_of_an_earlier_version_is_read_when_it_does_not_say_how_long_it_waited():
    result = Result(request_key="k", stage="kind", outcome="succeeded", mode="instant", seconds=3.0)
    kept = asdict(result)
    for name in ("queued_s", "decoding_s"):
        del kept[name]
    assert result_from_json(kept) == result
    told = replace(result, queued_s=1.5, first_token_s=0.5, decoding_s=1.0)
    assert result_from_json(asdict(told)) == told
    row = usage_row("row", told)
    assert (row["queued_s"], row["first_token_s"], row["decoding_s"]) == (1.5, 0.5, 1.0)
