"""A capacity plan as lines for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_GIB = 2**30


def plan_lines(shown: Mapping[str, Any]) -> list[str]:
    """Return a plan, as `flows.capacity.with_served` gives it, as lines: the verdict first."""
    verdict = {True: "fits", False: "does not fit", None: "not known"}[shown["fits"]]
    first, *notes = shown["reasons"]
    lines = [f"{verdict:13} {first}"]
    lines += _memory(shown)
    lines += [
        f"{'at once':13} {row['requests_at_once']:,} x {row['context_tokens']:,} tokens"
        f" ({row['bytes_per_request'] / _GIB:.2f} GiB each)"
        for row in shown["table"]
        if shown["kv_tokens"]
    ]
    lines += [
        f"{'option':13} {way['option']}: {way['kv_tokens']:,} tokens of KV cache,"
        f" {_requests(way['requests_at_once'])} of {shown['context_tokens']:,} at once"
        for way in shown["ways_out"]
    ]
    if shown["served"] is not None:
        served = shown["served"]
        differs = served["planner_differs_percent"]
        beside = "" if differs is None else f"; the plan differs by {differs:+.2f} %"
        lines.append(f"{'server':13} reports {served['kv_tokens']:,} tokens{beside}")
    lines += [f"{'note':13} {text}" for text in notes]
    lines.append(f"{'source':13} {shown['sources'][-1]}")
    return lines


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count:,} requests"


def _memory(shown: Mapping[str, Any]) -> list[str]:
    lines = []
    if shown["weights_bytes"] is not None:
        size = shown["weights_bytes"]
        lines.append(f"{'weights':13} {size:,} bytes ({size / 1e9:,.1f} GB), {shown['precision']}")
    each, parallel = shown["per_gpu"], shown["parallel"]
    if each is not None:
        # What is below 0 is missing, and no size of a cache.
        cache = each["kv_bytes"] / _GIB
        kept = f"KV cache {cache:.1f}" if cache >= 0 else f"{-cache:.1f} too few for a KV cache"
        lines.append(
            f"{'each GPU':13} {each['total_bytes'] / _GIB:.1f} GiB: weights"
            f" {each['weights_bytes'] / _GIB:.1f}, vLLM itself {each['overhead_bytes'] / _GIB:.1f},"
            f" {kept}, not used"
            f" {(each['total_bytes'] - each['usable_bytes']) / _GIB:.1f}"
        )
    if shown["kv_bytes_per_token"] is not None:
        where = "" if shown["gpus"] is None else " on a GPU"
        lines.append(
            f"{'KV cache':13} {shown['kv_tokens']:,} tokens, {shown['kv_bytes_per_token']:,} bytes each{where}"
        )
    if parallel is not None and shown["gpus"] is not None:
        said = [f"{name} {size}" for name, size in parallel.items() if name != "ep" and size > 1]
        said += ["ep"] if parallel["ep"] else []
        lines.append(f"{'parallel':13} {', '.join(said) or 'one GPU'}")
    return lines
