"""What a planner must know of a model: its shapes, as in config.json, and the files it is published in.

Written in config/models/*.yaml with its sources, read by config.models, named by a profile's `facts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Part = Literal[
    "experts",
    "attention",
    "attention_each",
    "shared_experts",
    "dense",
    "router",
    "embedding",
    "norms",
    "vision",
]
"""Parts of a model's weights. `attention_each`: the projections into the latent, which every GPU of a
tensor-parallel group holds whole."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class LatentAttention(_Model):
    """Multi-head latent attention (MLA): one compressed vector per token and layer, for all heads."""

    kind: Literal["mla"]
    """Multi-head latent attention."""
    heads: int = Field(ge=1)
    """Attention heads: `num_attention_heads`."""
    q_lora_rank: int = Field(ge=1)
    """Size of the compressed query."""
    kv_lora_rank: int = Field(ge=1)
    """Size of the compressed key and value, which the cache keeps."""
    nope_dim: int = Field(ge=1)
    """Part of a head's key without position: `qk_nope_head_dim`."""
    rope_dim: int = Field(ge=1)
    """Part with position, which the cache keeps too: `qk_rope_head_dim`."""
    value_dim: int = Field(ge=1)
    """Size of a head's value: `v_head_dim`."""


class GroupedAttention(_Model):
    """Attention whose cache keeps a key and a value per head of keys (MHA, GQA, MQA)."""

    kind: Literal["gqa"]
    """Grouped-query attention; multi-head where both counts are equal."""
    heads: int = Field(ge=1)
    """Attention heads: `num_attention_heads`."""
    kv_heads: int = Field(ge=1)
    """Heads of keys and values: `num_key_value_heads`."""
    head_dim: int = Field(ge=1)
    """Size of a head."""


Attention = Annotated[LatentAttention | GroupedAttention, Field(discriminator="kind")]


class Experts(_Model):
    """Layers of which each token takes a few experts."""

    routed: int = Field(ge=1)
    """Experts of a layer: `n_routed_experts`."""
    per_token: int = Field(ge=1)
    """Experts that answer for a token: `num_experts_per_tok`."""
    shared: int = Field(ge=0)
    """Experts that always answer: `n_shared_experts`."""
    size: int = Field(ge=1)
    """Width of an expert: `moe_intermediate_size`."""
    first_dense: int = Field(ge=0)
    """Layers at the beginning that have none: `first_k_dense_replace`."""
    choice_bias: bool = False
    """Whether the router adds a number per expert, kept in 4 bytes (`topk_method: noaux_tc`)."""


class Vision(_Model):
    """A MoonViT tower and the projector behind it."""

    hidden: int = Field(ge=1)
    """Width of the tower."""
    layers: int = Field(ge=1)
    """Its layers."""
    intermediate: int = Field(ge=1)
    """Width inside a layer."""
    patch_px: int = Field(ge=1)
    """Side of a patch, in pixels."""
    positions: int = Field(ge=1)
    """Learned positions: rows times columns."""
    merged: int = Field(ge=1)
    """Patches that become one token."""


class Shape(_Model):
    """A model's shapes, as config.json names them."""

    hidden: int = Field(ge=1)
    """`hidden_size`."""
    layers: int = Field(ge=1)
    """`num_hidden_layers`."""
    vocabulary: int = Field(ge=1)
    """`vocab_size`."""
    tied_embeddings: bool
    """Whether input and output share one table: `tie_word_embeddings`."""
    dense_size: int = Field(ge=1)
    """Width of a layer without experts: `intermediate_size`."""
    attention: Attention
    """How it attends, which decides the KV cache."""
    experts: Experts | None = None
    """Its experts; None: every layer is dense."""
    vision: Vision | None = None
    """What sees images; None: nothing does."""


class Stored(_Model):
    """How one part's numbers lie in a file."""

    bits: float = Field(gt=0)
    """Bits of a number."""
    scale_bits: float = Field(default=0, ge=0)
    """Bits of a scale."""
    group: int = Field(default=1, ge=1)
    """Numbers that share a scale."""
    bytes_per_tensor: int = Field(default=0, ge=0)
    """Further bytes of each tensor, such as its shape before packing."""

    def bytes_of(self, numbers: int, tensors: int) -> float:
        """Return the bytes of so many numbers in so many tensors."""
        bits = numbers * self.bits + numbers / self.group * self.scale_bits
        return bits / 8 + tensors * self.bytes_per_tensor


class WeightFile(_Model):
    """One published form of a model's weights."""

    title: str
    """For people, such as `INT4, as published by Moonshot`."""
    runs_on: Literal["vllm", "llama.cpp", "mlx"] = "vllm"
    """What can serve it."""
    repository: str | None = None
    """What `vllm serve` takes for it; None: not named by the source."""
    published_bytes: int | None = Field(default=None, ge=1)
    """Size as published; None: by formula only."""
    exact: bool = False
    """Whether the published size is exact to the byte; otherwise it is rounded."""
    stored: Mapping[Literal["all", "rest"] | Part, Stored] = Field(default_factory=dict)
    """How parts are stored: by part, `rest` for the others, or `all`. Empty: not known, so the published
    size is divided over the parts by their numbers."""
    vendor: Literal["nvidia", "amd"] | None = None
    """GPUs that it is for; None: any."""
    min_capability: float = Field(default=8.0, gt=0)
    """Least CUDA compute capability on which vLLM serves it."""
    server_flags: tuple[str, ...] = ()
    """Further flags of `vllm serve`, as its recipe has them."""
    environment: Mapping[str, str] = Field(default_factory=dict)
    """Environment variables of vLLM, as its recipe has them."""
    kv_dtype: Literal["auto", "fp8"] = "auto"
    """Type of the KV cache that its recipe asks for."""
    note: str = ""
    """What else to know, in one sentence."""
    source: str
    """Where the size or the layout is written."""


class Speculation(_Model):
    """A small model that guesses ahead for the large one."""

    config: str
    """What `--speculative-config` takes, as published."""
    source: str
    """Where it is published."""


class ModelFacts(_Model):
    """A model as a planner sees it."""

    name: str
    """Name of the file without its suffix."""
    title: str
    """The model, for people."""
    context_tokens: int = Field(ge=1)
    """Longest prompt and answer together: `max_position_embeddings`."""
    shape: Shape | None = None
    """Its shapes; None: not known, so that there is no plan of its cache."""
    files: Mapping[str, WeightFile] = Field(default_factory=dict)
    """Its weights by precision; the first one is taken where none is asked for."""
    server_flags: tuple[str, ...] = ()
    """Flags of `vllm serve` for this architecture on GPUs."""
    vision_flags: tuple[str, ...] = ()
    """Flags for serving it with its vision part."""
    lora: bool = False
    """Whether vLLM serves LoRA adapters of this architecture."""
    speculation: Speculation | None = None
    """Speculative decoding; None: none is published."""
    unknown: str = ""
    """Why there is no full plan, in one sentence."""
    sources: tuple[str, ...]
    """Where these facts are written."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.shape is None and not self.unknown:
            raise ValueError("without a shape, `unknown` must say what is missing")
        if self.shape is not None and not self.files:
            raise ValueError("name at least one file of its weights")
        return self
