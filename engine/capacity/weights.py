"""How many numbers a model has, part by part, and how many bytes they take in a file and on a GPU.

Pure formulas over facts; for Kimi K2.5 in INT4 they give the published size to the byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from engine.capacity.facts import (
    LatentAttention,
    ModelFacts,
    Part,
    Shape,
    Stored,
    Vision,
    WeightFile,
)

_BFLOAT16 = Stored(bits=16)
_EACH: frozenset[Part] = frozenset({"attention_each", "router", "norms", "vision"})
"""Parts that every GPU holds whole: vLLM 0.32 builds them as ReplicatedLinear or norms
(model_executor/models/deepseek_v2.py); vision with `--mm-encoder-tp-mode data`."""


class Numbers(NamedTuple):
    """Size of one part."""

    numbers: int
    """Weights in it."""
    tensors: int
    """Tensors that hold them."""


def numbers_of(shape: Shape) -> dict[Part, Numbers]:
    """Return the numbers of each part that the model has."""
    experts, layers, hidden = shape.experts, shape.layers, shape.hidden
    first_dense = layers if experts is None else experts.first_dense
    sparse = layers - first_dense
    attention, each, norms = _attention(shape)
    found: dict[Part, Numbers] = {
        "attention": Numbers(layers * attention, layers),
        "dense": Numbers(first_dense * 3 * hidden * shape.dense_size, 3 * first_dense),
        "embedding": Numbers(
            (1 if shape.tied_embeddings else 2) * shape.vocabulary * hidden,
            1 if shape.tied_embeddings else 2,
        ),
        "norms": Numbers(layers * (norms + 2 * hidden) + hidden, 2 * layers + 1),
    }
    if each:
        found["attention_each"] = Numbers(layers * each, 2 * layers)
    if experts is not None:
        expert = 3 * hidden * experts.size
        routed = sparse * experts.routed
        found["experts"] = Numbers(routed * expert, 3 * routed)
        found["shared_experts"] = Numbers(sparse * experts.shared * expert, 3 * sparse)
        # The bias has 4 bytes where the router's numbers have 2: counted as two of them.
        bias = 2 * experts.routed if experts.choice_bias else 0
        found["router"] = Numbers(sparse * (experts.routed * hidden + bias), 2 * sparse)
    if shape.vision is not None:
        found["vision"] = Numbers(_vision(shape.vision, hidden), 1)
    return {part: size for part, size in found.items() if size.numbers}


def _attention(shape: Shape) -> tuple[int, int, int]:
    """Return a layer's numbers: divided over GPUs, whole on each, and in its own norms."""
    one, hidden = shape.attention, shape.hidden
    if not isinstance(one, LatentAttention):
        width = one.heads * one.head_dim
        return 2 * hidden * width + 2 * hidden * one.kv_heads * one.head_dim, 0, 0
    keys = one.nope_dim + one.rope_dim
    divided = (
        one.q_lora_rank * one.heads * keys
        + one.kv_lora_rank * one.heads * (one.nope_dim + one.value_dim)
        + one.heads * one.value_dim * hidden
    )
    each = hidden * (one.q_lora_rank + one.kv_lora_rank + one.rope_dim)
    return divided, each, one.q_lora_rank + one.kv_lora_rank


def _vision(eyes: Vision, out: int) -> int:
    """Return the numbers of MoonViT and its projector, biases included."""
    width, wide = eyes.hidden, eyes.hidden * eyes.merged
    block = 4 * width * width + 9 * width + 2 * width * eyes.intermediate + eyes.intermediate
    patches = 3 * eyes.patch_px**2 * width + width
    tower = eyes.layers * block + patches + eyes.positions * width + 2 * width
    return tower + 2 * width + wide * wide + wide + wide * out + out


def bytes_by_part(shape: Shape, file: WeightFile) -> dict[Part, float]:
    """Return the bytes of each part in a file, by formula, scaled to the published size where there is one."""
    computed = computed_by_part(shape, file)
    if file.published_bytes is None:
        return computed
    factor = file.published_bytes / sum(computed.values())
    return {part: size * factor for part, size in computed.items()}


def computed_by_part(shape: Shape, file: WeightFile) -> dict[Part, float]:
    """Return the bytes of each part in a file by formula alone."""
    return {
        part: _stored(file, part).bytes_of(size.numbers, size.tensors)
        for part, size in numbers_of(shape).items()
    }


def _stored(file: WeightFile, part: Part) -> Stored:
    for key in (part, "rest", "all"):
        if key in file.stored:
            return file.stored[key]
    return _BFLOAT16


def weights_bytes(model: ModelFacts, file: WeightFile) -> int | None:
    """Return the size of a file: as published, else by formula; None where neither is known."""
    if file.published_bytes is not None:
        return file.published_bytes
    if model.shape is None:
        return None
    return round(sum(computed_by_part(model.shape, file).values()))


def bytes_per_gpu(
    parts: Mapping[Part, float], *, tp: int, pp: int, dp: int, with_vision: bool
) -> dict[Part, float]:
    """Return what one GPU holds of each part.

    Experts are divided over all GPUs of a server (tp x dp), with and without expert parallelism: where dp
    exceeds 1, vLLM divides them over its ranks too. What else can be divided is, by tp; layers by pp.
    """
    held: dict[Part, float] = {}
    for part, size in parts.items():
        if part == "vision" and not with_vision:
            continue
        share = tp * dp if part == "experts" else 1 if part in _EACH else tp
        # Vision and the tables stand at the two ends, which are the fullest.
        held[part] = size / share / (1 if part in {"vision", "embedding"} else pp)
    return held
