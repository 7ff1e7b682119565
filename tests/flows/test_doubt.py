from config.pipeline import EscalateConfig, StageConfig
from engine.request import Result
from flows.run.doubt import decide, doubt_about, num_allowed, settle

OUTPUT = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}}
STAGE = StageConfig(name="s", prompt="?", output=OUTPUT, agree=("a",))


def result(key, a=None, b="x", outcome="succeeded"):
    output = {"a": a, "b": b} if outcome == "succeeded" else None
    return Result(request_key=key, stage="s", outcome=outcome, output=output, mode="instant")


def test_majority_counts_when_samples_differ():
    settled = settle(STAGE, [result("0", "p"), result("1", "q", "y"), result("2", "q", "z")])
    assert (settled.result.request_key, settled.agreement) == ("1", 2 / 3)


def test_first_sample_counts_when_groups_are_even_and_failures_agree_with_nobody():
    settled = settle(STAGE, [result("0", "p"), result("1", "q"), result("2", outcome="failed")])
    assert (settled.result.request_key, settled.agreement) == ("0", 1 / 3)
    assert settle(STAGE, [result("0", outcome="failed")] * 2).agreement == 0.0


def test_doubt_has_a_reason_when_an_answer_is_invalid_empty_or_disputed():
    rule = EscalateConfig(min_agreement=0.8)
    invalid = settle(STAGE, [result("0", outcome="invalid_output")])
    assert doubt_about(rule, invalid).startswith("invalid")
    assert doubt_about(rule, settle(STAGE, [result("0", None, "")])).startswith("empty")
    disputed = settle(STAGE, [result("0", "p"), result("1", "q")])
    assert "50% of 2 samples" in doubt_about(rule, disputed)
    assert doubt_about(rule, settle(STAGE, [result("0", "p")])) is None
    assert doubt_about(rule, settle(STAGE, [result("0", outcome="failed")])) is None


def test_first_answer_stands_when_asking_again_gives_none():
    first = settle(STAGE, [result("0", "p")])
    worse = decide(first, result("t", outcome="failed"), "why")
    assert (worse.result.request_key, worse.escalated, len(worse.results)) == ("0", "why", 2)
    assert decide(first, result("t", "q"), "why").result.request_key == "t"


def test_share_is_rounded_up_when_a_shard_is_small():
    assert [num_allowed(EscalateConfig(max_share=0.25), n) for n in (0, 1, 4, 9)] == [0, 1, 1, 3]
