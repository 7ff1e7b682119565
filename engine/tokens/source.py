"""Where a profile's token counts come from, best method first."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class TokenizerSource(BaseModel):
    """How to count tokens as the served model does.

    What is given is tried in this order; without any of it, counts are estimated with a margin.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    file: str | None = None
    """The model's vocabulary on this machine: a `tokenizer.json`, Kimi's `tiktoken.model`, or the
    folder that holds one. A relative path is below the cache's `models`; `~` is allowed. Source: the
    files of moonshotai/Kimi-K2.5 on Hugging Face have `tiktoken.model`."""
    tokenize: bool = False
    """Whether the host answers `POST /tokenize` beside `/v1`, as vLLM and SGLang do; one call per
    text. Source: vLLM's entrypoints/serve/tokenize, SGLang's entrypoints/openai/serving_tokenize.py."""
    estimate_path: str | None = None
    """Path below `base_url` where the host counts messages, such as `/tokenizers/estimate-token-count`
    of Moonshot. Source: platform.kimi.ai/docs/api/estimate."""
