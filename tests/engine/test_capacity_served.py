"""The planner against vLLM itself: it plans the cache of what is really served, to the token."""

import pytest

from config.load import load_profile
from flows.capacity import Asked, capacity, served_tokens, with_served
from flows.run.bench import open_engine

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


@pytest.mark.parametrize("name", ["embedded", "kimi-k2.5-tiny"])
def test_plan_is_what_the_server_reports_when_it_runs(name):
    profile = load_profile(name)
    with open_engine(name, notify=lambda _: None):
        served = served_tokens(profile)
    found = with_served(capacity(profile, Asked()), served)
    assert found["served"] == {"kv_tokens": found["kv_tokens"], "planner_differs_percent": 0.0}
    assert found["fits"] is True
