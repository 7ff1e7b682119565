"""A check of an engine as lines for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def check_lines(shown: Mapping[str, Any]) -> list[str]:
    """Return a check, as `flows.engine_check.Checked.as_json` gives it, as sentences: the verdict first."""
    lines = [f"{shown['verdict'].upper()}: {shown['model']} at {shown['address']}"]
    width = max(len(one["check"]) for one in shown["findings"]) + 2
    for one in shown["findings"]:
        status = "?" if one["status"] == "unknown" else one["status"]
        lines.append(f"{status:7}{one['check']:<{width}}{one['says']}")
        if one["change"]:
            lines.append(f"{'':{7 + width}}change: {one['change']}")
    planner = shown["planner"]
    if planner is not None:
        lines.append(
            f"planner: {planner['kv_tokens']:,} tokens of KV cache, the server reports"
            f" {planner['served_kv_tokens']:,} ({planner['planner_differs_percent']:+.2f} %)"
        )
    return [*lines, _spent(shown)]


def copied_lines(shown: Mapping[str, Any]) -> list[str]:
    """Return what is to be copied or read as it is: the end of the engine's log, and its pace."""
    lines = []
    if shown["gone"] is not None and shown["gone"]["log_tail"]:
        lines += ["its log ends with:", shown["gone"]["log_tail"]]
    return [*lines, _throughput(shown["throughput"])]


def _spent(shown: Mapping[str, Any]) -> str:
    sent, spent = shown["sent"], shown["spent"]
    usd = f", {spent['usd']:.4f} USD" if spent["usd"] else ""
    return (
        f"sent: {sent['requests']:,} requests, {sent['long_requests']:,} of them for {sent['context_tokens']:,}"
        f" tokens, {sent['concurrency']:,} at once; {spent['tokens']:,} tokens{usd}, {shown['seconds']:,.0f} s"
        f" (--seed {sent['seed']})"
    )


def _throughput(pace: Mapping[str, float] | None) -> str:
    """Return the line that a profile takes."""
    if pace is None:
        return "throughput: not reported"
    told = ", ".join(f"{name}: {value:g}" for name, value in pace.items())
    return f"throughput: {{{told}}}"
