"""What a check found, as values and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from engine.batch.amount import Amount
from engine.check.figures import Cached, Seconds, Share, ToolShare
from engine.check.plan import CheckPlan
from engine.check.sending import Gauge
from engine.profile import Throughput
from engine.request import ModeName

Verdict = Literal["ready", "ready with limits", "not ready"]
Status = Literal["ok", "limit", "fail", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One judgement about the engine."""

    check: str
    """What was looked at, in one or two words."""
    status: Status
    """`fail`: a batch should not start; `limit`: it can, with what is said kept in mind; `unknown`: the host
    does not report it."""
    says: str
    change: str = ""
    """What to change; empty where nothing is to be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """The engine did not answer any more."""

    while_sending: str
    """Which requests were under way."""
    log_tail: str | None = None
    """The end of its log; None where it is not on this machine."""
    was_out_of_memory: bool = False
    """Whether the log says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Everything measured; None: not reported, or not asked."""

    num_sent: int
    num_answered: int
    num_long_sent: int
    """Long requests; fewer than planned where the first was refused."""
    num_long_answered: int
    """Of the long requests."""
    num_retries: int
    errors: tuple[str, ...]
    """What was said in place of answers, each once."""
    most_at_once: int | None
    prompt_tokens: int
    """Of a long prompt, as counted here."""
    reported_prompt_share: float | None
    """What the host counts of it, in parts of that."""
    load: Gauge
    kv_tokens: int | None
    """Tokens that the engine's KV cache holds, as it tells."""
    modes: Mapping[ModeName, Share]
    structured: Share
    tools: ToolShare | None
    """None where the profile says that the host takes no tools."""

    first_alone_s: float | None
    """Seconds to the first token of a long prompt with nothing beside it."""
    first_token: Seconds | None
    """The same with the others under way."""
    throughput: Throughput | None
    cached: Cached
    spent: Amount
    seconds: float

    @property
    def takes_no_tools(self) -> bool:
        """Tell whether all requests that offer tools were refused, and others were answered."""
        tools = self.tools
        return (
            tools is not None
            and tools.num_refused == tools.answered.num_all > 0
            and self.num_answered > 0
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The verdict with its reasons and figures."""

    verdict: Verdict
    judged: tuple[Judged, ...]
    plan: CheckPlan
    figures: Figures
    gone: Gone | None

    @property
    def is_ready(self) -> bool:
        """Tell whether a batch can start."""
        return self.verdict != "not ready"

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON; null stands for what the host does not report."""
        figures = self.figures
        return {
            "verdict": self.verdict,
            "ready": self.is_ready,
            "findings": [asdict(one) for one in self.judged],
            "sent": {
                "context_tokens": self.plan.context_tokens,
                "concurrency": self.plan.concurrency,
                "long_requests": figures.num_long_sent,
                "requests": figures.num_sent,
                "answered": figures.num_answered,
                "retries": figures.num_retries,
                "seed": self.plan.seed,
            },
            "errors": list(figures.errors),
            "most_at_once": figures.most_at_once,
            "prompt_tokens": figures.prompt_tokens,
            "reported_prompt_share": figures.reported_prompt_share,
            "kv_cache": {
                "peak_used": figures.load.peak_cache_used,
                "tokens": figures.kv_tokens,
                "preemptions": figures.load.num_preemptions,
                "most_waiting": figures.load.peak_waiting,
            },
            "modes": {mode: _share(share) for mode, share in figures.modes.items()},
            "structured_output": _share(figures.structured),
            "tools": None
            if figures.tools is None
            else {
                "answered": _share(figures.tools.answered),
                "calls": _share(figures.tools.calls),
                "called_when_forced": _share(figures.tools.forced),
                "called_when_asked": _share(figures.tools.free),
                "cut": figures.tools.num_cut,
            },
            "first_token": {
                "alone_s": figures.first_alone_s,
                "median_s": None if figures.first_token is None else figures.first_token.median,
                "p95_s": None if figures.first_token is None else figures.first_token.p95,
            },
            "prefix_cache": {
                "shared_tokens": figures.cached.shared_tokens,
                "cached_tokens": figures.cached.cached_tokens,
                "hit_share": figures.cached.share,
            },
            "throughput": None if figures.throughput is None else figures.throughput.model_dump(),
            "spent": asdict(figures.spent),
            "seconds": round(figures.seconds, 1),
            "gone": None if self.gone is None else asdict(self.gone),
        }


def _share(share: Share) -> dict[str, Any]:
    return {
        "right": share.num_right,
        "of": share.num_all,
        "share": share.value,
        "wrong": list(share.notes),
    }
