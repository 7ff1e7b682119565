"""An engine is checked as a batch would use it: what is wrong with it is found, named, and never invented."""

import asyncio
import json

import pytest

from engine.check import CheckWish, Questions, ServerLog, check_engine, plan_check
from engine.check.documents import lines_of
from engine.check.figures import Share, throughput_of
from engine.check.sending import Gauge
from engine.errors import EngineMisconfigured, SetUpImpossible
from engine.load import Load
from engine.profile import Prices, RateTier
from tests.engine.check_host import QUICK, SMALL, check, good, one, page, profile_of
from tests.engine.test_batch import endpoint_of
from tests.fakes.engine_server import FakeEngine, Fault, answer


@pytest.fixture
def host():
    """A good host that tells everything."""
    with FakeEngine(script=good, latency_s=0.02) as engine:
        engine.metrics = page()
        yield engine


def test_engine_is_ready_when_it_keeps_all_it_promises(host):
    lines = []
    report = check(host, lines=lines)
    assert (report.verdict, report.is_ready) == ("ready", True)
    figures = report.figures
    assert figures.num_sent == figures.num_answered == len(host.calls) == report.plan.num_calls
    assert figures.load.peak_cache_used == 0.4
    assert figures.load.num_preemptions == 0
    assert figures.kv_tokens == 512 * 16
    assert {mode: share.value for mode, share in figures.modes.items()} == {
        "instant": 1,
        "thinking": 1,
    }
    assert figures.structured.value == 1
    assert figures.tools.calls == Share(num_right=8, num_all=8)
    assert figures.first_token.median <= figures.first_token.p95
    assert figures.cached.share > 0.8
    assert figures.throughput.prompt_tokens_per_s > 0
    assert lines[0] == "first requests: sending"
    assert lines[1].startswith("first requests: 1 sent")


def test_long_prompts_share_their_beginning_alone_and_are_as_long_as_planned(host):
    check(host)
    texts = [body["messages"][1]["content"] for body in host.calls if body["max_tokens"] == 256][:8]
    shared = len(texts[0]) - len(min((t for t in texts[1:]), key=len))
    common = [n for n in range(len(texts[0])) if len({t[:n] for t in texts}) == 1][-1]
    assert 0.2 < common / len(texts[0]) < 0.3
    assert abs(shared) < 0.1 * len(texts[0])
    assert len(set(texts)) == 8
    used = Questions(endpoint_of(host, profile_of(host)), plan_check(endpoint_of(host), SMALL, 7))
    assert 0.9 * 4096 < used.prompt_tokens + 256 <= 4096


def test_documents_are_the_same_when_the_seed_is_and_others_when_not():
    assert lines_of("7/a", 5) == lines_of("7/a", 9)[:5]
    assert lines_of("7/a", 5) != lines_of("8/a", 5)


def test_what_a_host_does_not_report_is_unknown_and_never_zero(host):
    host.metrics, host.tells_cached = None, False
    can = profile_of(host).capabilities.model_copy(update={"cached_tokens": False, "stream": False})
    report = check(host, profile=profile_of(host, capabilities=can))
    assert report.verdict == "ready"
    shown = report.as_json()
    assert shown["kv_cache"] == {
        "peak_used": None,
        "tokens": None,
        "preemptions": None,
        "most_waiting": None,
    }
    assert shown["prefix_cache"]["cached_tokens"] is None
    assert shown["first_token"] == {"alone_s": None, "median_s": None, "p95_s": None}
    unknown = {one.check for one in report.judged if one.status == "unknown"}
    assert unknown == {"KV cache", "preemptions", "prefix cache", "first token"}


def test_missing_cached_tokens_are_a_limit_when_the_profile_promises_them(host):
    host.tells_cached = False
    report = check(host)
    assert report.verdict == "ready with limits"
    assert "--enable-prompt-tokens-details" in one(report, "prefix cache").change


def test_prefix_cache_is_a_limit_when_nothing_comes_from_it(host):
    def cold(number, body):
        usage = {
            "prompt_tokens": 4000,
            "completion_tokens": 50,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        if "tools" in body or "chat_template_kwargs" not in body:
            return good(number, body)
        schema = body["response_format"]["json_schema"]["schema"]
        return Fault(content=json.dumps(answer(schema, "x")), usage=usage)

    host.script = cold
    report = check(host)
    assert report.figures.cached.cached_tokens == 0
    assert one(report, "prefix cache").status == "limit"


def test_throughput_is_not_reported_when_usage_is_not(host):
    host.script = lambda number, body: Fault(**{**vars_of(good(number, body), body), "usage": None})
    report = check(host)
    assert report.figures.throughput is None
    assert report.figures.cached.cached_tokens is None
    assert one(report, "usage").status == "unknown"


def vars_of(fault, body):
    """Return the fields of a fault that answers; of the fake's own answer where there is none."""
    if fault is None:
        schema = body["response_format"]["json_schema"]["schema"]
        return {"content": json.dumps(answer(schema, "x"))}
    return {"message": fault.message, "finish_reason": fault.finish_reason}


def test_full_cache_and_preemptions_are_limits_with_how_many_fit(host):
    def crowded(number, body):
        if number == 3:
            host.metrics = page(used=0.99, preemptions=5, waiting=2)
        return good(number, body)

    host.script = crowded
    host.latency_s = 0.3
    report = check(host)
    assert report.verdict == "ready with limits"
    assert report.figures.load.num_preemptions == 5
    assert report.figures.load.peak_waiting == 2
    # 8,192 tokens hold two requests of 4,096.
    assert "set max_in_flight to 2" in one(report, "preemptions").change
    assert one(report, "KV cache").says == "99 % of 8,192 tokens in use at most"


def test_restart_is_seen_when_counters_go_back():
    gauge = Gauge()
    for count in (4.0, 6.0, 1.0, 2.0):
        gauge.take(Load(num_waiting=0, cache_used=0.1, num_preemptions=count))
    gauge.take(None)
    assert (gauge.num_preemptions, gauge.was_restarted) == (3, True)


def test_mode_fails_when_the_host_thinks_all_the_same(host):
    def deaf(number, body):
        return good(number, {k: v for k, v in body.items() if k != "chat_template_kwargs"})

    host.script = deaf
    report = check(host)
    assert report.verdict == "not ready"
    finding = one(report, "mode instant")
    assert finding.says.startswith(
        "0 of 12 replies are in it: reasoning came with an Instant reply"
    )
    assert finding.change == (
        'the profile sends {"chat_template_kwargs": {"thinking": false}}, and the host drops it or wants another'
        " switch: ask the host, or take modes.instant out of the profile"
    )
    assert one(report, "mode thinking").status == "ok"


@pytest.mark.parametrize(
    ("wire", "said"),
    [({}, "switch it on with modes.thinking.wire"), ({"think": True}, 'sends {"think": true}')],
)
def test_switch_of_a_mode_is_asked_for_only_when_the_profile_sends_none(host, wire, said):
    host.script = lambda number, body: good(number, body | {"chat_template_kwargs": {}})
    modes = profile_of(host).modes
    thinking = modes["thinking"].model_copy(update={"wire": wire})
    report = check(host, profile=profile_of(host, modes=modes | {"thinking": thinking}))
    change = one(report, "mode thinking").change
    assert said in change
    assert change.endswith("or set modes.thinking.by to prompt")


def test_mode_fails_when_thinking_leaks_into_the_content(host):
    def leaking(number, body):
        if "tools" in body or "chat_template_kwargs" in body:
            return good(number, body)
        return Fault(content='<think>so</think>{"largest": "fuel", "is_certain": true}')

    host.script = leaking
    finding = one(check(host), "mode thinking")
    assert finding.status == "fail"
    assert "--reasoning-parser" in finding.change


def test_mode_fails_when_no_thinking_is_shown(host):
    host.script = lambda number, body: good(number, body) if "tools" in body else None
    report = check(host)
    assert (report.verdict, one(report, "mode thinking").status) == ("not ready", "fail")
    assert one(report, "mode instant").status == "ok"


def test_structured_output_fails_when_answers_do_not_follow(host):
    def free(number, body):
        fault = good(number, body)
        return Fault(content="It was fuel, mostly.") if fault is None and number % 3 else fault

    host.script = free
    report = check(host)
    finding = one(report, "structured output")
    assert (report.verdict, finding.status) == ("not ready", "fail")
    assert "does not constrain answers" in finding.change


def test_server_that_dies_is_a_verdict_with_the_end_of_its_log(tmp_path):
    log = tmp_path / "engine.log"
    log.write_text("an older day: out of memory\n", encoding="utf-8")
    with FakeEngine(latency_s=0.05) as engine:
        engine.metrics = page()

        def dying(number, body):
            if number == 4:
                with log.open("a", encoding="utf-8") as file:
                    file.write("key-123 torch.OutOfMemoryError: CUDA out of memory\n")
                engine._server.die()
                return Fault(cut=True)
            return good(number, body)

        engine.script = dying
        watched = ServerLog(log, ("key-123",))
        report = check(engine, log=watched)
        gone = one(report, "server")
        assert (report.verdict, report.is_ready) == ("not ready", False)
        assert report.gone.while_sending == "long"
        assert "ran out of memory" in gone.says
        assert report.gone.log_tail == "[key] torch.OutOfMemoryError: CUDA out of memory"
        # Nothing further is sent to what is not there.
        assert set(report.figures.modes) == {"instant"}
        assert report.figures.tools is None


def test_log_is_read_from_now_on_and_from_its_start_when_begun_anew(tmp_path):
    file = tmp_path / "engine.log"
    file.write_text("out of memory, long ago\n" * 5, encoding="utf-8")
    log = ServerLog(file)
    assert (log.tail(), log.tells_of_memory()) == ("", False)
    file.write_text("new: oom-kill\n", encoding="utf-8")
    assert (log.tail(), log.tells_of_memory()) == ("new: oom-kill", True)
    assert ServerLog(tmp_path / "none.log").tail() == ""


def test_long_prompts_are_sent_once_when_the_first_is_refused_as_too_long(host):
    endpoint = endpoint_of(host, profile_of(host))
    plan = plan_check(endpoint, SMALL, 7)
    host.max_model_len = 2000
    report = asyncio.run(check_engine(Questions(endpoint, plan), notify=lambda _: None, rule=QUICK))
    assert report.verdict == "not ready"
    assert "longer than the context" in one(report, "requests").says
    assert sum(len(json.dumps(body["messages"])) > 6000 for body in host.calls) == 1
    assert report.figures.num_sent == 1 + plan.num_calls - plan.num_requests
    assert report.as_json()["sent"]["long_requests"] == 1
    # It reports all of them, but was never seen to.
    for name in ("first token", "prefix cache", "usage"):
        assert (one(report, name).status, one(report, name).says) == (
            "unknown",
            "no long request was answered",
        )


def test_refused_calls_are_a_limit_when_they_go_through_later(host):
    busy = Fault(status=429, body=b'{"error": {"message": "slow down"}}')
    host.script = lambda number, body: busy if number in {5, 6} else good(number, body)
    report = check(host)
    assert report.verdict == "ready with limits"
    assert "2 calls were refused" in one(report, "requests").says


def test_check_ends_after_the_long_prompts_when_all_of_them_are_turned_away(host):
    host.script = lambda number, body: Fault(
        status=429, body=b'{"error": {"message": "no quota is left"}}'
    )
    report = check(host)
    assert report.verdict == "not ready"
    judged = one(report, "requests")
    assert judged.says.startswith(f"0 of {report.plan.num_requests} requests were answered")
    assert "no quota is left" in judged.says
    assert not any("tools" in body for body in host.calls)


def test_tier_is_kept_when_the_profile_has_one(host):
    tier = RateTier(name="0", max_in_flight=1)
    report = check(
        host,
        CheckWish(context_tokens=2048, num_requests=3),
        profile=profile_of(host, tiers=(tier,), tier="0"),
    )
    assert host.most_in_flight == report.figures.most_at_once == 1


def test_planned_number_is_under_way_at_once_when_nothing_holds_it_back(host):
    host.latency_s = 0.2
    report = check(host)
    assert host.most_in_flight == 4
    assert report.figures.most_at_once == 4


def test_check_ends_when_the_key_is_wrong():
    with FakeEngine(script=good) as engine:
        endpoint = endpoint_of(engine, profile_of(engine))
        plan = plan_check(endpoint, SMALL, 7)
        engine.api_key = "another"
        with pytest.raises(EngineMisconfigured, match="API key"):
            asyncio.run(check_engine(Questions(endpoint, plan), notify=lambda _: None, rule=QUICK))


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        (CheckWish(context_tokens=9000), "takes 8,192"),
        (CheckWish(context_tokens=100), "a check needs 1,024"),
        (CheckWish(concurrency=9), "allows 8 requests at once, and 9 are asked for"),
    ],
)
def test_check_is_refused_when_it_cannot_be(host, wish, why):
    with pytest.raises(SetUpImpossible, match=why):
        plan_check(endpoint_of(host, profile_of(host)), wish, 7)
    assert host.calls == []


def test_worst_case_is_never_passed_when_the_host_has_prices(host):
    prices = Prices(input_usd=1.0, cached_input_usd=0.1, output_usd=3.0)
    endpoint = endpoint_of(host, profile_of(host, prices=prices))
    plan = plan_check(endpoint, SMALL, 7)
    worst = Questions(endpoint, plan).worst()
    report = asyncio.run(
        check_engine(
            Questions(endpoint, plan), notify=lambda _: None, budget_usd=worst.usd, rule=QUICK
        )
    )
    assert 0 < report.figures.spent.usd < worst.usd
    assert report.verdict == "ready"


def test_budget_is_kept_when_it_is_reached_in_the_middle(host):
    prices = Prices(input_usd=1.0, cached_input_usd=0.1, output_usd=3.0)
    endpoint = endpoint_of(host, profile_of(host, prices=prices))
    plan = plan_check(endpoint, SMALL, 7)
    report = asyncio.run(
        check_engine(Questions(endpoint, plan), notify=lambda _: None, budget_usd=0.02, rule=QUICK)
    )
    assert 0 < report.figures.spent.usd <= 0.02
    assert report.verdict == "not ready"
    assert "budget" in one(report, "requests").says


def test_pace_comes_apart_when_answers_are_taken_off():
    class Ended:
        def __init__(self, prompt, written):
            from engine.reply import Reply
            from engine.request import Usage

            usage = Usage(prompt_tokens=prompt, completion_tokens=written, cached_tokens=0)
            self.reply = Reply(content="", finish_reason="stop", usage=usage)

    long, short = [Ended(1000, 50)] * 4, [Ended(100, 100)] * 4
    pace = throughput_of(long, 10.0, short, 8.0)
    # 400 tokens in 8 s; of the 10 s, 4 go to 200 tokens of answers, and 6 to 4,000 of prompts.
    assert (pace.output_tokens_per_s, pace.prompt_tokens_per_s) == (50.0, 667.0)


@pytest.mark.parametrize("kind", ["long", "short", "thinking", "tools"])
def test_prompt_is_set_aside_at_its_full_length_when_it_is_sent(host, kind):
    endpoint = endpoint_of(host, profile_of(host))
    questions = Questions(endpoint, plan_check(endpoint, SMALL, 7))
    for asked in getattr(questions, kind)():
        texts = [message["content"] for message in asked.body["messages"]]
        texts += [json.dumps(asked.body.get("tools", []))] if kind == "tools" else []
        counted = sum(endpoint.counter.count_many(texts))
        assert counted <= asked.request.prompt_tokens < 2 * counted + 500
