"""What a check says of a host's tool calls."""

import pytest

from engine.profile import Capabilities
from tests.engine.check_host import call, check, good, one, page, profile_of
from tests.fakes.engine_server import FakeEngine, Fault


@pytest.fixture
def host():
    """A good host that tells everything."""
    with FakeEngine(script=good, latency_s=0.02) as engine:
        engine.metrics = page()
        yield engine


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (call("delete_all", "{}"), "undeclared"),
        (call("search", ""), "schema"),
        (call("search", '{"words": ["fuel"'), "not_json"),
        (call("search", '{"words": ["gold"], "limit": 3}'), "schema"),
        (call("search", '{"words": ["fuel"], "limit": 99}'), "schema"),
    ],
)  # fmt: skip
def test_tools_fail_when_calls_are_not_by_name_and_schema(host, broken, why):
    def careless(number, body):
        if "tools" not in body or number % 2:
            return good(number, body)
        return Fault(message={"content": None, "tool_calls": [broken]}, finish_reason="tool_calls")

    host.script = careless
    report = check(host)
    assert report.verdict == "not ready"
    assert 0 < report.figures.tools.calls.value < 1
    assert f"schema; {why}: " in one(report, "tool calls").says


def test_tools_are_a_limit_when_the_model_calls_none_of_its_own_accord(host):
    def shy(number, body):
        if body.get("tool_choice") == "auto":
            return Fault(content="I would search for it.")
        return good(number, body)

    host.script = shy
    report = check(host)
    assert report.verdict == "ready with limits"
    assert "limits.opening_calls" in one(report, "free calls").change
    assert report.as_json()["tools"]["called_when_forced"]["share"] == 1


def test_tools_fail_when_the_host_has_no_parser(host):
    mark = (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.search:0<|tool_call_argument_begin|>"
        '{"words": ["fuel"], "limit": 2}<|tool_call_end|><|tool_calls_section_end|>'
    )
    host.script = lambda number, body: (
        Fault(content=mark) if "tools" in body else good(number, body)
    )
    report = check(host)
    assert report.verdict == "not ready"
    assert "no tool parser" in one(report, "tool calls").says
    assert "--tool-call-parser" in one(report, "free calls").change


def test_tools_fail_alone_when_the_host_refuses_all_requests_with_tools(host):
    refusal = Fault(status=400, body=b'{"error": {"message": "no parser of tool calls"}}')
    host.script = lambda number, body: refusal if "tools" in body else good(number, body)
    report = check(host)
    assert report.verdict == "not ready"
    assert [one.check for one in report.judged if one.status == "fail"] == ["tool calls"]
    judged = one(report, "tool calls")
    assert judged.says.startswith("0 of 8 requests that offer tools were answered; ")
    assert judged.says.endswith("no parser of tool calls")
    assert "--enable-auto-tool-choice" in judged.change
    told = one(report, "requests")
    assert (told.status, " requests without tools were answered" in told.says) == ("ok", True)
    assert report.as_json()["tools"]["answered"]["share"] == 0


@pytest.mark.parametrize("status", [429, 503])
def test_tools_are_unknown_when_the_host_gives_up_on_all_requests_with_tools(host, status):
    refusal = Fault(status=status, body=b'{"error": {"message": "too much today"}}')
    host.script = lambda number, body: refusal if "tools" in body else good(number, body)
    report = check(host)
    judged = one(report, "tool calls")
    assert (judged.status, judged.change) == ("unknown", "")
    assert "too much today" in judged.says
    assert one(report, "requests").status == "fail"
    assert "--enable-auto-tool-choice" not in str(report.as_json())


def test_requests_and_tools_fail_each_when_others_are_refused_too(host):
    refusal = Fault(status=400, body=b'{"error": {"message": "not today"}}')
    host.script = lambda number, body: (
        refusal if "tools" in body or number % 2 else good(number, body)
    )
    report = check(host)
    told = one(report, "requests")
    assert (told.status, told.says.endswith("not today")) == ("fail", True)
    assert one(report, "tool calls").status == "fail"


def test_calls_that_are_cut_are_told_in_one_line_when_they_are_long(host):
    broken = call("search", '{"words": [' + '"fuel",\n\t ' * 90)
    host.script = lambda number, body: (
        Fault(message={"content": None, "tool_calls": [broken]}, finish_reason="length")
        if "tools" in body
        else good(number, body)
    )
    report = check(host)
    says = one(report, "tool calls").says
    assert "not_json: the arguments are not JSON" in says
    assert "\n" not in says
    assert len(says) < 250
    assert report.as_json()["tools"]["cut"] == 8


def test_tools_are_not_asked_when_the_profile_has_none(host):
    can = Capabilities(structured_output=True, cached_tokens=True)
    report = check(host, profile=profile_of(host, capabilities=can))
    assert report.figures.tools is None
    assert not any("tools" in body for body in host.calls)
    assert report.as_json()["tools"] is None
