"""What a model takes on a set of GPUs: weights, working memory, KV cache; whether it fits, and why.

Formulas only: nothing is started, sent or looked up. docs/planner.md holds them against what was published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine.capacity.cache import (
    CPU_BLOCK_TOKENS,
    GPU_BLOCK_TOKENS,
    KvType,
    bytes_per_token,
    tokens_in,
)
from engine.capacity.facts import ModelFacts, Part, Shape, WeightFile
from engine.capacity.gpus import GIB, Gpus
from engine.capacity.layout import Layout, Sizes, lay_out
from engine.capacity.weights import bytes_by_part, bytes_per_gpu, weights_bytes
from engine.errors import SetUpImpossible

UTILIZATION = 0.92
"""Share of a GPU that vLLM takes unless told otherwise (vLLM 0.32, config/cache.py)."""

OVERHEAD_BYTES = 8_817 * 2**20
"""Working memory of vLLM on each GPU: activations, CUDA graphs, NCCL, sampling. Measured once: what the log
of Kimi K2 Thinking on 8xH200 leaves (0.9 of 143,771 MiB, less the weights by formula, less 46.80 GiB of
cache; vLLM recipes, moonshotai/Kimi-K2-Think.md). Other set-ups may take more or less."""

TABLE_CONTEXTS = (8_192, 32_768, 131_072, 262_144, 1_048_576)
"""Contexts of the table, as far as the model takes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked of a set-up."""

    precision: str | None = None
    """Key of the model's file; None: its first."""
    context_tokens: int | None = None
    """Longest prompt and answer; None: the model's own."""
    concurrency: int = 1
    """Requests of that length that the cache is to hold at once."""
    kv_type: KvType = "auto"
    """Type of the cache's numbers; `auto`: what the file's recipe asks for."""
    sizes: Sizes = field(default_factory=Sizes)
    """Parallel sizes."""
    utilization: float = UTILIZATION
    """Share of each GPU that vLLM may take."""
    with_vision: bool = True
    """Whether the vision part is loaded, where it has any."""
    overhead_bytes: int = OVERHEAD_BYTES
    """Working memory on each GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PerGpu:
    """Where the memory of one GPU goes, in bytes."""

    total: int
    usable: int
    """What vLLM may take."""
    parts: Mapping[Part, float]
    """Weights by part."""
    overhead: int
    cache: int
    """What is left for the KV cache; negative: what is missing."""

    @property
    def weights(self) -> int:
        """Return the bytes of all parts."""
        return round(sum(self.parts.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A set-up and what it can do."""

    model: ModelFacts
    precision: str
    file: WeightFile
    gpus: Gpus | None
    """None: a CPU whose cache has a given size."""
    wish: Wish
    context_tokens: int
    layout: Layout | None
    weights_bytes: int | None
    """Of the file, all parts."""
    per_gpu: PerGpu | None
    token_bytes: int | None
    """What a token takes in the cache of each GPU."""
    engine_tokens: int | None
    """Tokens of one engine's cache, which holds each request whole."""
    fits: bool | None
    """Whether it starts and holds as many requests at once as asked for; None: not known."""
    starts: bool | None
    """Whether the server starts at all; None: not known."""
    reasons: tuple[str, ...]
    """One sentence each, the verdict first."""

    @property
    def num_engines(self) -> int:
        """Return how many caches there are: one for each replica and data-parallel group."""
        return 1 if self.layout is None else self.layout.dp * self.layout.replicas

    @property
    def kv_tokens(self) -> int | None:
        """Return the tokens of all caches together."""
        return None if self.engine_tokens is None else self.engine_tokens * self.num_engines

    def requests_at_once(self, context_tokens: int) -> int | None:
        """Return how many requests of that length the caches hold at once."""
        if self.engine_tokens is None:
            return None
        return self.engine_tokens // context_tokens * self.num_engines

    @property
    def table(self) -> list[dict[str, Any]]:
        """Return requests at once by context, and the cache that one takes on each GPU."""
        if self.token_bytes is None or self.layout is None:
            return []
        wanted = {n for n in TABLE_CONTEXTS if n <= self.model.context_tokens}
        return [
            {
                "context_tokens": context,
                "requests_at_once": self.requests_at_once(context),
                "bytes_per_request": context * self.token_bytes // self.layout.dcp,
            }
            for context in sorted({*wanted, self.context_tokens})
        ]


def file_of(model: ModelFacts, precision: str | None) -> tuple[str, WeightFile]:
    """Return a file of the model by its key.

    Raises:
        SetUpImpossible: It has none of that name.
    """
    if not model.files and precision is None:
        return "not known", WeightFile(title="weights", source=model.sources[0])
    key = precision or next(iter(model.files))
    if key not in model.files:
        raise SetUpImpossible(
            f"{model.title} has no file {key!r}; --precision takes {', '.join(model.files) or 'none'}"
        )
    return key, model.files[key]


def context_of(model: ModelFacts, asked: int | None) -> int:
    """Return the context to plan for.

    Raises:
        SetUpImpossible: It is longer than the model takes.
    """
    if asked is not None and asked > model.context_tokens:
        raise SetUpImpossible(
            f"--context {asked:,} exceeds what {model.title} takes, {model.context_tokens:,} tokens"
        )
    return asked or model.context_tokens


def measure(model: ModelFacts, gpus: Gpus, wish: Wish) -> Plan:
    """Return the set-up with its sizes, not yet judged; see `plan`.

    Raises:
        SetUpImpossible: Something asked for cannot be.
    """
    precision, file = file_of(model, wish.precision)
    context = context_of(model, wish.context_tokens)
    if wish.kv_type == "auto" and file.kv_dtype == "fp8":
        wish = replace(wish, kv_type="fp8")
    blank = Plan(
        model=model,
        precision=precision,
        file=file,
        gpus=gpus,
        wish=wish,
        context_tokens=context,
        layout=None,
        weights_bytes=weights_bytes(model, file),
        per_gpu=None,
        token_bytes=None,
        engine_tokens=None,
        fits=None,
        starts=None,
        reasons=(),
    )
    if model.shape is None:
        return blank
    if file.runs_on == "vllm":
        layout = lay_out(model.shape, gpus, wish.sizes)
    else:
        # llama.cpp and MLX give each GPU some of the layers.
        layout = Layout(tp=1, pp=gpus.count)
    return _filled(blank, model.shape, gpus, layout)


def _filled(blank: Plan, shape: Shape, gpus: Gpus, layout: Layout) -> Plan:
    wish, on_vllm = blank.wish, blank.file.runs_on == "vllm"
    parts = bytes_by_part(shape, blank.file)
    if on_vllm:
        held = bytes_per_gpu(
            parts, tp=layout.tp, pp=layout.pp, dp=layout.dp, with_vision=wish.with_vision
        )
    else:
        held = {part: size / gpus.count for part, size in parts.items()}
    total = gpus.gpu.memory_bytes
    usable = int(total * wish.utilization)
    overhead = wish.overhead_bytes if on_vllm else 0
    left = usable - round(sum(held.values())) - overhead
    token_bytes = bytes_per_token(shape, wish.kv_type, tp=layout.tp, pp=layout.pp)
    tokens = tokens_in(left, token_bytes, GPU_BLOCK_TOKENS[shape.attention.kind], dcp=layout.dcp)
    return replace(
        blank,
        layout=layout,
        per_gpu=PerGpu(total=total, usable=usable, parts=held, overhead=overhead, cache=left),
        token_bytes=token_bytes,
        engine_tokens=tokens,
    )


def on_cpu(
    model: ModelFacts, *, cache_bytes: int, kv_type: KvType, context_tokens: int | None
) -> Plan:
    """Return the plan of an engine on this machine's CPU, whose cache has a given size.

    Args:
        model: A model of which the shape is known.
        cache_bytes: VLLM_CPU_KVCACHE_SPACE, in bytes.
        kv_type: Type of the cache's numbers, which is that of the weights.
        context_tokens: Longest prompt and answer; None: the model's own.

    Raises:
        SetUpImpossible: The context is longer than the model takes.
    """
    assert model.shape is not None
    precision, file = file_of(model, "fp32" if kv_type == "float32" else None)
    context = context_of(model, context_tokens)
    token_bytes = bytes_per_token(model.shape, kv_type)
    tokens = tokens_in(cache_bytes, token_bytes, CPU_BLOCK_TOKENS[model.shape.attention.kind])
    said = (
        f"{model.title} on this CPU: a KV cache of {cache_bytes / GIB:g} GiB holds {tokens:,} tokens,"
        f" {tokens // context:,} requests of {context:,} at once"
    )
    return Plan(
        model=model,
        precision=precision,
        file=file,
        gpus=None,
        wish=Wish(kv_type=kv_type, context_tokens=context_tokens),
        context_tokens=context,
        layout=Layout(tp=1),
        weights_bytes=weights_bytes(model, file),
        per_gpu=None,
        token_bytes=token_bytes,
        engine_tokens=tokens,
        fits=tokens >= context,
        starts=tokens >= context,
        reasons=(said,),
    )
