"""A profile: the facts of one host and its model, as a typed document.

Written in config/profiles/*.yaml, read by config.load, used by everything in this folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.request import ModeName


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Capabilities(_Model):
    """What the host can do beyond plain text."""

    images: bool = False
    """Whether the model takes images; otherwise it is sent the text read off them."""
    structured_output: bool = False
    """Whether `response_format: json_schema` constrains the answer on the host."""
    priority: bool = False
    """Whether the host takes vLLM's `priority` (lower is earlier), with
    `--scheduling-policy priority`."""


class Prices(_Model):
    """What the host takes, in US dollars per million tokens."""

    input_usd: float = Field(ge=0)
    """Prompt tokens that are computed."""
    cached_input_usd: float = Field(ge=0)
    """Prompt tokens served from the host's prefix cache."""
    output_usd: float = Field(ge=0)
    """Tokens generated, reasoning included."""

    def usd(self, *, prompt: int, cached: int, output: int) -> float:
        """Return the price of that many tokens; `cached` is a part of `prompt`."""
        return (
            (prompt - cached) * self.input_usd
            + cached * self.cached_input_usd
            + output * self.output_usd
        ) / 1e6


class Throughput(_Model):
    """Tokens a second that the host reached when it was measured, for estimates of time."""

    prompt_tokens_per_s: float = Field(gt=0)
    """Prompt tokens computed a second, all requests together."""
    output_tokens_per_s: float = Field(gt=0)
    """Tokens generated a second, all requests together."""


class ModeSettings(_Model):
    """How one mode is asked for on this host."""

    sampling: Mapping[str, float] = Field(default_factory=dict)
    """Sampling parameters as sent, such as temperature."""
    wire: Mapping[str, Any] = Field(default_factory=dict)
    """Further fields of the request body that switch the mode."""


class Profile(_Model):
    """One host."""

    name: str
    """Name of the file without its suffix; a URL's own text for a plain endpoint."""
    title: str = ""
    """The model and the host, for people."""
    model: str | None = None
    """Model as named in requests; None: the first one the endpoint lists."""
    serve: Literal["embedded"] | None = None
    """What this machine starts by itself; None for an endpoint that is there already."""
    server_flags: tuple[str, ...] = ()
    """Flags of `vllm serve` for an engine that this machine starts."""
    base_url: str | None = None
    """Address up to and with `/v1`; None for an engine that this machine starts."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; the key itself is nowhere else."""
    needs_key: bool = False
    """Whether the host answers nobody without a key."""
    context_tokens: int | None = Field(default=None, ge=256)
    """Longest prompt and answer together, in tokens; None: as the endpoint reports it."""
    max_chunk_tokens: int | None = Field(default=None, ge=64)
    """Most tokens of a chunk where the pipeline sets none; None: what the context leaves. Smaller
    ones keep more requests in the KV cache at once."""
    max_in_flight: int = Field(default=16, ge=1)
    """Most requests under way at the same time."""
    capabilities: Capabilities = Field(default_factory=Capabilities)
    prices: Prices | None = None
    """What tokens cost; None: not known, such as on own hardware."""
    throughput: Throughput | None = None
    """How fast it is; None: not measured."""
    ask_fields: str = "answer: string, evidence: line"
    """What `headrace ask` asks for where no fields are given, in short. A model too small to write a
    sentence is asked for a line of the document only."""
    modes: Mapping[ModeName, ModeSettings]
    """Settings of each mode that the host offers."""


def profile_for_url(url: str) -> Profile:
    """Return the profile of a plain OpenAI-compatible endpoint, of which only the address is known.

    Structured output is asked for, as vLLM, SGLang and llama.cpp offer it; temperature 0 makes
    answers repeatable as far as the host allows.
    """
    base_url = url.rstrip("/")
    if not base_url.endswith("/v1"):
        base_url += "/v1"
    return Profile(
        name=url,
        title=f"OpenAI-compatible endpoint at {url}",
        base_url=base_url,
        api_key_env="OPENAI_API_KEY",
        capabilities=Capabilities(structured_output=True),
        modes={"instant": ModeSettings(sampling={"temperature": 0.0})},
    )
