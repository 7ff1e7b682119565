"""The base of everything that stands in a pipeline's file."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """Frozen, and closed to keys it does not know; its docstrings are the reference."""

    # Inputs are hidden: someone will write a password where its variable's name belongs.
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )
