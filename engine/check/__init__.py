"""Checks an engine before a batch: long prompts at the planned concurrency, modes, schemas, tool calls, the cache.

`plan_check(endpoint, wish, seed)` says what is sent, `worst_case(endpoint, plan)` what it can cost, and
`check_engine(endpoint, plan)` sends it and returns the verdict.
"""

from __future__ import annotations

from engine.batch.amount import Amount
from engine.check.log import ServerLog
from engine.check.plan import CheckPlan, CheckWish, plan_check
from engine.check.questions import Questions
from engine.check.report import Figures, Gone, Judged, Report
from engine.check.run import check_engine
from engine.check.sending import CheckRule
from engine.endpoint import Endpoint

__all__ = [
    "CheckPlan",
    "CheckRule",
    "CheckWish",
    "Figures",
    "Gone",
    "Judged",
    "Report",
    "ServerLog",
    "check_engine",
    "plan_check",
    "worst_case",
]


def worst_case(endpoint: Endpoint, plan: CheckPlan) -> Amount:
    """Return the most that a check can take: nothing cached, the longest answers."""
    return Questions(endpoint, plan).worst()
