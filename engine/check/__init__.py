"""Checks an engine before a batch: long prompts at the planned concurrency, modes, schemas, tool calls, the cache.

`plan_check(endpoint, wish, seed)` says how much is sent, `Questions(endpoint, plan)` makes it and knows what it can
cost, and `check_engine(questions)` sends it and returns the verdict.
"""

from __future__ import annotations

from engine.check.log import ServerLog
from engine.check.plan import CheckPlan, CheckWish, plan_check
from engine.check.questions import Questions
from engine.check.report import Figures, Gone, Judged, Report
from engine.check.run import check_engine
from engine.check.sending import CheckRule

__all__ = [
    "CheckPlan",
    "CheckRule",
    "CheckWish",
    "Figures",
    "Gone",
    "Judged",
    "Questions",
    "Report",
    "ServerLog",
    "check_engine",
    "plan_check",
]
