"""What a host's batch API takes, as its profile says it."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_UNITS_S = {"h": 3600, "d": 86_400}

Window = Annotated[str, Field(pattern=r"^[1-9]\d{0,2}[hd]$")]
"""Hours or days, such as `24h` and `7d`."""


def window_s(window: str) -> int:
    """Return the seconds of a window such as `24h`."""
    return int(window[:-1]) * _UNITS_S[window[-1]]


class BatchLimits(BaseModel):
    """Limits of `POST /v1/files` and `POST /v1/batches` on a host."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    min_window: Window = "24h"
    """Shortest time that the host can be given for a batch; OpenAI takes `24h` and nothing else
    (developers.openai.com/api/reference, batches/create)."""
    max_window: Window = "24h"
    """Longest time."""
    max_bytes: int = Field(default=100_000_000, ge=1000)
    """Most bytes of one file; OpenAI's limit is twice as high."""
    max_requests: int = Field(default=50_000, ge=1)
    """Most lines of one file; OpenAI's limit."""
    max_files: int = Field(default=1000, ge=1)
    """Most files that lie there at a time; what is above waits until others have been collected."""
    models: tuple[str, ...] = ()
    """Models that it takes; empty: not said."""
    poll_s: float = Field(default=30.0, gt=0)
    """Seconds between two looks at a batch at first; they grow to ten times as many."""
    list_lag_s: float = Field(default=30.0, ge=0)
    """Seconds after which the host's list is taken to name a batch whose acknowledgement was lost. Only
    when it does not, the same file is submitted again."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if window_s(self.min_window) > window_s(self.max_window):
            raise ValueError(
                f"min_window {self.min_window} is longer than max_window {self.max_window}"
            )
        return self

    def misfit(self, window: str, model: str | None) -> str | None:
        """Return why a batch cannot be asked for; None where it can.

        Args:
            window: The time that the host is given.
            model: As named in requests; None where it is not known yet.
        """
        if not window_s(self.min_window) <= window_s(window) <= window_s(self.max_window):
            return (
                f"the host takes windows from {self.min_window} to {self.max_window}, not {window}"
            )
        if model is not None and self.models and model not in self.models:
            return f"the host's batch API takes {', '.join(self.models)}, not {model}"
        return None
