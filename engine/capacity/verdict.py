"""The verdict on a set-up: whether it fits, the reasons in sentences, and what would change it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from engine.capacity.facts import ModelFacts
from engine.capacity.gpus import GIB, Gpus
from engine.capacity.layout import Sizes
from engine.capacity.plan import OVERHEAD_BYTES, Plan, Wish, measure
from engine.errors import SetUpImpossible

_MOST_GPUS = 64
_STEPS = (1, 2, 4, 8, 16, 32, _MOST_GPUS)


@dataclass(frozen=True, slots=True, kw_only=True)
class WayOut:
    """A change after which the set-up does more."""

    option: str
    """As given on the command line."""
    kv_tokens: int
    """Tokens of all caches then."""
    requests_at_once: int
    """Requests of the context then."""


def plan(model: ModelFacts, gpus: Gpus, wish: Wish) -> Plan:
    """Return the set-up, judged.

    Args:
        model: What is served.
        gpus: What it is served on.
        wish: What is asked of it.

    Raises:
        SetUpImpossible: Something asked for cannot be: a size, the context, the precision.
    """
    found = measure(model, gpus, wish)
    refused = _refused(found)
    if refused:
        return replace(found, fits=False, starts=False, reasons=(refused, *_notes(found)))
    if found.per_gpu is None:
        return _by_weights_alone(found)
    starts, said = _judged(found)
    held = found.requests_at_once(found.context_tokens) or 0
    enough = held >= found.wish.concurrency or found.file.runs_on != "vllm"
    return replace(found, fits=starts and enough, starts=starts, reasons=(said, *_notes(found)))


def _refused(found: Plan) -> str:
    """Return why vLLM does not serve this file on these GPUs at all; empty where it does."""
    assert found.gpus is not None
    gpu, file = found.gpus.gpu, found.file
    if file.vendor is not None and gpu.vendor not in {None, file.vendor}:
        maker = {"nvidia": "NVIDIA", "amd": "AMD"}[file.vendor]
        return f"{file.title} is for {maker} GPUs, {gpu.name} is none; take another --precision"
    if (
        file.runs_on == "vllm"
        and gpu.capability is not None
        and gpu.capability < file.min_capability
    ):
        return (
            f"{gpu.name} has compute capability {gpu.capability}; vLLM serves {file.title} from"
            f" {file.min_capability} on; take another --precision or other GPUs"
        )
    return ""


def _by_weights_alone(found: Plan) -> Plan:
    """Judge a model of which only the size of a file is known."""
    assert found.gpus is not None
    if found.weights_bytes is None:
        return replace(found, reasons=(f"not known, no plan: {found.model.unknown}",))
    total = found.gpus.count * found.gpus.gpu.memory_bytes * found.wish.utilization
    held = f"{found.weights_bytes / 1e9:,.0f} GB of weights, {found.gpus} give vLLM {total / 1e9:,.0f} GB"
    if found.weights_bytes > total:
        said = f"{found.gpus} do not hold {found.model.title}: {held}"
        return replace(found, fits=False, starts=False, reasons=(said, found.model.unknown))
    said = f"not known, no plan: {held}, but {found.model.unknown}"
    return replace(found, fits=None, reasons=(said,))


def _judged(found: Plan) -> tuple[bool, str]:
    """Return whether the server starts, and the verdict in a sentence."""
    assert found.engine_tokens is not None
    if found.file.runs_on != "vllm":
        return _elsewhere(found)
    lacking = _lacking(found)
    if lacking:
        return False, lacking
    context = found.context_tokens
    if found.engine_tokens < context:
        return False, (
            f"{found.gpus} hold {_what(found)}, but the KV cache has room for {found.engine_tokens:,} tokens,"
            f" less than one context of {context:,}, with which vLLM does not start: --context"
            f" {found.engine_tokens} or less"
        )
    held = found.requests_at_once(context) or 0
    cache = f"{found.kv_tokens:,} tokens of KV cache, {_requests(held)} of {context:,} at once"
    said = f"{found.gpus} hold {_what(found)} with {cache}"
    if held < found.wish.concurrency:
        said += f", not the {found.wish.concurrency:,} asked for: the others would wait"
    return True, said


def _lacking(found: Plan) -> str:
    """Return what there is no room for before the cache; empty where there is."""
    each = found.per_gpu
    assert each is not None
    share = (
        f"{each.usable / GIB:.1f} GiB that vLLM may use of each"
        f" ({found.wish.utilization:g} of {each.total / GIB:.1f})"
    )
    if each.weights > each.usable:
        return (
            f"{found.gpus} do not hold {_what(found)}: its weights take {each.weights / GIB:.1f} GiB a GPU,"
            f" more than the {share}"
        )
    if not found.engine_tokens:
        return (
            f"{found.gpus} hold the weights of {_what(found)}, {each.weights / GIB:.1f} GiB of the {share}, but"
            f" what is left does not do for vLLM's own {each.overhead / GIB:.1f} GiB and a KV cache"
        )
    return ""


def _what(found: Plan) -> str:
    return f"{found.model.title} in {found.precision.upper()}"


def _requests(number: int) -> str:
    return f"{number:,} request" if number == 1 else f"{number:,} requests"


def _elsewhere(found: Plan) -> tuple[bool, str]:
    """Judge a file for llama.cpp or MLX, which may leave layers in main memory."""
    assert found.gpus is not None
    assert found.per_gpu is not None
    assert found.token_bytes is not None
    each, count, server = found.per_gpu, found.gpus.count, found.file.runs_on
    needed = each.weights + found.context_tokens * found.token_bytes
    what = f"{found.file.title}, {each.weights * count / 1e9:,.0f} GB of weights"
    if needed <= each.usable:
        return True, f"{found.gpus} hold {what} and a context of {found.context_tokens:,} tokens"
    missing = (needed - each.usable) * count
    rest = (
        f"; {server} can keep that much in main memory, where it is slow"
        if server == "llama.cpp"
        else ""
    )
    return False, (
        f"{found.gpus} lack {missing / 1e9:,.0f} GB for {what} and a context of"
        f" {found.context_tokens:,} tokens{rest}"
    )


def _notes(found: Plan) -> list[str]:
    """Return what else to know: assumptions, and facts of the file."""
    notes = [found.file.note] if found.file.note else []
    if found.file.runs_on != "vllm":
        notes.append(
            f"served by {found.file.runs_on}, whose own working memory is not counted; `engine serve`"
            " starts vLLM only: start it yourself and give its URL with --engine"
        )
        return notes
    if found.per_gpu is not None and found.per_gpu.overhead == OVERHEAD_BYTES:
        notes.append(
            f"vLLM's own {found.per_gpu.overhead / GIB:.1f} GiB a GPU are what one log of 8xH200 leaves;"
            " on other GPUs it may differ by some GiB (--overhead)"
        )
    if (
        found.layout is not None
        and found.layout.dcp == 1
        and found.layout.tp > 1
        and _is_latent(found)
    ):
        notes.append(
            f"the cache is repeated on each of the {found.layout.tp} GPUs of a tensor-parallel group;"
            f" --dcp {found.layout.tp} would divide it"
        )
    return notes


def _is_latent(found: Plan) -> bool:
    return found.model.shape is not None and found.model.shape.attention.kind == "mla"


def ways_out(found: Plan) -> list[WayOut]:
    """Return single changes that make room: each re-planned, those that help, in order of effort."""
    if found.layout is None or found.gpus is None or found.file.runs_on != "vllm":
        return []
    gpus, wish, sizes = found.gpus, found.wish, found.wish.sizes
    tries: list[tuple[str, Gpus, Wish]] = []
    if found.layout.dcp == 1 and found.layout.tp > 1 and _is_latent(found):
        divided = replace(sizes, dcp=found.layout.tp)
        tries.append((f"--dcp {found.layout.tp}", gpus, replace(wish, sizes=divided)))
    if wish.kv_type == "auto":
        tries.append(("--kv-dtype fp8", gpus, replace(wish, kv_type="fp8")))
    if wish.with_vision and found.model.shape is not None and found.model.shape.vision is not None:
        tries.append(("--text-only", gpus, replace(wish, with_vision=False)))
    tries += [
        (f"--precision {key}", gpus, replace(wish, precision=key, kv_type="auto"))
        for key, file in found.model.files.items()
        if key != found.precision and file.runs_on == "vllm"
    ]
    # Sizes given for fewer GPUs need not divide more of them; how a group divides its work stays.
    kept = Sizes(dcp=sizes.dcp, ep=sizes.ep)
    for more in (Gpus(count, gpus.gpu) for count in _STEPS if count > gpus.count):
        option = f"--gpus {more.count}x{gpus.gpu.name}"
        tries.append((option, more, wish))
        if sizes != kept:
            without = f"{option} without {_dropped(sizes, kept)}"
            tries.append((without, more, replace(wish, sizes=kept)))
    return _helpful(found, tries)


def _dropped(sizes: Sizes, kept: Sizes) -> str:
    """Return the options that are given and not kept."""
    others = asdict(kept)
    return ", ".join(f"--{key}" for key, size in asdict(sizes).items() if size != others[key])


def _helpful(found: Plan, tries: list[tuple[str, Gpus, Wish]]) -> list[WayOut]:
    ways: list[WayOut] = []
    for option, gpus, wish in tries:
        # Of larger sets, the smallest that does is enough.
        if option.startswith("--gpus") and any(way.option.startswith("--gpus") for way in ways):
            continue
        try:
            other = plan(found.model, gpus, wish)
        except SetUpImpossible:
            continue
        tokens, held = other.kv_tokens or 0, other.requests_at_once(found.context_tokens) or 0
        if other.fits and tokens > (found.kv_tokens or 0):
            ways.append(WayOut(option=option, kv_tokens=tokens, requests_at_once=held))
    return ways


def as_json(found: Plan) -> dict[str, Any]:
    """Return a plan as one JSON object; sizes in bytes, cache in tokens."""
    layout, each = found.layout, found.per_gpu
    return {
        "model": found.model.name,
        "title": found.model.title,
        "precision": found.precision,
        "gpus": None if found.gpus is None else str(found.gpus),
        "fits": found.fits,
        "starts": found.starts,
        "reasons": list(found.reasons),
        "ways_out": [
            {"option": w.option, "kv_tokens": w.kv_tokens, "requests_at_once": w.requests_at_once}
            for w in ways_out(found)
        ],
        "weights_bytes": found.weights_bytes,
        "kv_tokens": found.kv_tokens,
        "kv_tokens_per_engine": found.engine_tokens,
        "kv_bytes_per_token": found.token_bytes,
        "kv_dtype": found.wish.kv_type,
        "context_tokens": found.context_tokens,
        "concurrency": found.wish.concurrency,
        "requests_at_once": found.requests_at_once(found.context_tokens),
        "utilization": found.wish.utilization,
        "with_vision": found.wish.with_vision,
        "parallel": None
        if layout is None
        else {
            "tp": layout.tp,
            "pp": layout.pp,
            "dp": layout.dp,
            "dcp": layout.dcp,
            "ep": layout.ep,
            "replicas": layout.replicas,
            "nodes": layout.nodes,
        },
        "per_gpu": None
        if each is None
        else {
            "total_bytes": each.total,
            "usable_bytes": each.usable,
            "weights_bytes": each.weights,
            "weights_by_part": {part: round(size) for part, size in each.parts.items()},
            "overhead_bytes": each.overhead,
            "kv_bytes": each.cache,
        },
        "table": found.table,
        "sources": [*found.model.sources, found.file.source],
    }
