"""Kimi K2.5's real layer shapes on a GPU: KV cache against the formula, and what a cached prefix gains.

`python -m benchmarks.gpu_capacity --python ENGINE_PYTHON [--layers 2] [--experts 384]` needs a machine with
vLLM and a GPU of 80 GB: one dense layer and one of 384 experts take 41 GB in bfloat16, with made-up
weights. Fewer experts fit anywhere, the CPU build included (`--experts 8 --lengths 512 --cpu`), to try the
script itself; MLA has no prefix cache there.
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
from engine.capacity.cache import CPU_BLOCK_TOKENS, GPU_BLOCK_TOKENS, bytes_per_token, tokens_in
from engine.client import Client
from engine.server import cache_tokens

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


def main() -> None:
    """Serve, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="Python of an environment with vLLM")
    parser.add_argument("--layers", type=int, default=2, help="the first is dense")
    parser.add_argument("--experts", type=int, default=384)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32_768, 65_536, 131_072])
    parser.add_argument("--utilization", type=float, default=0.9)
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--cpu", action="store_true")
    asked = parser.parse_args()
    measured_on = machine()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        model = Path(folder) / "model"
        write_checkpoint(model, layers=asked.layers, experts=asked.experts)
        log = Path(folder) / "vllm.log"
        with _served(asked, model, log) as url:
            tokens = cache_tokens(url) or 0
            rows = [asyncio.run(_prefix(url, length)) for length in asked.lengths]
        text = log.read_text(encoding="utf-8", errors="replace")
    show("gpu_capacity", measured_on, _capacity(asked, tokens, text), rows)


def write_checkpoint(model: Path, *, layers: int, experts: int) -> None:
    """Write the small checkpoint with the real shapes of a layer."""
    tiny.write(model)
    file = model / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["text_config"] |= _REAL | {"num_hidden_layers": layers, "n_routed_experts": experts}
    file.write_text(json.dumps(config), encoding="utf-8")


@contextmanager
def _served(asked: argparse.Namespace, model: Path, log: Path) -> Iterator[str]:
    url = f"http://127.0.0.1:{asked.port}/v1"
    context = max(asked.lengths) + 1024
    flags = ["--enforce-eager"] if asked.cpu else [f"--gpu-memory-utilization={asked.utilization}"]
    variables = {"HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("w", encoding="utf-8") as file:
        server = subprocess.Popen(
            [
                str(Path(asked.python).absolute()), "-m", "vllm.entrypoints.openai.api_server", f"--model={model}",
                "--served-model-name=shapes", "--load-format=dummy", "--dtype=bfloat16",
                f"--max-model-len={context}", "--host=127.0.0.1", f"--port={asked.port}",
                "--enable-prompt-tokens-details", "--language-model-only", *flags,
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


def _capacity(asked: argparse.Namespace, tokens: int, log: str) -> dict[str, object]:
    """Return the reported capacity beside the planner's, from the memory that vLLM says it gave."""
    shape = load_model("kimi-k2.5").shape
    assert shape is not None
    shape = shape.model_copy(update={"layers": asked.layers})
    per_token = bytes_per_token(shape, "bfloat16")
    found = _AVAILABLE.search(log)
    given = 1.0 if asked.cpu else float(found.group(1)) if found else None
    blocks = CPU_BLOCK_TOKENS if asked.cpu else GPU_BLOCK_TOKENS
    expected = None if given is None else tokens_in(given * 2**30, per_token, blocks["mla"])
    return {
        "layers": asked.layers,
        "experts": asked.experts,
        "kv_bytes_per_token": per_token,
        "kv_gib": given,
        "kv_tokens_reported": tokens,
        "kv_tokens_by_formula": expected,
        "reported / formula": None if not expected else tokens / expected,
    }


if __name__ == "__main__":
    main()
