import asyncio

import pytest

from config.load import set_environment
from connectors.sinks.lake import Lake
from engine.batch import WINDOW
from engine.request import Result
from flows.run.claims import Claims
from flows.run.ledger import Ledger


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
