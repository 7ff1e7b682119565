"""What a crew says of its work and its means, for `headrace decide`: a small YAML file, or options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from config.load import read_yaml
from config.model import Model
from config.validate import validated
from engine.capacity import parse_gpus
from engine.errors import SetUpImpossible

Work = Literal[
    "extraction", "classification", "summaries", "images", "reasoning", "agents", "swarm"
]
Hosting = Literal["api", "hosted", "self_hosted"]
ModelChoice = Literal["kimi-k2.5", "small", "proprietary"]

NO_GPUS = "none"
"""Stands for having none."""


class Answers(Model):
    """The answers. What is left out is not known, and the verdict says where it matters."""

    work: tuple[Work, ...] = ()
    """What is to be done."""
    sensitive: Literal["none", "some", "all"] | None = None
    """Whether documents must stay on your premises."""
    certifications: tuple[str, ...] = ()
    """What whoever runs the engine must be certified for, such as SOC 2."""
    own_certifications: tuple[str, ...] = ()
    """What your own operations are certified for; counts for engines that you run."""
    engine: str = "kimi-k2.5"
    """Profile of the engine that you would run yourselves."""
    hosts: tuple[str, ...] = ("moonshot", "clarifai")
    """Profiles of hosts that come into question."""
    gpus: str | None = None
    """GPUs that you have or would rent: `8xH200`; `none` for none."""
    gpu_hour_usd: float | None = Field(default=None, ge=0)
    """Price of one of them for an hour."""
    prompt_tokens: int | None = Field(default=None, ge=0)
    """Prompt tokens a month; `headrace plan` counts those of a corpus."""
    output_tokens: int | None = Field(default=None, ge=0)
    """Tokens generated a month."""
    cached_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the prompt tokens that a prefix cache serves; `headrace plan` says it."""
    budget_usd: float | None = Field(default=None, ge=0)
    """US dollars a month."""
    within_s: float | None = Field(default=None, gt=0)
    """Longest time that one answer may take, in seconds. From 43,200 on a batch API may be used."""
    answer_tokens: int = Field(default=300, ge=1)
    """Tokens of a typical answer."""
    context_tokens: int | None = Field(default=None, ge=1)
    """Most tokens that one question must see at once. Documents are cut, so that most need few."""
    operators: int | None = Field(default=None, ge=0)
    """People who can run GPU servers."""
    on_call: bool | None = None
    """Whether one of them can be reached at night and at weekends."""
    hosting: Hosting | None = None
    """Where it has to run, if that is decided already."""
    model: ModelChoice | None = None
    """Which kind of model it has to be, if that is decided already."""

    @field_validator("gpus")
    @classmethod
    def _check_gpus(cls, text: str | None) -> str | None:
        if text is not None and text not in {NO_GPUS, "found"}:
            try:
                parse_gpus(text)
            except SetUpImpossible as exc:
                raise ValueError(str(exc)) from exc
        return text


def load_answers(path: Path | None, options: Mapping[str, Any]) -> Answers:
    """Return the answers in a file, with options on top; None values are ignored.

    Raises:
        ConfigError: The file cannot be read, or an answer is none of those that there are.
    """
    data = read_yaml(path) if path is not None else {}
    given = {key: value for key, value in options.items() if value is not None}
    return validated(Answers, {**data, **given}, path or Path("headrace decide"))
