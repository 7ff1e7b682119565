import asyncio
from dataclasses import asdict, replace

import pytest

from config.load import set_environment
from config.pipeline import StageConfig
from connectors.sinks.lake import Lake
from engine.batch import WINDOW, Amount
from engine.request import Request, Result, Usage
from engine.steps import Turned
from flows.run.answers import result_from_json
from flows.run.claims import Claims
from flows.run.ledger import Ledger, journal_spent
from flows.run.rows import Inquiry, usage_row


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
        ledger = Ledger(lake, "run", "new", claim, has_agents=True)
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
        ledger = Ledger(lake, "run", "new", claim, has_agents=True)
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
        assert Ledger(lake, "run", "resume", claim, has_agents=True).paid(()) == spent


AGENT = Request(
    request_key="agent-1",
    stage="work",
    mode="agent",
    instructions="",
    material="",
    question="",
    schema={},
    max_output_tokens=10,
)


def turn(tokens):
    usage = Usage(prompt_tokens=tokens)
    return Turned(
        content="", reasoning="", finish_reason="stop", usage=usage, seconds=0.1, engine="e"
    )


def stopped(tokens):
    """Return the end of the agent's request where the budget was reached."""
    usage = Usage(prompt_tokens=tokens)
    return replace(result("work", 0), request_key="agent-1", outcome="over_budget", usage=usage)


def reopened(lake, work, start="resume", run="run", *, is_committed=False):
    """Return what `work` gives for the ledger of one attempt, whose journal is gone after a commit."""
    with Claims(lake.storage, run) as claims, claims.take("s00000", wait=False) as claim:
        ledger = Ledger(lake, run, start, claim, has_agents=True)
        try:
            return work(ledger)
        finally:
            ledger.save()
            if is_committed:
                ledger.remove_journal()


def test_what_an_agent_took_is_counted_once_when_its_budget_was_reached_before_the_commit(tmp_path):
    set_environment({"HEADRACE_STATE": str(tmp_path / "state")})
    lake = Lake(str(tmp_path / "lake"))

    def first(ledger):
        log = ledger.steps.of(AGENT)
        asyncio.run(log.add("agent-1", turn(100)))
        ledger.note(stopped(100))

    def second(ledger):
        log = ledger.steps.of(AGENT)
        assert len(log.events("agent-1")) == 1
        # The first result has it in its sum: the second one must not have it too.
        assert log.paid() == []
        asyncio.run(log.add("agent-1", turn(7)))
        assert ledger.paid(())["work"].tokens == 107

    def third(ledger):
        assert ledger.paid(())["work"].tokens == 107
        ledger.note(stopped(7))
        return ledger.paid(())["work"].tokens

    reopened(lake, first, "new")
    reopened(lake, second)
    assert journal_spent(lake, "s00000", "run", ())["work"].tokens == 107
    assert reopened(lake, third) == 107


def test_steps_are_not_doubled_by_a_kill_between_keeping_them_and_removing_the_journal(tmp_path):
    set_environment({"HEADRACE_STATE": str(tmp_path / "state")})
    lake = Lake(str(tmp_path / "lake"))

    def first(ledger):
        asyncio.run(ledger.steps.of(AGENT).add("agent-1", turn(100)))
        ledger.note(stopped(100))
        ledger.keep_steps(frozenset())

    reopened(lake, first, "new")
    assert reopened(lake, lambda ledger: len(ledger.steps.events("agent-1"))) == 1


@pytest.mark.parametrize(
    ("end", "kept"),
    [
        ({"outcome": "over_budget"}, 1),
        ({"outcome": "failed", "error_class": "engine_unavailable"}, 1),
        ({"outcome": "failed", "error_class": "request_rejected"}, 0),
        ({"outcome": "invalid_output"}, 0),
        (None, 0),
    ],
)
@pytest.mark.parametrize("is_committed", [True, False])
def test_agent_is_taken_up_where_going_on_can_help_and_somebody_still_asks(
    tmp_path, end, kept, is_committed
):
    set_environment({"HEADRACE_STATE": str(tmp_path / "state")})
    lake = Lake(str(tmp_path / "lake"))

    def first(ledger):
        asyncio.run(ledger.steps.of(AGENT).add("agent-1", turn(100)))
        if end is not None:
            ledger.note(replace(stopped(100), **end))
        if is_committed:
            ledger.keep_steps(frozenset())

    reopened(lake, first, "new", is_committed=is_committed)
    found = reopened(lake, lambda ledger: len(ledger.steps.events("agent-1")), "retry")
    # Without a commit the process has died meanwhile: what had no end goes on.
    assert found == (1 if end is None and not is_committed else kept)


def test_steps_stay_while_a_later_run_waits_for_a_person_to_agree(tmp_path):
    set_environment({"HEADRACE_STATE": str(tmp_path / "state")})
    lake = Lake(str(tmp_path / "lake"))

    def begins(ledger):
        asyncio.run(ledger.steps.of(AGENT).add("agent-1", turn(100)))
        ledger.note(replace(stopped(100), outcome="over_budget", error_class="awaiting_approval"))
        ledger.keep_steps(frozenset())

    def waits(ledger):
        ledger.keep_steps(frozenset({"agent-1"}))

    reopened(lake, begins, "new", is_committed=True)
    reopened(lake, waits, "new", run="next", is_committed=True)
    found = reopened(lake, lambda ledger: len(ledger.steps.events("agent-1")), "new", run="third")
    assert found == 1


def test_agent_asked_afresh_goes_on_in_its_own_run_and_begins_anew_in_the_next(tmp_path):
    set_environment({"HEADRACE_STATE": str(tmp_path / "state")})
    lake = Lake(str(tmp_path / "lake"))

    def works(ledger):
        ledger.steps.begin_anew("agent-1")
        before = len(ledger.steps.events("agent-1"))
        asyncio.run(ledger.steps.of(AGENT).add("agent-1", turn(100)))
        return before

    def commits(ledger):
        before = works(ledger)
        ledger.note(stopped(100))
        ledger.keep_steps(frozenset())
        return before

    assert reopened(lake, commits, "new", is_committed=True) == 0
    # After a budget stop, and with the commit in between.
    assert reopened(lake, works, run="run") == 1
    assert reopened(lake, works, "new", run="next") == 0
    # Killed in the middle: what this run has done is not what it began anew from.
    assert reopened(lake, works, run="next") == 1


def test_claims_of_a_marker_are_those_of_steps_too(tmp_path):
    set_environment({"HEADRACE_STATE": str(tmp_path / "state")})
    lake = Lake(str(tmp_path / "lake"))

    def first(ledger):
        asyncio.run(ledger.steps.of(AGENT).add("agent-1", turn(100)))

    def second(ledger):
        ledger.note(replace(stopped(100), outcome="succeeded"))
        return ledger.claims()

    reopened(lake, first, "new")
    # Killed after the marker and before the journal was removed: nothing is counted again.
    assert journal_spent(lake, "s00000", "run", reopened(lake, second)) == {}


def test_result_of_an_earlier_version_is_read_when_it_does_not_say_how_long_it_waited():
    result = Result(request_key="k", stage="kind", outcome="succeeded", mode="instant", seconds=3.0)
    kept = asdict(result)
    for name in ("queued_s", "decoding_s"):
        del kept[name]
    assert result_from_json(kept) == result
    told = replace(result, queued_s=1.5, first_token_s=0.5, decoding_s=1.0)
    assert result_from_json(asdict(told)) == told
    stage = StageConfig(
        name="kind",
        prompt="Which?",
        output={"type": "object", "properties": {"kind": {"type": "string"}}},
    )
    inquiry = Inquiry(
        stage=stage, mode="instant", fingerprint="", document=None, chunk=None, unit="group-x"
    )
    row = usage_row(inquiry, told)
    assert (row["queued_s"], row["first_token_s"], row["decoding_s"]) == (1.5, 0.5, 1.0)
