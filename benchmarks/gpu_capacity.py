"""Kimi K2.5's real layer shapes on a GPU: KV cache against the formula, and what a cached prefix gains.

`python -m benchmarks.gpu_capacity [--python ENGINE_PYTHON] [--layers 2] [--experts 384]` needs a machine with
vLLM and an NVIDIA GPU of 80 GB: one dense layer and one of 384 experts take 41 GB in bfloat16, with made-up
weights. It ends with 1 where the planner is more than 2 % off the tokens that vLLM reports, and says by which
part of the memory. Without a GPU it says so and ends with 0. Fewer experts fit anywhere, the CPU build included
(`--experts 8 --lengths 512 --cpu`), to try the script itself; MLA has no prefix cache there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.machine import machine, show
from config.model_facts import load_model
from engine import tiny
from engine.capacity import Gpus, ModelFacts, Plan, WeightFile, Wish, find_gpus, on_cpu, plan
from engine.client import Client
from engine.server import KV_CACHE_GIB, cache_tokens

_READY_S = 900
_REPEATS = 3
_REAL = {
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "q_lora_rank": 1536,
}
"""What config.json of moonshotai/Kimi-K2.5 has in place of the small numbers of engine.tiny."""

_AVAILABLE = re.compile(r"[Aa]vailable KV cache memory: ([\d.]+) GiB")
_LOADED = re.compile(r"[Mm]odel loading took ([\d.]+) GiB")
_GIB = 2**30

TOLERANCE = 0.02
"""How far the planner may be from what the server reports."""


def main() -> None:
    """Serve, measure, print.

    Raises:
        SystemExit: With 0 where there is no GPU, with 1 where the planner is off.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--python", default=".venv-engine/bin/python", help="Python of an environment with vLLM"
    )
    parser.add_argument("--layers", type=int, default=2, help="the first is dense")
    parser.add_argument("--experts", type=int, default=384)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32_768, 65_536, 131_072])
    parser.add_argument("--utilization", type=float, default=0.9)
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--cpu", action="store_true")
    asked = parser.parse_args()
    gpus = None if asked.cpu else find_gpus()
    if gpus is None and not asked.cpu:
        print(
            "gpu_capacity: nvidia-smi lists no GPU on this machine, so that nothing is served and nothing was"
            " measured; run it on one with a GPU of 80 GB, or try the script with"
            " --cpu --experts 8 --lengths 512"
        )
        return
    measured_on = machine()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        model = Path(folder) / "model"
        tiny.write(model)
        log = Path(folder) / "vllm.log"
        with _served(asked, model, log) as url:
            tokens = cache_tokens(url) or 0
            rows = [asyncio.run(_prefix(url, length)) for length in asked.lengths]
        text = log.read_text(encoding="utf-8", errors="replace")
    planned = planned_for(asked, gpus)
    facts = compared(planned, tokens, text)
    show("gpu_capacity", {**measured_on, "gpu": str(gpus or "none")}, facts, rows)
    if not facts["within"]:
        raise SystemExit(1)


def overrides(*, layers: int, experts: int) -> dict[str, object]:
    """Return what `--hf-overrides` makes of the small checkpoint: the real shapes of a layer."""
    return {"text_config": _REAL | {"num_hidden_layers": layers, "n_routed_experts": experts}}


def model_facts(*, layers: int, experts: int) -> ModelFacts:
    """Return Kimi K2.5 for the planner, with fewer layers, in bfloat16."""
    whole = load_model("kimi-k2.5")
    assert whole.shape is not None
    assert whole.shape.experts is not None
    fewer = whole.shape.experts.model_copy(update={"routed": experts})
    shape = whole.shape.model_copy(update={"layers": layers, "experts": fewer, "vision": None})
    made_up = WeightFile.model_validate({
        "title": "bfloat16, made up at the start",
        "stored": {"all": {"bits": 16}},
        "source": "--load-format dummy --dtype bfloat16",
    })
    return whole.model_copy(update={"shape": shape, "files": {"bf16": made_up}})


def planned_for(asked: argparse.Namespace, gpus: Gpus | None) -> Plan:
    """Return the plan of what is served: on the first of the GPUs, or on the CPU."""
    model = model_facts(layers=asked.layers, experts=asked.experts)
    context = _context(asked)
    if gpus is None:
        cache = KV_CACHE_GIB * _GIB
        return on_cpu(model, cache_bytes=cache, kv_type="bfloat16", context_tokens=context)
    wish = Wish(context_tokens=context, utilization=asked.utilization, with_vision=False)
    return plan(model, Gpus(1, gpus.gpu), wish)


def _context(asked: argparse.Namespace) -> int:
    longest: int = max(asked.lengths)
    return longest + 1024


def compared(planned: Plan, reported: int, log: str) -> dict[str, object]:
    """Return the planned tokens beside the reported ones, and each part of the memory beside vLLM's log.

    Args:
        planned: By the planner, with its own figure for what vLLM itself takes of a GPU.
        reported: Tokens of the KV cache, by the server's metrics.
        log: The server's.
    """
    assert planned.engine_tokens is not None
    assert planned.token_bytes is not None
    ratio = planned.engine_tokens / reported if reported else None
    available, loaded = (_told(pattern, log) for pattern in (_AVAILABLE, _LOADED))
    facts: dict[str, object] = {
        "within": ratio is not None and abs(ratio - 1) <= TOLERANCE,
        "kv_tokens_reported": reported,
        "kv_tokens_planned": planned.engine_tokens,
        "planned / reported": ratio,
        "kv_bytes_per_token": planned.token_bytes,
    }
    each = planned.per_gpu
    if each is None:
        return facts
    # By vLLM's own figure for the cache: whether it is the formula of a token that is off.
    by_token = None if available is None else available * _GIB / planned.token_bytes
    facts |= {
        "kv_tokens_by_memory": by_token,
        "weights_gib_planned": each.weights / _GIB,
        "weights_gib_reported": loaded,
        "kv_gib_planned": each.cache / _GIB,
        "kv_gib_reported": available,
        "overhead_gib_planned": each.overhead / _GIB,
    }
    if available is not None and loaded is not None:
        facts["overhead_gib_found"] = each.usable / _GIB - loaded - available
    return facts


def _told(pattern: re.Pattern[str], log: str) -> float | None:
    found = pattern.search(log)
    return None if found is None else float(found.group(1))


@contextmanager
def _served(asked: argparse.Namespace, model: Path, log: Path) -> Iterator[str]:
    url = f"http://127.0.0.1:{asked.port}/v1"
    flags = ["--enforce-eager"] if asked.cpu else [f"--gpu-memory-utilization={asked.utilization}"]
    variables = {
        "HF_HUB_OFFLINE": "1",
        "PYTHONSAFEPATH": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
    }
    with log.open("w", encoding="utf-8") as file:
        server = subprocess.Popen(
            [
                str(Path(asked.python).absolute()), "-m", "vllm.entrypoints.openai.api_server", f"--model={model}",
                "--served-model-name=shapes", "--load-format=dummy", "--dtype=bfloat16",
                f"--max-model-len={_context(asked)}", "--host=127.0.0.1", f"--port={asked.port}",
                "--enable-prompt-tokens-details", "--language-model-only", *flags,
                f"--hf-overrides={json.dumps(overrides(layers=asked.layers, experts=asked.experts))}",
            ],
            stdout=file, stderr=subprocess.STDOUT, cwd=model.parent, env={**os.environ, **variables},
        )  # fmt: skip
        try:
            _wait(url, server, log)
            yield url
        finally:
            server.terminate()
            server.wait()


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server answers.

    Raises:
        SystemExit: It ended, or did not answer in time.
    """
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(f"{url}/models", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(2)
    raise SystemExit(log.read_text(encoding="utf-8", errors="replace")[-4000:])


async def _prefix(url: str, length: int) -> dict[str, object]:
    """Return the seconds to the first token for a prompt of `length` tokens, new and seen before."""
    cold: list[float] = []
    warm: list[float] = []
    cached: list[int] = []
    async with Client(url, api_key=None, max_connections=1) as client:
        for number in range(_REPEATS):
            # The tokenizer of engine.tiny makes one token of each byte.
            prefix = f"{length} {number} ".ljust(length - 200, "x")
            for times, question in ((cold, "one?"), (warm, "two?")):
                reply = await client.complete(
                    {
                        "model": "shapes",
                        "messages": [{"role": "user", "content": prefix + question}],
                        "max_tokens": 1,
                        "stream": True,
                        "stream_options": {"include_usage": True},
                    },
                    prompt_tokens=length,
                )
                times.append(reply.first_token_s or 0.0)
            cached.append((reply.usage.cached_tokens or 0) if reply.usage else 0)
    return {
        "prompt_tokens": length,
        "cold_s": statistics.median(cold),
        "warm_s": statistics.median(warm),
        "gain": statistics.median(_ratios(cold, warm)),
        "cached_tokens": statistics.median(cached),
    }


def _ratios(cold: Sequence[float], warm: Sequence[float]) -> list[float]:
    return [first / second for first, second in zip(cold, warm, strict=True)]


if __name__ == "__main__":
    main()
