"""A batch: requests in flight together. `run` is the seam between stages and the engine."""

from engine.batch.budget import Amount, Budget
from engine.batch.schedule import RetryRule, run

__all__ = ["Amount", "Budget", "RetryRule", "run"]
