"""Figures of speed and cost over a whole run, from its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def throughput(manifest: Mapping[str, Any], num_pages: int) -> dict[str, str]:
    """Return documents per hour and USD per 1,000 pages, as text by name.

    A page is a unit that was read: a page, a sheet or a run of frames.
    """
    counts = manifest.get("documents", {})
    num_read = counts.get("read", 0) + counts.get("partial", 0)
    seconds = float(manifest.get("seconds") or 0)
    rate = f"{num_read / seconds * 3600:,.0f}" if seconds else "n/a"
    return {
        "documents per hour": rate,
        "USD per 1,000 pages": _price(manifest, num_pages),
    }


def _price(manifest: Mapping[str, Any], num_pages: int) -> str:
    usd = manifest.get("spent", {}).get("usd")
    if usd is None:
        return "n/a (the engine's profile has no prices)"
    if num_unchanged := manifest.get("documents", {}).get("unchanged"):
        # The tables hold their pages too, and this run has not paid for them.
        return f"n/a ({num_unchanged:,} documents are unchanged from earlier runs)"
    return (
        f"{usd / num_pages * 1000:,.4g} over {num_pages:,} pages" if num_pages else "n/a (no pages)"
    )
