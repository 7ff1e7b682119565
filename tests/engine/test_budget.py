import asyncio
import threading

import pytest

from engine.batch import Amount, Budget
from engine.batch.budget import amount_of, cost_usd, worst_prompt_tokens
from engine.errors import BudgetReached, EngineMisconfigured
from engine.profile import Prices
from engine.request import Usage
from engine.tokens import MOST_IMAGE_TOKENS

PRICES = Prices(input_usd=1.0, cached_input_usd=0.1, output_usd=10.0)


def body(characters, max_tokens=100):
    return {"messages": [{"role": "user", "content": "x" * characters}], "max_tokens": max_tokens}


def test_price_counts_cached_tokens_apart_when_the_host_tells_them():
    usage = Usage(prompt_tokens=1_000_000, cached_tokens=400_000, completion_tokens=100_000)
    assert cost_usd(usage, PRICES) == pytest.approx(0.6 + 0.04 + 1.0)
    assert cost_usd(usage, None) is None


def test_call_is_turned_away_when_its_worst_case_does_not_fit():
    async def spend():
        budget = Budget(max_tokens=1000)
        amount = await budget.reserve(body(300), None)
        budget.settle(amount, Amount(tokens=110))
        assert budget.spent == Amount(tokens=110)
        with pytest.raises(BudgetReached, match="1,000 tokens.*110 tokens are spent"):
            await budget.reserve(body(300, max_tokens=900), None)
        assert budget.is_reached
        with pytest.raises(BudgetReached):
            await budget.reserve(body(3), None)

    asyncio.run(spend())


def test_call_is_turned_away_when_the_time_is_over():
    now = [100.0]

    async def spend():
        budget = Budget(max_seconds=60.0, clock=lambda: now[0])
        await budget.reserve(body(3), None)
        now[0] += 60.0
        with pytest.raises(BudgetReached, match="the 60 seconds of the budget are over"):
            await budget.reserve(body(3), None)
        assert budget.is_reached

    asyncio.run(spend())


def test_call_waits_when_others_may_return_what_they_reserved():
    async def spend():
        budget = Budget(max_tokens=600)
        first = await budget.reserve(body(300, max_tokens=300), None)
        second = asyncio.create_task(budget.reserve(body(300, max_tokens=300), None))
        await asyncio.sleep(0.15)
        assert not second.done()
        budget.settle(first, Amount(tokens=55))
        assert (await second).tokens == 464

    asyncio.run(spend())


def test_limit_holds_when_threads_spend_at_once():
    budget = Budget(max_usd=0.01)
    answered = []

    async def spend():
        for _ in range(40):
            try:
                amount = await budget.reserve(body(300), PRICES)
            except BudgetReached:
                return
            usage = Usage(prompt_tokens=100, completion_tokens=100)
            budget.settle(amount, amount_of(usage, PRICES))
            answered.append(usage)

    threads = [threading.Thread(target=lambda: asyncio.run(spend())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # 0.0011 USD a call, and 0.001164 at worst: nine fit, and the tenth would not.
    assert len(answered) == 9
    assert budget.spent.usd == pytest.approx(0.0099)


def test_dollars_are_refused_when_prices_are_not_known():
    with pytest.raises(EngineMisconfigured, match=r"no prices; set budget\.tokens"):
        asyncio.run(Budget(max_usd=1.0).reserve(body(3), None))


def test_images_count_when_the_worst_case_is_made():
    content = [
        {"type": "image_url", "image_url": {"url": "data:"}},
        {"type": "text", "text": "abc"},
    ]
    assert (
        worst_prompt_tokens({"messages": [{"role": "user", "content": content}]})
        == 64 + MOST_IMAGE_TOKENS + 1
    )
