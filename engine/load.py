"""What a vLLM server says of its own load, from `/metrics`."""

from __future__ import annotations

from dataclasses import dataclass

_WAITING = "vllm:num_requests_waiting"
_USAGE = "vllm:kv_cache_usage_perc"
_PREEMPTIONS = "vllm:num_preemptions_total"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One reading."""

    num_waiting: float
    """Requests in the server's queue."""
    cache_used: float
    """Share of the KV cache that is in use, 0 to 1; of the fullest engine where there are several."""
    num_preemptions: float
    """Requests put back since the server began, to make room for others."""


def read_load(text: str) -> Load | None:
    """Return the load of a `/metrics` page; None where it is not vLLM's."""
    found: dict[str, list[float]] = {_WAITING: [], _USAGE: [], _PREEMPTIONS: []}
    for line in text.splitlines():
        name, _, rest = line.partition("{")
        if name in found:
            try:
                found[name].append(float(rest.rpartition("} ")[2]))
            except ValueError:
                return None
    if not all(found.values()):
        return None
    return Load(
        num_waiting=sum(found[_WAITING]),
        cache_used=max(found[_USAGE]),
        num_preemptions=sum(found[_PREEMPTIONS]),
    )
