"""What a token takes in the KV cache, and how many tokens a number of bytes holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from engine.capacity.facts import LatentAttention, Shape
from engine.errors import SetUpImpossible

KvType = Literal["auto", "bfloat16", "float32", "fp8"]
"""Type of the cache's numbers; `auto` is that of the model, bfloat16 on GPUs."""

_BYTES: Mapping[KvType, int] = {"auto": 2, "bfloat16": 2, "float32": 4, "fp8": 1}


GPU_BLOCK_TOKENS = {"mla": 64, "gqa": 16}
"""Tokens of a block on NVIDIA GPUs: 64 for FlashMLA, with which 715,072 tokens come out to the token;
16 is vLLM's default."""
CPU_BLOCK_TOKENS = {"mla": 16, "gqa": 128}
"""As vLLM 0.32 chooses on a CPU without AMX (platforms/cpu.py)."""


def bytes_per_token(shape: Shape, kv_type: KvType, *, tp: int = 1, pp: int = 1) -> int:
    """Return what one token takes on each GPU, all of its layers there together.

    MLA keeps one vector for all heads, so that tensor parallelism repeats it on every GPU. Heads of
    keys are divided, down to one per GPU.
    """
    one = shape.attention
    if isinstance(one, LatentAttention):
        numbers = one.kv_lora_rank + one.rope_dim
    else:
        numbers = 2 * one.head_dim * max(1, one.kv_heads // tp)
    return numbers * -(-shape.layers // pp) * _BYTES[kv_type]


def tokens_in(num_bytes: float, token_bytes: int, block_tokens: int, *, dcp: int = 1) -> int:
    """Return how many tokens fit, in whole blocks.

    Args:
        num_bytes: Memory for the cache on one GPU.
        token_bytes: What a token takes there.
        block_tokens: Tokens of a block.
        dcp: GPUs over which decode context parallelism divides each sequence.
    """
    blocks = int(max(0.0, num_bytes) // (token_bytes * block_tokens))
    return blocks * block_tokens * dcp


def kv_type_of(text: str) -> KvType:
    """Return the type that a person has named.

    Raises:
        SetUpImpossible: It is none that is planned on GPUs.
    """
    for kind in ("auto", "bfloat16", "fp8"):
        if kind == text:
            return kind
    raise SetUpImpossible(f"--kv-dtype {text!r} is none of auto, bfloat16 and fp8")
