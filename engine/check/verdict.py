"""Judges the figures of a check: each finding with what to change, and the verdict over all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from engine.check.figures import Share
from engine.check.plan import CheckPlan
from engine.check.report import Figures, Gone, Judged, Verdict
from engine.endpoint import Endpoint
from engine.modes.sight import NOTES
from engine.profile import ModeSettings

FAILED_LIMIT = 0.05
"""Share of requests without an answer, or of answers that do not follow their schema, beyond which a run
would end over its own failure limit; the default of a pipeline."""
TOOL_LIMIT = 0.85
"""Share of right tool calls that agents can do with: they repair about one wrong call in eight. K2-Thinking
on vLLM had 87.22 % right (K2-Vendor-Verifier README, 2025-11-15)."""
MODE_LIMIT = 0.95
"""Share of replies in the mode asked for below which a mode is not what a stage says it is."""
FULL = 0.95
"""Share of the KV cache at which there is no room for another long prompt."""
LEAST_HITS = 0.5
"""Share of the common beginning that should come from the cache, once one request has made it."""
COUNTED = 1.02
"""How much more than counted here a host may count before chunks are cut too large."""

_NO_LONG = "no long request was answered"


def verdict_of(judged: Sequence[Judged]) -> Verdict:
    """Return the verdict: the worst of what was found."""
    found = {one.status for one in judged}
    if "fail" in found:
        return "not ready"
    return "ready with limits" if "limit" in found else "ready"


def judge(endpoint: Endpoint, plan: CheckPlan, figures: Figures, gone: Gone | None) -> list[Judged]:
    """Return what the figures mean, the gravest first.

    Args:
        endpoint: What was checked.
        plan: What was sent.
        figures: What came of it.
        gone: How the engine went away, if it did.
    """
    found = [
        *_alive(figures, plan, gone),
        _cache(plan, figures),
        _preemptions(plan, figures),
        *(
            _mode(mode, share, endpoint.profile.modes[mode])
            for mode, share in figures.modes.items()
        ),
        *_structured(endpoint, figures),
        *_tools(endpoint, figures),
        *_first_token(figures),
        _prefix(endpoint, figures),
        *_counting(endpoint, figures),
    ]
    order = ("fail", "limit", "unknown", "ok")
    return sorted(found, key=lambda one: order.index(one.status))


def _alive(figures: Figures, plan: CheckPlan, gone: Gone | None) -> Iterator[Judged]:
    if gone is not None:
        memory = "it ran out of memory" if gone.was_out_of_memory else "it does not answer any more"
        yield Judged(
            check="server", status="fail", says=f"during the {gone.while_sending} requests {memory}",
            change=_smaller(plan) if gone.was_out_of_memory
            else "read the engine's log, start it again, and check it with half the --concurrency",
        )  # fmt: skip
        return
    if figures.load.was_restarted:
        yield Judged(
            check="server", status="fail", says="it was restarted during the check: its counters began anew",
            change="read the engine's log; " + _smaller(plan),
        )  # fmt: skip
    num_sent, errors, which = figures.num_sent, figures.errors, "requests"
    if figures.tools is not None and figures.takes_no_tools:
        # A finding of its own: stages without tools may do well.
        refused = figures.tools.answered
        num_sent, which = num_sent - refused.num_all, "requests without tools"
        errors = tuple(one for one in errors if one not in refused.notes) or errors
    num_failed = num_sent - figures.num_answered
    says = f"{figures.num_answered:,} of {num_sent:,} {which} were answered"
    if num_failed:
        none_long = not figures.num_long_answered
        grave = none_long or num_failed / num_sent > FAILED_LIMIT
        yield Judged(
            check="requests", status="fail" if grave else "limit", says=f"{says}; {errors[0]}",
            change="mend what the host says; a run counts such requests as failed",
        )  # fmt: skip
    elif figures.num_retries:
        yield Judged(
            check="requests", status="limit",
            says=f"{says}, {figures.num_retries:,} calls were refused or lost before and sent again",
            change=f"set max_in_flight below {plan.concurrency:,} in the profile, or the `tier` of your account",
        )  # fmt: skip
    else:
        at_once = (
            "" if figures.most_at_once is None else f", up to {figures.most_at_once:,} at once"
        )
        yield Judged(check="requests", status="ok", says=f"{says}{at_once}")


def _smaller(plan: CheckPlan) -> str:
    return (
        f"less than {plan.concurrency:,} at once (max_in_flight), less than {plan.context_tokens:,} tokens of"
        " context (chunk.max_tokens), or a lower --utilization of `headrace engine serve`"
    )


def _cache(plan: CheckPlan, figures: Figures) -> Judged:
    peak, held = figures.load.peak_cache_used, figures.kv_tokens
    size = "" if held is None else f" of {held:,} tokens"
    if peak is None:
        return Judged(
            check="KV cache", status="unknown", says="its use is not reported at /metrics"
        )
    says = f"{100 * peak:.0f} %{size} in use at most"
    if peak < FULL:
        return Judged(check="KV cache", status="ok", says=says)
    return Judged(check="KV cache", status="limit", says=says, change=_fitting(plan, held))


def _preemptions(plan: CheckPlan, figures: Figures) -> Judged:
    number = figures.load.num_preemptions
    if number is None:
        return Judged(check="preemptions", status="unknown", says="not reported at /metrics")
    says = f"{number:,} requests were put back to make room for others"
    if not number:
        return Judged(check="preemptions", status="ok", says="none")
    return Judged(
        check="preemptions", status="limit", says=f"{says}: what was computed for them is lost",
        change=_fitting(plan, figures.kv_tokens),
    )  # fmt: skip


def _fitting(plan: CheckPlan, held: int | None) -> str:
    if held is None:
        return f"lower max_in_flight below {plan.concurrency:,}, or chunk.max_tokens"
    fit = max(1, held // plan.context_tokens)
    if fit >= plan.concurrency:
        return "lower max_in_flight: the cache is shared with other work"
    return f"the cache holds {fit:,} requests of {plan.context_tokens:,} tokens: set max_in_flight to {fit:,}, or cut smaller chunks"


def _mode(mode: str, share: Share, settings: ModeSettings) -> Judged:
    name, value = f"mode {mode}", share.value
    says = f"{share.num_right:,} of {share.num_all:,} replies are in it"
    if value is None:
        return Judged(
            check=name, status="fail", says="no reply came", change="see the requests above"
        )
    if value == 1:
        return Judged(check=name, status="ok", says=says)
    why = "; ".join(NOTES.get(note, note) for note in share.notes) or "they show another mode"
    return Judged(
        check=name, status="limit" if value >= MODE_LIMIT else "fail", says=f"{says}: {why}",
        change=_mode_change(mode, share, settings),
    )  # fmt: skip


def _mode_change(mode: str, share: Share, settings: ModeSettings) -> str:
    if {"leaked_thinking", "unfinished_thinking"} & set(share.notes):
        return "start vLLM with the model's --reasoning-parser (kimi_k2 for K2.5)"
    if "degenerate" in share.notes:
        return (
            "the weights or a kernel are broken: try another quantisation or version of the engine"
        )
    if settings.wire:
        instead = (
            "take modes.instant out of the profile"
            if mode == "instant"
            else f"set modes.{mode}.by to prompt"
        )
        return (
            f"the profile sends {json.dumps(dict(settings.wire))}, and the host drops it or wants another"
            f" switch: ask the host, or {instead}"
        )
    if mode == "instant":
        return (
            "switch thinking off with modes.instant.wire of the profile: K2.5 under vLLM wants"
            " chat_template_kwargs {thinking: false}, and `enable_thinking` does nothing"
        )
    return f"switch it on with modes.{mode}.wire of the profile, or set modes.{mode}.by to prompt"


def _structured(endpoint: Endpoint, figures: Figures) -> Iterator[Judged]:
    share = figures.structured
    value = share.value
    if value is None:
        return
    says = f"{share.num_right:,} of {share.num_all:,} answers follow their JSON Schema unrepaired"
    if value == 1:
        yield Judged(check="structured output", status="ok", says=says)
        return
    change = (
        "a model that keeps to the schema less often needs more repairs: choose a simpler schema"
    )
    if endpoint.profile.capabilities.structured_output:
        change = "the host does not constrain answers as the profile says (structured_output); check its version"
    yield Judged(
        check="structured output", status="limit" if value >= 1 - FAILED_LIMIT else "fail",
        says=f"{says}; {share.notes[0]}", change=change,
    )  # fmt: skip


def _tools(endpoint: Endpoint, figures: Figures) -> Iterator[Judged]:
    tools = figures.tools
    if tools is None:
        return
    if not tools.answered.num_right:
        says = f"0 of {tools.answered.num_all:,} requests that offer tools were answered"
        says = "; ".join([says, *tools.answered.notes[:1]])
        if not figures.takes_no_tools:
            yield Judged(check="tool calls", status="unknown", says=says)
            return
        yield Judged(
            check="tool calls", status="fail", says=says,
            change="start vLLM with --enable-auto-tool-choice and --tool-call-parser; or set capabilities.tools to"
            " false, and only stages with tools need another engine",
        )  # fmt: skip
        return
    calls, value = tools.calls, tools.calls.value
    says = (
        f"{calls.num_right:,} of {calls.num_all:,} calls name a declared tool and follow its schema"
    )
    if value is not None and value < 1:
        change = "use a newer engine, or a host that constrains calls"
        if not endpoint.profile.capabilities.strict_tools:
            change += "; set capabilities.strict_tools where the parser has a grammar"
        yield Judged(
            check="tool calls", status="limit" if value >= TOOL_LIMIT else "fail",
            says=f"{says}; {calls.notes[0]}", change=change,
        )  # fmt: skip
    elif value is not None:
        yield Judged(check="tool calls", status="ok", says=says)
    forced, free = tools.forced, tools.free
    cut = f"; {tools.num_cut:,} replies ran into their limit of tokens" if tools.num_cut else ""
    if forced.num_all and forced.value != 1:
        yield Judged(
            check="forced calls", status="fail",
            says=f"{forced.num_right:,} of {forced.num_all:,} replies that must call a tool do{cut}",
            change="start vLLM with --enable-auto-tool-choice and --tool-call-parser, or set"
            " capabilities.forced_calls to false",
        )  # fmt: skip
    if free.num_all and free.value != 1:
        none_can = not free.num_right and not forced.num_right
        yield Judged(
            check="free calls", status="fail" if none_can else "limit",
            says=f"{free.num_right:,} of {free.num_all:,} replies that are asked to call a tool do",
            change="start vLLM with --enable-auto-tool-choice and --tool-call-parser, or leave stages with tools to"
            " another engine" if none_can else "set limits.opening_calls in stages with tools",
        )  # fmt: skip


def _first_token(figures: Figures) -> Iterator[Judged]:
    if not figures.num_long_answered:
        yield Judged(check="first token", status="unknown", says=_NO_LONG)
        return
    if figures.first_token is None:
        yield Judged(
            check="first token", status="unknown", says="not reported: answers are not streamed"
        )
        return
    alone = "" if figures.first_alone_s is None else f"; {figures.first_alone_s:.2f} s alone"
    wait = figures.first_token
    yield Judged(
        check="first token", status="ok",
        says=f"median {wait.median:.2f} s, 95 % within {wait.p95:.2f} s{alone}",
    )  # fmt: skip


def _prefix(endpoint: Endpoint, figures: Figures) -> Judged:
    cached = figures.cached
    share, claims = cached.share, endpoint.profile.capabilities.cached_tokens
    if not cached.shared_tokens:
        says = "too few prompts to share anything" if figures.num_long_answered else _NO_LONG
        return Judged(check="prefix cache", status="unknown", says=says)
    if share is None:
        says = "cached tokens are not reported"
        if not claims:
            return Judged(check="prefix cache", status="unknown", says=says)
        return Judged(
            check="prefix cache", status="limit", says=f"{says}, though the profile says that they are",
            change="start vLLM with --enable-prompt-tokens-details, or set capabilities.cached_tokens to false",
        )  # fmt: skip
    says = f"{100 * share:.0f} % of the {cached.shared_tokens:,} tokens that prompts share came from it"
    if share >= LEAST_HITS:
        return Judged(check="prefix cache", status="ok", says=says)
    return Judged(
        check="prefix cache", status="limit", says=says,
        change="prompts are computed anew each time: switch prefix caching on, or ask all of a chunk in one stage",
    )  # fmt: skip


def _counting(endpoint: Endpoint, figures: Figures) -> Iterator[Judged]:
    share = figures.reported_prompt_share
    if not figures.num_long_answered:
        yield Judged(check="usage", status="unknown", says=_NO_LONG)
    elif share is None:
        yield Judged(
            check="usage", status="unknown", says="tokens are not reported; budgets go by estimates"
        )
    elif share > COUNTED:
        yield Judged(
            check="usage", status="limit",
            says=f"the host counts {share:.2f} times the tokens that are counted here ({endpoint.counter.name})",
            change="put the model's own vocabulary in place (docs/engines.md), or lower chunk.max_tokens by as much",
        )  # fmt: skip
    elif share < 0.5:
        yield Judged(
            check="usage", status="fail", says=f"the host counts {share:.2f} of the tokens that were sent: prompts are cut",
            change="raise the context that the host is started with, or lower context_tokens in the profile",
        )  # fmt: skip
    else:
        yield Judged(
            check="usage", status="ok", says="tokens are reported, and no more than counted here"
        )
