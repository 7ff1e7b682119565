import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import MappingProxyType

import pytest

from engine.batch import Amount, Budget, Caps
from engine.batch.amount import (
    amount_of,
    cost_usd,
    gpu_seconds,
    usage_of,
    worst_prompt_tokens,
    worst_usage,
)
from engine.errors import BudgetReached, EngineMisconfigured
from engine.profile import Prices, Throughput, profile_for_url
from engine.reply import Reply
from engine.request import Request, Usage
from engine.tokens import MOST_IMAGE_TOKENS

PRICES = Prices(input_usd=1.0, cached_input_usd=0.1, output_usd=10.0)
PLAIN = profile_for_url("http://engine:1/v1")
# One second of both GPUs takes 100 prompt tokens or 10 tokens of an answer.
PROFILE = PLAIN.model_copy(
    update={
        "prices": PRICES,
        "gpus": 2,
        "throughput": Throughput(prompt_tokens_per_s=100, output_tokens_per_s=10),
    }
)
REQUEST = Request(
    request_key="key",
    stage="kind",
    mode="instant",
    instructions="",
    material="",
    question="",
    schema={},
    max_output_tokens=100,
)


def body(characters, max_tokens=100):
    return {"messages": [{"role": "user", "content": "x" * characters}], "max_tokens": max_tokens}


def worst(prompt, completion=0):
    return Usage(prompt_tokens=prompt, completion_tokens=completion)


def tokens(number):
    return Amount(tokens=number)


async def is_waiting(task):
    """Tell whether a task has not ended, after everything that can go on has done so."""
    for _ in range(10):
        await asyncio.sleep(0)
    return not task.done()


def test_price_counts_cached_tokens_apart_when_the_host_tells_them():
    usage = Usage(prompt_tokens=1_000_000, cached_tokens=400_000, completion_tokens=100_000)
    assert cost_usd(usage, PRICES) == pytest.approx(0.6 + 0.04 + 1.0)
    assert cost_usd(usage, None) is None


def test_gpu_time_is_that_of_all_gpus_when_tokens_are_computed_and_generated():
    usage = Usage(prompt_tokens=1000, cached_tokens=400, completion_tokens=50)
    assert gpu_seconds(usage, PROFILE) == pytest.approx(2 * (6 + 5))
    assert gpu_seconds(usage, PROFILE.model_copy(update={"gpus": None})) is None
    assert gpu_seconds(usage, PROFILE.model_copy(update={"throughput": None})) is None


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Caps(tokens=1000), "of the run is reached: 110 of 1,000 tokens are spent.* 891 was not"),
        (Caps(usd=0.001), r"0\.00011 of 0\.001 USD are spent.*higher budget\.usd"),
        (Caps(gpu_seconds=3), r"2\.2 of 3 GPU-seconds are spent.*higher budget\.gpu_seconds"),
    ],
)
def test_call_is_turned_away_when_its_worst_case_does_not_fit(limits, message):
    async def spend():
        budget = Budget(limits)
        held = await budget.reserve("kind", worst(110), PROFILE)
        budget.settle(held, amount_of(worst(110), PROFILE))
        assert budget.spent == amount_of(worst(110), PROFILE)
        with pytest.raises(BudgetReached, match=message):
            await budget.reserve("kind", worst(891), PROFILE)
        assert budget.is_reached
        # From then on all are, small ones too.
        with pytest.raises(BudgetReached):
            await budget.reserve("title", worst(1), PROFILE)
        assert budget.reserved == Amount()

    asyncio.run(spend())


def test_only_the_stage_ends_when_its_own_limit_is_reached():
    async def spend():
        budget = Budget(Caps(tokens=1000), stages={"kind": Caps(tokens=200)})
        held = await budget.reserve("kind", worst(150), PLAIN)
        budget.settle(held, tokens(150))
        told = (
            "stage 'kind' is reached: 150 of 200 tokens are spent.* 51 was not sent; .*kind.budget"
        )
        with pytest.raises(BudgetReached, match=told):
            await budget.reserve("kind", worst(51), PLAIN)
        with pytest.raises(BudgetReached, match="stage 'kind'"):
            await budget.reserve("kind", worst(1), PLAIN)
        assert not budget.is_reached
        assert budget.reached == ["stages.kind.budget.tokens"]
        budget.settle(await budget.reserve("title", worst(800), PLAIN), tokens(800))
        assert budget.spent_by_stage == {"kind": tokens(150), "title": tokens(800)}
        assert budget.spent == tokens(950)

    asyncio.run(spend())


def test_what_was_spent_before_counts_when_a_run_goes_on():
    async def spend():
        spent = {"kind": tokens(150), "title": tokens(700)}
        budget = Budget(Caps(tokens=1000), stages={"kind": Caps(tokens=200)}, spent=spent)
        with pytest.raises(BudgetReached, match="150 of 200"):
            await budget.reserve("kind", worst(51), PLAIN)
        with pytest.raises(BudgetReached, match="850 of 1,000"):
            await budget.reserve("title", worst(151), PLAIN)
        assert budget.reached == ["budget.tokens", "stages.kind.budget.tokens"]

    asyncio.run(spend())


def test_call_is_turned_away_when_the_time_is_over():
    now = [100.0]

    async def spend():
        budget = Budget(max_seconds=60.0, clock=lambda: now[0])
        await budget.reserve("kind", worst(3), PLAIN)
        now[0] += 60.0
        with pytest.raises(BudgetReached, match="the 60 seconds of the budget are over"):
            await budget.reserve("kind", worst(3), PLAIN)
        assert budget.is_reached
        assert budget.reached == ["budget.seconds"]

    asyncio.run(spend())


def test_call_waits_when_others_may_return_what_they_reserved():
    async def spend():
        budget = Budget(Caps(tokens=600))
        first = await budget.reserve("kind", worst(400), PLAIN)
        second = asyncio.create_task(budget.reserve("kind", worst(400), PLAIN))
        assert await is_waiting(second)
        budget.settle(first, tokens(55))
        assert (await second).amount.tokens == 400

    asyncio.run(spend())


def test_nobody_is_passed_when_smaller_calls_would_fit():
    async def spend():
        budget = Budget(Caps(tokens=600))
        first = await budget.reserve("kind", worst(500), PLAIN)
        large = asyncio.create_task(budget.reserve("kind", worst(400), PLAIN))
        assert await is_waiting(large)
        small = asyncio.create_task(budget.reserve("title", worst(50), PLAIN))
        assert await is_waiting(small)
        budget.settle(first, tokens(100))
        assert (await large).amount.tokens == 400
        assert (await small).amount.tokens == 50

    asyncio.run(spend())


def test_other_stages_go_on_when_a_call_waits_for_its_own_stage():
    async def spend():
        budget = Budget(Caps(tokens=1000), stages={"kind": Caps(tokens=200)})
        first = await budget.reserve("kind", worst(150), PLAIN)
        waiting = asyncio.create_task(budget.reserve("kind", worst(100), PLAIN))
        assert await is_waiting(waiting)
        other = await budget.reserve("title", worst(500), PLAIN)
        budget.settle(other, tokens(500))
        assert await is_waiting(waiting)
        # One that the run cannot pay for ends what waits in front of it too.
        with pytest.raises(BudgetReached, match="of the run"):
            await budget.reserve("title", worst(501), PLAIN)
        with pytest.raises(BudgetReached, match="of the run"):
            await waiting
        budget.settle(first, tokens(150))
        assert budget.reserved == Amount()

    asyncio.run(spend())


def test_nothing_stays_reserved_when_a_waiting_call_is_cancelled():
    async def spend():
        budget = Budget(Caps(tokens=600))
        first = await budget.reserve("kind", worst(500), PLAIN)
        gone = asyncio.create_task(budget.reserve("kind", worst(400), PLAIN))
        behind = asyncio.create_task(budget.reserve("kind", worst(100), PLAIN))
        assert await is_waiting(behind)
        gone.cancel()
        assert not await is_waiting(behind)
        late = asyncio.create_task(budget.reserve("kind", worst(400), PLAIN))
        assert await is_waiting(late)
        # Let on and cancelled at the same moment.
        budget.settle(first, tokens(0))
        late.cancel()
        await asyncio.gather(gone, late, return_exceptions=True)
        budget.settle(behind.result(), tokens(0))
        assert budget.reserved == budget.spent == Amount()

    asyncio.run(spend())


UNITS = ("tokens", "usd", "gpu_seconds")


class Watched(Budget):
    """A budget that checks its limits at every change."""

    def __init__(self, limits, stages):
        super().__init__(limits, stages=stages)
        self.caps = {"": limits, **stages}
        self.highest = dict.fromkeys(UNITS, 0.0)

    def _serve(self):
        super()._serve()
        for account in (self._run, *self._stages.values()):
            name = "" if account is self._run else account.key.split(".")[1]
            used = account.spent + account.reserved
            for unit in UNITS:
                cap, value = getattr(self.caps.get(name, Caps()), unit), getattr(used, unit)
                assert cap is None or value <= cap * (1 + 1e-12), (name, unit, value, cap)
                if name == "":
                    self.highest[unit] = max(self.highest[unit], value)


def random_limits(chance):
    limits = Caps(
        tokens=chance.randrange(5_000, 150_000),
        usd=chance.uniform(0.01, 0.5),
        gpu_seconds=chance.uniform(100, 6_000),
    )
    stages = {
        "a": Caps(tokens=chance.randrange(2_000, 60_000)),
        "b": Caps(usd=chance.uniform(0.002, 0.2)),
        "c": Caps(gpu_seconds=chance.uniform(20, 2_000)),
    }
    return limits, stages


def random_amount(chance, most):
    """Return what a call took, nothing where it failed."""
    if chance.random() < 0.2:
        return Amount()
    prompt = chance.randint(1, most.prompt_tokens)
    usage = Usage(
        prompt_tokens=prompt,
        cached_tokens=chance.choice([None, chance.randint(0, prompt)]),
        completion_tokens=chance.randint(0, most.completion_tokens),
    )
    return amount_of(usage, PROFILE)


async def random_call(budget, chance, used):
    """Make one call, and take down what it used."""
    most = worst(chance.randrange(1, 2_000), chance.randrange(1, 200))
    try:
        held = await budget.reserve(chance.choice(["a", "b", "c", "d"]), most, PROFILE)
    except BudgetReached:
        return "refused"
    taken = Amount()
    try:
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        taken = random_amount(chance, most)
    finally:
        budget.settle(held, taken)
        used.append(taken)
    return "answered"


async def random_shard(budget, seed, used):
    """Make a hundred calls at once, some of which are cancelled, and return their ends."""
    chance = random.Random(seed)
    tasks = [
        asyncio.create_task(random_call(budget, random.Random(chance.random()), used))
        for _ in range(100)
    ]
    for task in chance.sample(tasks, 10):
        asyncio.get_running_loop().call_later(chance.random() / 100, task.cancel)
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    return ["cancelled" if isinstance(end, asyncio.CancelledError) else end for end in ends]


@pytest.mark.parametrize("seed", range(12))
def test_no_limit_is_passed_and_all_end_when_many_loops_spend_at_once(seed):
    limits, stages = random_limits(random.Random(seed))
    budget, used = Watched(limits, stages), []
    with ThreadPoolExecutor(4) as threads:
        shards = [
            threads.submit(asyncio.run, random_shard(budget, 10 * seed + number, used))
            for number in range(4)
        ]
        ended = [end for shard in shards for end in shard.result(30)]
    assert len(ended) == 400
    assert "answered" in set(ended) <= {"refused", "answered", "cancelled"}
    assert budget.reserved == Amount()
    assert budget.spent.tokens == sum(amount.tokens for amount in used)
    assert budget.spent.usd == pytest.approx(sum(amount.usd for amount in used))
    # The limits were used, not only kept.
    assert max(budget.highest[unit] / getattr(limits, unit) for unit in UNITS) > 0.2


@pytest.mark.parametrize(
    ("limits", "lacking", "message"),
    [
        (Caps(usd=1.0), "prices", "no prices; set budget.tokens instead, or add `prices`"),
        (Caps(gpu_seconds=1.0), "gpus", "has no gpus; set budget.tokens instead, or add `gpus`"),
        (Caps(gpu_seconds=1.0), "throughput", "has no throughput;.* add `throughput`"),
    ],
)
def test_limit_is_refused_when_the_profile_does_not_know_its_unit(limits, lacking, message):
    profile = PROFILE.model_copy(update={lacking: None})
    with pytest.raises(EngineMisconfigured, match=message):
        asyncio.run(Budget(limits).reserve("kind", worst(3), profile))
    with pytest.raises(EngineMisconfigured, match=r"^stages\.kind\.budget"):
        asyncio.run(Budget(stages={"kind": limits}).reserve("kind", worst(3), profile))


def test_images_count_when_the_worst_case_is_made():
    content = [
        {"type": "image_url", "image_url": {"url": "data:"}},
        {"type": "text", "text": "abc"},
    ]
    assert (
        worst_prompt_tokens({"messages": [{"role": "user", "content": content}]})
        == 64 + MOST_IMAGE_TOKENS + 1
    )


def test_reasoning_and_calls_of_an_agents_turns_count_as_prompt():
    call = {"id": "c:0", "function": {"name": "sum", "arguments": "x" * 594}}
    turn = {"role": "assistant", "content": "", "reasoning_content": "x" * 6_000}
    sent = body(30) | {"messages": [*body(30)["messages"], {**turn, "tool_calls": [call]}]}
    assert worst_prompt_tokens(sent) == 64 + 10 + 2_200
    # What the endpoint says of it can be, so that it is not replaced by an estimate.
    told = Usage(prompt_tokens=2_000, completion_tokens=5)
    reply = Reply(content="x", reasoning="", finish_reason="stop", usage=told)
    assert usage_of(reply, sent, Usage(prompt_tokens=100, completion_tokens=100)) == told


def test_counted_prompt_is_the_worst_case_when_it_has_more_tokens_than_its_bytes_say():
    # A vocabulary that takes digits one by one.
    digits = {"role": "user", "content": "7" * 900}
    counted = replace(REQUEST, prompt_tokens=900)
    first = {"messages": [digits], "max_tokens": 10}
    assert worst_usage(first, REQUEST).prompt_tokens == 64 + 300
    assert worst_usage(first, counted) == worst(64 + 900, 10)
    answer, repair = ({"role": role, "content": "x" * 30} for role in ("assistant", "user"))
    later = {"messages": [digits, answer, repair], "max_tokens": 10}
    assert worst_usage(later, counted).prompt_tokens == 64 + 900 + 20


@pytest.mark.parametrize(
    ("told", "is_taken"),
    [
        (worst(350, 10), True),
        (worst(900, 10), True),
        (worst(10**15, 10), False),
        (worst(100, 10**15), False),
        (worst(100, 400), False),
        (None, False),
    ],
)
def test_usage_is_estimated_when_there_cannot_be_so_many_tokens(told, is_taken):
    reply = Reply(content="x" * 30, finish_reason="stop", usage=told)
    call = MappingProxyType(body(900, max_tokens=100))
    most = worst_usage(call, REQUEST)
    found = usage_of(reply, call, most)
    if is_taken:
        assert found == told
    else:
        assert found == Usage(prompt_tokens=most.prompt_tokens, completion_tokens=11, num_guessed=1)
