"""The figures of a check, from how its calls ended; what a host does not tell is None, never 0."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from engine.check.sending import Answered
from engine.modes.agent.calls import check, leaked_calls, named_calls
from engine.modes.dialogue import judge
from engine.modes.sight import look
from engine.profile import Throughput
from engine.request import ModeName

BAD_NOTES = frozenset({
    "leaked_thinking", "unfinished_thinking", "leaked_tool_call", "answer_in_reasoning",
    "thought_in_instant", "no_thinking", "degenerate", "empty",
})  # fmt: skip
"""What a run repairs or marks, and what costs tokens or answers all the same."""

_MAX_NOTE = 160
"""Most characters of what a finding quotes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How many of how many were right."""

    num_right: int
    num_all: int
    notes: tuple[str, ...] = ()
    """What was wrong, each kind once."""

    @property
    def value(self) -> float | None:
        """Return the share, 0 to 1; None where there were none."""
        return self.num_right / self.num_all if self.num_all else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Some durations, in seconds."""

    median: float
    p95: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """Tokens of long prompts that came from the prefix cache."""

    shared_tokens: int
    """Tokens that could have: the common beginning, but for the first request."""
    cached_tokens: int | None
    """Tokens that did; None: the host does not say."""

    @property
    def share(self) -> float | None:
        """Return the part that was hit, 0 to 1."""
        if self.cached_tokens is None or not self.shared_tokens:
            return None
        return min(1.0, self.cached_tokens / self.shared_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolShare:
    """How tool calls came."""

    answered: Share
    """Requests that offer tools and were answered at all, with or without a call; notes: what was said in place."""
    calls: Share
    """Calls by a declared name with arguments that follow its schema, of all calls."""
    forced: Share
    """Replies with a call, of those that had to have one."""
    free: Share
    """Replies with a call, of those that were asked for one."""
    num_refused: int
    """Requests that the endpoint said no to."""
    num_cut: int
    """Replies that ran into their limit of tokens, within a call or before it."""


def mode_share(answers: Sequence[Answered], mode: ModeName) -> Share:
    """Return how many replies show the mode that was asked for, and nothing that had to be mended."""
    notes: dict[str, None] = {}
    num_right = num_all = 0
    for one in answers:
        if one.reply is None or one.asked.turn.mode != mode or one.asked.turn.tools:
            continue
        num_all += 1
        sight = look(one.reply, mode)
        wrong = [name for name in sight.notes if name in BAD_NOTES]
        num_right += sight.mode == mode and not wrong
        notes |= dict.fromkeys(wrong)
    return Share(num_right=num_right, num_all=num_all, notes=tuple(notes))


def structured_share(answers: Sequence[Answered]) -> Share:
    """Return how many answers follow their schema as they came, before any repair."""
    notes: dict[str, None] = {}
    num_right = num_all = 0
    for one in answers:
        if one.reply is None:
            continue
        num_all += 1
        _, _, error = judge(one.asked.request, look(one.reply, one.asked.turn.mode))
        num_right += error is None
        if error is not None:
            notes[_short(error)] = None
    return Share(num_right=num_right, num_all=num_all, notes=tuple(notes))


def tool_share(answers: Sequence[Answered]) -> ToolShare:
    """Return how many tool calls came, and how many of them could be run.

    A call counts as right by what the K2 vendor verifier asks: a declared name, and arguments that follow the
    tool's JSON Schema (MoonshotAI/K2-Vendor-Verifier, tool_calls_eval.py).
    """
    notes: dict[str, None] = {}
    notes_of_none: dict[str, None] = {}
    counts = {True: [0, 0], False: [0, 0]}
    num_right = num_calls = num_cut = 0
    for one in answers:
        if one.reply is None:
            notes_of_none[one.error or "no answer came"] = None
            continue
        called = one.reply.tool_calls
        num_cut += one.reply.finish_reason == "length"
        leaked = () if called else leaked_calls(one.reply.content)
        if leaked:
            notes["marks of a tool call stood in the content: the host has no tool parser"] = None
        count = counts[one.asked.turn.must_call]
        count[0] += bool(called)
        count[1] += 1
        specs = {spec.name: spec for spec in one.asked.turn.tools}
        for call in named_calls(called, 0):
            looked = check(call, specs)
            num_calls += 1
            num_right += looked.arguments is not None
            if looked.failure is not None:
                notes[_short(f"{looked.failure}: {looked.error}")] = None
        num_calls += len(leaked)
    forced, free = counts[True], counts[False]
    return ToolShare(
        answered=Share(
            num_right=sum(one.reply is not None for one in answers),
            num_all=len(answers),
            notes=tuple(notes_of_none),
        ),
        calls=Share(num_right=num_right, num_all=num_calls, notes=tuple(notes)),
        forced=Share(num_right=forced[0], num_all=forced[1]),
        free=Share(num_right=free[0], num_all=free[1]),
        num_refused=sum(one.is_refused for one in answers),
        num_cut=num_cut,
    )


def _short(text: str) -> str:
    """Return a line of what may be long and full of blanks."""
    return " ".join(text.split())[:_MAX_NOTE]


def first_token(answers: Sequence[Answered]) -> Seconds | None:
    """Return the seconds until the first token; None where answers are not streamed."""
    waits = sorted(
        one.reply.first_token_s
        for one in answers
        if one.reply is not None and one.reply.first_token_s is not None
    )
    if not waits:
        return None
    return Seconds(median=statistics.median(waits), p95=waits[-(-95 * len(waits) // 100) - 1])


def most_at_once(answers: Sequence[Answered]) -> int | None:
    """Return how many calls were under way together at most; None where answers are not streamed."""
    edges: list[tuple[float, int]] = []
    for one in answers:
        span = one.span
        if span is not None:
            edges += [(span[0], 1), (span[1], -1)]
    if not edges:
        return None
    most = level = 0
    for _, step in sorted(edges):
        level += step
        most = max(most, level)
    return most


def cached_of(answers: Sequence[Answered], shared_tokens: int, block_tokens: int | None) -> Cached:
    """Return what of the common beginning came from the cache; the first of the answers made it.

    Args:
        answers: Those to long requests, the first of them sent alone.
        shared_tokens: Tokens of the beginning.
        block_tokens: What the cache keeps as one, where the engine tells.
    """
    replies = [one.reply for one in answers[1:] if one.reply is not None]
    told = [
        reply.usage.cached_tokens
        for reply in replies
        if reply.usage is not None and not reply.usage.num_guessed
    ]
    known = [count for count in told if count is not None]
    block = block_tokens or 1
    return Cached(
        shared_tokens=len(replies) * (shared_tokens // block * block),
        cached_tokens=sum(known) if known and len(known) == len(replies) else None,
    )


def throughput_of(
    long: Sequence[Answered], long_s: float, short: Sequence[Answered], short_s: float
) -> Throughput | None:
    """Return the tokens a second that the engine reached, in the sense of a profile's `throughput`.

    Short requests give the pace of generating. Long ones give the pace of reading: their time, less that in
    which their answers are generated at that pace; half of it at least, where the two do not come apart.

    Args:
        long: Long requests that were under way together.
        long_s: Seconds that they took in all.
        short: Short requests that were under way together.
        short_s: Seconds that they took in all.

    Returns:
        None where usage was not reported.
    """
    read, written = _tokens(long)
    _, short_written = _tokens(short)
    if not (read and short_written and long_s > 0 and short_s > 0):
        return None
    output = short_written / short_s
    reading_s = max(long_s - written / output, long_s / 2)
    return Throughput(
        prompt_tokens_per_s=_rounded(read / reading_s), output_tokens_per_s=_rounded(output)
    )


def _tokens(answers: Sequence[Answered]) -> tuple[int, int]:
    """Return the prompt tokens that were computed and those generated; 0 where they are not reported."""
    read = written = 0
    for one in answers:
        usage = one.reply.usage if one.reply is not None else None
        if usage is not None and not usage.num_guessed:
            read += usage.prompt_tokens - (usage.cached_tokens or 0)
            written += usage.completion_tokens
    return read, written


def _rounded(value: float) -> float:
    """Return a pace with three digits, which is more than a minute's measurement is good for."""
    return float(f"{value:.3g}")


def reported_prompt_share(answers: Sequence[Answered], counted_tokens: int) -> float | None:
    """Return the prompt tokens that the host reports, of those counted here; None: not reported."""
    told = [
        one.reply.usage.prompt_tokens
        for one in answers
        if one.reply is not None and one.reply.usage is not None and not one.reply.usage.num_guessed
    ]
    return statistics.median(told) / counted_tokens if told else None
