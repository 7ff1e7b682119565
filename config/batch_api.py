"""How a stage that can wait is sent through its host's batch API, as a pipeline says it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from config.model import Model
from engine.batch_api.limits import Window
from engine.request import BatchTerms


class BatchApiConfig(Model):
    """Questions of a shard go to the host in files, and their answers come back within hours or days.

    What an engine takes is in its profile, `capabilities.batch_api`, and what it costs in `prices.batch_factor`.
    """

    window: Window = "24h"
    """Time that the host is given for a batch, in hours or days, such as `12h` or `7d`. A host that is busy
    answers more of a batch the longer it has."""
    again: Literal["batch_api", "at_once"] = "batch_api"
    """How a question goes on whose line has failed or expired, or whose answer has to be repaired: in a
    further batch, three for one call at most, or `at_once`, as a call at the full price."""
    max_wait_s: float | None = Field(default=None, ge=0)
    """Seconds that a run waits for the stage's batches before it ends, to be resumed when they are there: 0
    to send them and leave, none to wait as long as they take."""

    def for_engine(self) -> BatchTerms:
        """Return it as the engine takes it."""
        return BatchTerms(window=self.window, again=self.again)
