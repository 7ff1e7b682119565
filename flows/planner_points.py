"""What was published of Kimi K2.5's memory, beside what the planner says; docs/planner.md shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from config.model_facts import load_model
from engine.capacity import ModelFacts, Plan, Sizes, Wish, on_cpu, parse_gpus, plan
from engine.capacity.cache import GPU_BLOCK_TOKENS, bytes_per_token, tokens_in
from engine.capacity.weights import computed_by_part

_GIB = 2**30
_GB = 10**9
_RECIPE = "vLLM recipes, moonshotai/Kimi-K2.5"
_LOG = "vLLM recipes, moonshotai/Kimi-K2-Think.md (log of K2 Thinking)"
_NOVITA = "blogs.novita.ai/kimi-k2-5-vram-requirements"
_UNSLOTH = "unsloth.ai/docs/models/tutorials/kimi-k2.5"

LIMIT = 0.02
"""Error up to which a point counts as met; exact sources must be met exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One published number."""

    what: str
    unit: str
    published: float
    planned: float
    source: str
    exact: bool = False
    """Whether the source is exact, so that the planner must be too."""
    why: str = ""
    """Why the planner says something else, or what the agreement is worth."""

    @property
    def error(self) -> float:
        """Return how much the planner says more, as a share."""
        return self.planned / self.published - 1

    @property
    def is_met(self) -> bool:
        """Tell whether the planner agrees."""
        return self.planned == self.published if self.exact else abs(self.error) <= LIMIT


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One set-up of which it was published whether it works."""

    setup: str
    works: bool
    """As published."""
    planned: Plan
    source: str
    why: str = ""
    """Why the two contradict each other, or what else to know."""

    @property
    def is_met(self) -> bool:
        """Tell whether the planner agrees."""
        return self.planned.fits == self.works


def points() -> list[Point]:
    """Return the published numbers, each with the planner's."""
    k25, tiny = load_model("kimi-k2.5"), load_model("kimi-k2.5-tiny")
    logged = Wish(utilization=0.9, with_vision=False)
    return [
        *_file_points(k25),
        *_cache_points(k25, logged),
        Point(
            what="kimi-k2.5-tiny on a CPU, 1 GiB of cache",
            unit="tokens",
            published=233_008,
            planned=on_cpu(
                tiny, cache_bytes=_GIB, kv_type="bfloat16", context_tokens=16_384
            ).kv_tokens
            or 0,
            source="read from vLLM 0.32 as it serves it; tests/engine/test_capacity_served.py asks again",
            exact=True,
        ),
        Point(
            what="4xMI325X, TP4, INT4: weights on each GPU",
            unit="GB",
            published=145.2,
            planned=_per_gpu(plan(k25, parse_gpus("4xMI325X"), Wish())) / _GB,
            source="docs.vultr.com, GPU memory profiling",
            why="if it means GiB the planner says 140.7, 3 % less; what is counted is not said",
        ),
        *_minimum_points(k25),
    ]


def _file_points(k25: ModelFacts) -> list[Point]:
    assert k25.shape is not None
    why = {
        "mlx-3bit": "418 GB in the issue are 418 GiB by their size: the formula gives 418.4 GiB",
        "mxfp4": "experts with a scale of one byte for 32 numbers, everything else in bfloat16: the file is a little smaller",
    }
    return [
        Point(
            what=f"size of {file.title}",
            unit="bytes" if file.exact else "GB",
            published=file.published_bytes / (1 if file.exact else _GB),
            planned=round(sum(computed_by_part(k25.shape, file).values()))
            / (1 if file.exact else _GB),
            source=file.source,
            exact=file.exact,
            why=why.get(key, ""),
        )
        for key, file in k25.files.items()
        if file.published_bytes is not None and file.stored
    ]


def as_published() -> list[tuple[str, float, str]]:
    """Return files whose mixture of precisions is not published: title, GB and source."""
    return [
        (file.title, file.published_bytes / _GB, file.source)
        for file in load_model("kimi-k2.5").files.values()
        if file.published_bytes is not None and not file.stored
    ]


def _cache_points(k25: ModelFacts, logged: Wish) -> list[Point]:
    assert k25.shape is not None
    token_bytes = bytes_per_token(k25.shape, "bfloat16")
    gpus, divided = parse_gpus("8xH200"), replace(logged, sizes=Sizes(dcp=8))
    return [
        Point(
            what="tokens in 46.80 GiB of KV cache",
            unit="tokens",
            published=715_072,
            planned=tokens_in(46.80 * _GIB, token_bytes, GPU_BLOCK_TOKENS["mla"]),
            source=_LOG,
            exact=True,
        ),
        Point(
            what="8xH200, TP8, INT4, 0.9 of the memory, text only: KV cache",
            unit="tokens",
            published=715_072,
            planned=plan(k25, gpus, logged).kv_tokens or 0,
            source=_LOG,
            exact=True,
            why="vLLM's own memory, 8.6 GiB a GPU, is what this log leaves: it shows that the parts add up, and"
            " foretells nothing",
        ),
        Point(
            what="the same with decode context parallelism, `-dcp 8`",
            unit="tokens",
            published=5_721_088,
            planned=plan(k25, gpus, divided).kv_tokens or 0,
            source=_LOG,
            why="a block of 64 tokens more on each GPU: another start, a few MiB more",
        ),
    ]


def _minimum_points(k25: ModelFacts) -> list[Point]:
    """Return the recipe's least GPU memory against the least with which vLLM starts at 32,768 tokens."""
    why = "the recipe's is the size of the file times 1.2; the planner counts vLLM's own memory on 8 GPUs"
    found = []
    for key, published in (("int4", 714), ("mxfp4", 669), ("nvfp4", 600)):
        kind = "8xMI355X" if key == "mxfp4" else "8xB200"
        one = plan(k25, parse_gpus(kind), Wish(precision=key, context_tokens=32_768))
        assert one.per_gpu is not None
        assert one.token_bytes is not None
        each = one.per_gpu.weights + one.per_gpu.overhead + 32_768 * one.token_bytes
        found.append(
            Point(
                what=f"least memory of all GPUs, {key.upper()}",
                unit="GB",
                published=published,
                planned=8 * each / one.wish.utilization / _GB,
                source="vLLM recipes, models/moonshotai/Kimi-K2.5.yaml, vram_minimum_gb",
                why=why
                if key != "nvfp4"
                else "600 GB is 1.5 % above the file: room for neither vLLM nor cache",
            )
        )
    return found


def _per_gpu(one: Plan) -> int:
    assert one.per_gpu is not None
    return one.per_gpu.weights


def verdicts() -> list[Verdict]:
    """Return the set-ups that were published as working or not, each with the planner's verdict."""
    k25 = load_model("kimi-k2.5")

    def on(gpus: str, **asked: object) -> Plan:
        return plan(k25, parse_gpus(gpus), Wish(**asked))  # type: ignore[arg-type]

    eager = Wish(
        utilization=0.95, context_tokens=12_288, with_vision=False, overhead_bytes=3 * _GIB
    )
    short: Callable[[str, str], Plan] = lambda gpus, key: on(  # noqa: E731
        gpus, precision=key, context_tokens=32_768
    )
    return [
        Verdict(setup="8xH200, INT4", works=True, planned=on("8xH200"), source=_RECIPE),
        Verdict(
            setup="4xH200, INT4",
            works=False,
            planned=on("4xH200"),
            source="huggingface.co/gratex/Kimi-K2.6-REAM-25, of K2.6",
        ),
        Verdict(
            setup="4xH200, Unsloth's file of 630 GB",
            works=True,
            planned=short("4xH200", "gguf-full"),
            source=_UNSLOTH,
            why='"typically requires at least 4x H200": 630 GB are more than the 603 GB that four have in all',
        ),
        Verdict(
            setup="8xH100 (80 GB), INT4",
            works=False,
            planned=on("8xH100"),
            source=f"{_RECIPE}: 640 GB are below its minimum of 714 GB",
        ),
        Verdict(
            setup="8xH100 (80 GB), K2 Thinking, 12,288 tokens, without CUDA graphs, 0.95 of the memory",
            works=True,
            planned=plan(k25, parse_gpus("8xH100"), eager),
            source="github.com/jwt625/PlayGround, 20251107_kimi_k2_thinking",
            why="planned with 3 GiB for vLLM itself (`--overhead 3`), as it takes less without graphs",
        ),
        Verdict(
            setup="8xA100 (80 GB), Q4_K_M",
            works=True,
            planned=short("8xA100", "q4_k_m"),
            source=_NOVITA,
            why="with 32,768 tokens, not with 262,144",
        ),
        Verdict(
            setup="4xGB200, NVFP4, fp8 cache",
            works=True,
            planned=on("4xGB200", precision="nvfp4"),
            source=_RECIPE,
            why="out of memory while CUDA graphs were captured was reported too (vllm#39788); the planner does"
            " not see that",
        ),
        Verdict(setup="4xGB200, INT4", works=True, planned=on("4xGB200"), source=_RECIPE),
        Verdict(setup="8xMI300X, INT4", works=True, planned=on("8xMI300X"), source=_RECIPE),
        Verdict(
            setup="4xMI300X, INT4",
            works=True,
            planned=on("4xMI300X"),
            source="sgl-cookbook, Kimi-K2.5.md; of SGLang",
        ),
        Verdict(
            setup="16xH800, FP8, 32,768 tokens",
            works=True,
            planned=short("16xH800", "fp8"),
            source="vLLM recipes, moonshotai/Kimi-K2.md, of Kimi K2: TP8, PP2",
        ),
        Verdict(
            setup="8xH200, FP8",
            works=False,
            planned=on("8xH200", precision="fp8"),
            source="vLLM recipes, moonshotai/Kimi-K2.md, of Kimi K2: sixteen are its minimum",
        ),
        Verdict(
            setup="1xRTX4090, UD-TQ1_0 (240 GB)",
            works=False,
            planned=short("1xRTX4090", "ud-tq1_0"),
            source=f"{_UNSLOTH}: 256 GB of main memory beside it",
        ),
    ]
