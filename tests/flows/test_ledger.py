import asyncio
from dataclasses import asdict, replace

import pytest

from config.load import set_environment
from connectors.sinks.lake import Lake
from engine.batch import WINDOW
from engine.request import Result
from flows.run.claims import Claims
from flows.run.ledger import Ledger, result_from_json
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
