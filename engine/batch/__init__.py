"""A batch: requests in flight together. `run` is the seam between stages and the engine."""

from engine.batch.schedule import RetryRule, run

__all__ = ["RetryRule", "run"]
