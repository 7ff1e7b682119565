"""What the tests of an engine's check share: a good host, and how it is asked."""

import asyncio
import json

from engine.batch import BreakerRule, RetryRule
from engine.check import CheckRule, CheckWish, Questions, check_engine, plan_check
from engine.check.questions import TOOLS
from engine.profile import Capabilities, ModeSettings, Profile
from tests.engine.test_batch import endpoint_of
from tests.fakes.engine_server import Fault, answer

QUICK = CheckRule(
    retry=RetryRule(max_attempts=2, first_delay_s=0.0),
    breaker=BreakerRule(max_failures=4, first_open_s=0.05, give_up_s=0.2),
)
SMALL = CheckWish(context_tokens=4096, concurrency=4, num_requests=8)
PAGE = """\
vllm:num_requests_waiting{{engine="0"}} {waiting}
vllm:kv_cache_usage_perc{{engine="0"}} {used}
vllm:num_preemptions_total{{engine="0"}} {preemptions}
vllm:cache_config_info{{block_size="16",num_gpu_blocks="512"}} 1.0
"""


def page(*, used=0.4, preemptions=0, waiting=0):
    return PAGE.format(used=used, preemptions=preemptions, waiting=waiting)


def profile_of(engine, **changes):
    """A host that can do everything, with a switch for thinking."""
    facts = {
        "name": "host",
        "base_url": engine.url,
        "max_in_flight": 8,
        "capabilities": Capabilities(
            tools=True,
            forced_calls=True,
            strict_tools=True,
            structured_output=True,
            cached_tokens=True,
        ),
        "modes": {
            "instant": ModeSettings(wire={"chat_template_kwargs": {"thinking": False}}),
            "thinking": ModeSettings(reasoning_tokens=64),
        },
    }
    return Profile(**(facts | changes))


def call(name, arguments):
    function = {"name": name, "arguments": arguments}
    return {"id": f"functions.{name}:0", "type": "function", "function": function}


def good(_number, body):
    """Answer as a good host does: tools are called, and thinking is shown where it is not switched off."""
    if "tools" in body:
        spec = TOOLS[0]
        arguments = {"words": ["fuel"], "limit": answer({"type": "integer"}, "x") % 20 + 1}
        return Fault(
            message={"content": None, "tool_calls": [call(spec.name, json.dumps(arguments))]},
            finish_reason="tool_calls",
        )
    if "chat_template_kwargs" in body:
        return None
    schema = body["response_format"]["json_schema"]["schema"]
    content = json.dumps(answer(schema, "x"))
    return Fault(message={"reasoning": "let me add them up", "content": content})


def check(engine, wish=SMALL, *, profile=None, lines=None, log=None, rule=QUICK, **more):
    endpoint = endpoint_of(engine, profile or profile_of(engine))
    plan = plan_check(endpoint, wish, 7)
    notify = (lambda _: None) if lines is None else lines.append
    return asyncio.run(
        check_engine(Questions(endpoint, plan), notify=notify, log=log, rule=rule, **more)
    )


def found(report, name):
    """Return the findings of a name."""
    return [one for one in report.judged if one.check == name]


def one(report, name):
    (single,) = found(report, name)
    return single
