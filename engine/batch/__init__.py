"""A batch: requests in flight together. `run` is the seam between stages and the engine."""

from engine.batch.amount import Amount
from engine.batch.breaker import BreakerRule
from engine.batch.budget import Budget, Caps, unknown_unit
from engine.batch.call import RetryRule
from engine.batch.embedding import Embedder, num_dims
from engine.batch.hosted import AWAITING_BATCH, BatchDesk
from engine.batch.ledger import WINDOW, Log
from engine.batch.pace import Limits, Pace
from engine.batch.route import Line, Route, line_of_vectors, route_to
from engine.batch.schedule import run

__all__ = [
    "AWAITING_BATCH",
    "WINDOW",
    "Amount",
    "BatchDesk",
    "BreakerRule",
    "Budget",
    "Caps",
    "Embedder",
    "Limits",
    "Line",
    "Log",
    "Pace",
    "RetryRule",
    "Route",
    "line_of_vectors",
    "num_dims",
    "route_to",
    "run",
    "unknown_unit",
]
