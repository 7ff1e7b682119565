"""How reports and the terminal word counts, places, times and verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from connectors.document import Span, clock

if TYPE_CHECKING:
    from flows.run.approvals import Waiting

_VERDICTS = {
    "complete": "Complete",
    "over_failure_limit": "Complete, but over the failure limit",
    "budget_reached": "Stopped by its budget",
    "awaiting_approval": "Waiting for a person's approval",
    "awaiting_batch": "Waiting for the host's batches",
    "incomplete": "Incomplete",
}

_MOST_NAMES = 5

_CLAIM_VERDICTS = {
    "verified": "quote verified",
    "not_found": "quote not found in the source",
    "unsourced": "no source given",
}


def claim_verdict(name: str) -> str:
    """Return what the check of a cited sentence found, in a reader's words."""
    return _CLAIM_VERDICTS.get(name, name)


def share(part: int | None, whole: int) -> str:
    """Return a part of a whole in percent; in words where nobody told it, and a dash of nothing."""
    return "not reported" if part is None else f"{part / whole:.0%}" if whole else "-"


def rests_on(num_answered: int | None, num_inputs: int | None, noun: str) -> str:
    """Return on how many inputs an answer rests: `Rests on 97 of 100 documents`; empty if unknown."""
    if num_answered is None or num_inputs is None:
        return ""
    return f"Rests on {num_answered:,} of {counted(num_inputs, noun)}"


def shown(value: object) -> str:
    """Return an output value as text; lists and objects in one line."""
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    if isinstance(value, dict):
        return "; ".join(f"{key}: {shown(item)}" for key, item in value.items())
    if isinstance(value, Decimal):
        text = f"{value:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return str(value)


def is_number(value: object) -> bool:
    """Tell whether a value is a number, to be set flush right."""
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def verdict(name: str) -> str:
    """Return a verdict in a reader's words."""
    return _VERDICTS.get(name, name)


def counted(number: int, noun: str) -> str:
    """Return a count with its noun, in the plural but for one: `1 chunk`, `1,200 chunks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


_WAITING = {
    "awaiting_approval": "waiting for approval",
    "awaiting_batch": "waiting for a batch",
}
"""What is `over_budget` by its outcome, and waits for something else, by error class."""

_SKIPPED = {
    "upstream_over_budget": "waiting for an earlier stage",
    "refused": "refused by a person",
}


def outcome_word(outcome: str, error_class: str | None) -> str:
    """Return how a request ended, in a reader's words: what waits for a person or a batch is not over budget."""
    return _WAITING.get(error_class or "", outcome) if outcome == "over_budget" else outcome


def outcome_words(stage: Mapping[str, Any]) -> dict[str, int]:
    """Return the records of a stage's entry in the manifest by `outcome_word`."""
    # Manifests of before there were words for it do not tell what records wait for.
    waiting: Mapping[str, int] = stage.get("waiting") or {}
    found: Counter[str] = Counter()
    for outcome, count in stage.get("outcomes", {}).items():
        if outcome != "over_budget" or not waiting:
            found[outcome] += count
            continue
        for error_class, number in waiting.items():
            found[outcome_word(outcome, error_class)] += number
    return dict(found)


def failure_words(failure: Mapping[str, Any]) -> str:
    """Return how requests of a manifest's failure ended: by outcome and class, or what they wait for."""
    outcome, error_class = failure["outcome"], failure["error_class"]
    return outcome_word(outcome, error_class) if waits(failure) else f"{outcome} ({error_class})"


def waits(failure: Mapping[str, Any]) -> bool:
    """Tell whether requests of a manifest's failure wait for a person or a batch, and not for a budget."""
    return failure["outcome"] == "over_budget" and failure["error_class"] in _WAITING


def skip_word(error_class: str) -> str:
    """Return why something was not asked, in a reader's words."""
    return _SKIPPED.get(error_class, error_class.replace("_", " "))


def batch_story(batch: Mapping[str, Any]) -> str:
    """Return how far one of the host's batches is that a run waits for."""
    since = f" since {batch['since']}" if batch["since"] else ""
    expires = f", expires {batch['expires']}" if batch["expires"] else ""
    return (
        f"{batch['status']}{since}, {batch['answered']:,} of {counted(batch['lines'], 'request')} of"
        f" stage {batch['stage']} answered{expires}"
    )


def waiting_words(waiting: Waiting | None) -> str:
    """Return what a stage is about to ask, in words."""
    if waiting is None:
        return "its requests are still being counted"
    about = f" about {counted(waiting.documents, 'document')}" if waiting.documents else ""
    tokens = f"{waiting.prompt_tokens:,} prompt tokens, answers up to {waiting.max_output_tokens:,}"
    price = "" if waiting.max_usd is None else f", first calls at most {waiting.max_usd:.4f} USD"
    return f"{counted(waiting.requests, 'request')}{about}, {tokens}{price}"


def shown_arguments(arguments: str) -> str:
    """Return arguments as a person can trust what is seen: what a terminal would obey or hide is written out."""
    return "".join(
        char if char == "\n" or char.isprintable() else char.encode("unicode_escape").decode()
        for char in arguments
    )


def in_one_line(text: str) -> str:
    """Return text in one line, with what a terminal would obey or hide written out."""
    return " ".join(shown_arguments(text).split())


def approval_story(one: Mapping[str, Any]) -> str:
    """Return one line on what a person was asked to agree to, and what was decided."""
    what = f"stage {one['stage']}"
    if one["tool"] is not None:
        what += f", {counted(one['count'], 'call')} of {one['tool']}"
    if one["decision"] == "waiting":
        return f"{what}: waiting since {one['at']}"
    reason = f": {one['reason']}" if one["reason"] else ""
    return f"{what}: {one['decision']} by {one['by']} at {one['at']}{reason}"


def report_place(manifest: Mapping[str, Any] | None) -> str | None:
    """Return where a run's report lies; None where it has none yet."""
    return str(manifest["report"]["html"]) if manifest else None


def batch_words(batches: Sequence[Mapping[str, Any]]) -> str:
    """Return how many batches a run waits for, and which."""
    if not batches:
        return "requests are to go into a batch"
    names = ", ".join(str(batch["batch_id"] or "one not begun") for batch in batches[:_MOST_NAMES])
    more = f" and {len(batches) - _MOST_NAMES} more" if len(batches) > _MOST_NAMES else ""
    lines = sum(batch["lines"] for batch in batches)
    return f"{counted(lines, 'request')} in batches at the host: {names}{more}"


def mode_story(stage: Mapping[str, Any]) -> dict[str, str]:
    """Return what a stage's entry in the manifest tells of its modes, by a short name.

    Always the modes that were observed; the rest only where it happened.
    """
    seen = {name: count for name, count in stage["modes_observed"].items() if count}
    story = {"observed": _tally(seen) or "no answer"}
    if stage["mode_mismatches"]:
        story["not as asked"] = counted(stage["mode_mismatches"], "answer")
    if stage["escalated"]:
        share = stage["escalated"] / stage["inputs"]
        story["escalated"] = f"{stage['escalated']:,} of {stage['inputs']:,} ({share:.0%})"
    if stage["by_fallback"]:
        story["by a fallback"] = counted(stage["by_fallback"], "answer")
    if stage["mode_notes"]:
        story["notes"] = _tally(stage["mode_notes"])
    if stage["usage_guessed"]:
        story["tokens estimated"] = counted(stage["usage_guessed"], "call")
    return story


def _tally(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())


def place(span: Span) -> str:
    """Return where a span is: page, sheet and cells, time or characters."""
    if span.page is not None:
        return f"page {span.page}"
    if span.sheet is not None:
        return f"{span.sheet or 'table'} {span.cells or ''}".strip()
    if span.t0 is not None:
        return clock(span.t0)
    if span.char_start is not None:
        return f"characters {span.char_start:,}-{span.char_end or span.char_start:,}"
    return "whole document"


def unit_name(spans: Sequence[Span]) -> str:
    """Return what a chunk covers, from the spans of its segments in order."""
    if not spans:
        return "nothing"
    first, last = spans[0], spans[-1]
    if first.page is not None:
        same = first.page == last.page
        return f"page {first.page}" if same else f"pages {first.page}-{last.page}"
    if first.sheet is not None:
        name = f"sheet {first.sheet}" if first.sheet else "table"
        return f"{name} {first.cells or ''}".strip()
    if first.t0 is not None:
        return f"{clock(first.t0)}-{clock(last.t1 if last.t1 is not None else first.t0)}"
    return f"characters {first.char_start}-{last.char_end}"


def duration(seconds: float) -> str:
    """Return a span of time in at most two units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def compact(count: float) -> str:
    """Return a count in at most four figures, such as `12.3 k`."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if count >= limit:
            scale = 1e3 if unit == "k" else limit
            return f"{count / scale:.1f} {unit}"
    return f"{count:,.0f}"


def cached_share(cached_tokens: int | None, prompt_tokens: int) -> str:
    """Return which share of the prompt tokens came from the prefix cache, in words."""
    told = share(cached_tokens, prompt_tokens)
    return "cached not reported" if cached_tokens is None else f"{told} cached"


def route_story(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return one line per route that a pipeline's policy allows: what went there, who answered, and why it may."""
    if manifest.get("config", {}).get("policy") is None:
        return {}
    return {f"route {one['route']}": _route(one) for one in manifest.get("routes", ())}


def _route(one: Mapping[str, Any]) -> str:
    told = [
        f"{who['engine']}{' at ' + who['host'] if who['host'] else ''} answered"
        f" {counted(who['requests'], 'request')}"
        for who in one["answered_by"]
        if who["engine"]
    ]
    return "; ".join([counted(one["documents"], "document"), *told, f"allowed: {one['why']}"])
