"""A batch: requests in flight together. `run` is the seam between stages and the engine."""

from engine.batch.breaker import BreakerRule
from engine.batch.budget import Amount, Budget
from engine.batch.call import RetryRule
from engine.batch.ledger import WINDOW, Log
from engine.batch.route import Route, route_to
from engine.batch.schedule import run

__all__ = [
    "WINDOW",
    "Amount",
    "BreakerRule",
    "Budget",
    "Log",
    "RetryRule",
    "Route",
    "route_to",
    "run",
]
