"""What a call takes: its tokens, their price, and the time of the GPUs that serve it.

All three follow from the usage and the host's profile, so that the worst case is known before a call is
sent, and what it took is counted in the same units afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.profile import Prices, Profile
from engine.reply import Reply
from engine.request import Request, Usage
from engine.tokens import BYTES_PER_TOKEN, MOST_IMAGE_TOKENS

_MARGIN_TOKENS = 64
MARKS_TOKENS = 4
"""Tokens that an embedding model puts around each text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """What calls take of a budget."""

    tokens: int = 0
    """Prompt and answer together."""
    usd: float = 0.0
    """Price of the tokens; 0 where prices are not known."""
    gpu_seconds: float = 0.0
    """See `gpu_seconds`; 0 where it is not known."""

    def __add__(self, other: Amount) -> Amount:
        """Return the sum."""
        return Amount(
            tokens=self.tokens + other.tokens,
            usd=self.usd + other.usd,
            gpu_seconds=self.gpu_seconds + other.gpu_seconds,
        )

    def __sub__(self, other: Amount) -> Amount:
        """Return the difference."""
        return Amount(
            tokens=self.tokens - other.tokens,
            usd=self.usd - other.usd,
            gpu_seconds=self.gpu_seconds - other.gpu_seconds,
        )

    @classmethod
    def paid(cls, usage: Usage, cost_usd: float | None, gpu_seconds: float | None) -> Amount:
        """Return what was taken, 0 in a unit that is not known."""
        return cls(tokens=usage.total_tokens, usd=cost_usd or 0.0, gpu_seconds=gpu_seconds or 0.0)


def amount_of(usage: Usage, profile: Profile, price_factor: float = 1.0) -> Amount:
    """Return what a call takes, 0 in a unit that the profile knows nothing of."""
    return Amount.paid(
        usage, cost_usd(usage, profile.prices, price_factor), gpu_seconds(usage, profile)
    )


def cost_usd(usage: Usage, prices: Prices | None, price_factor: float = 1.0) -> float | None:
    """Return the price of a call's tokens in dollars; None where prices are not known."""
    if prices is None:
        return None
    return price_factor * prices.usd(
        prompt=usage.prompt_tokens,
        cached=usage.cached_tokens or 0,
        output=usage.completion_tokens,
    )


def gpu_seconds(usage: Usage, profile: Profile) -> float | None:
    """Return the seconds of GPU time that a call's tokens take; None where it is not known.

    That is the share of a full engine: the number of its GPUs times the time in which it computes so
    many prompt tokens and generates so many others at its measured throughput. Seconds in which the
    engine idles, or is less than full, are nobody's.
    """
    pace = profile.throughput
    if pace is None or profile.gpus is None:
        return None
    computed = usage.prompt_tokens - (usage.cached_tokens or 0)
    return profile.gpus * (
        computed / pace.prompt_tokens_per_s + usage.completion_tokens / pace.output_tokens_per_s
    )


def worst_usage(body: Mapping[str, Any], request: Request) -> Usage:
    """Return the most that a call can take: nothing of it cached, and the longest answer.

    The prompt is taken by its length in bytes or, where that is more, as it was counted when the
    request was made, with what later turns add.
    """
    counted = 0
    if request.prompt_tokens:
        counted = request.prompt_tokens + _MARGIN_TOKENS + _tokens(_later(body["messages"]))
    return Usage(
        prompt_tokens=max(worst_prompt_tokens(body), counted),
        completion_tokens=int(body["max_tokens"]),
    )


def worst_prompt_tokens(body: Mapping[str, Any]) -> int:
    """Return more tokens than the messages of a language in words have, by their length in bytes."""
    return _MARGIN_TOKENS + _tokens(body["messages"])


def _later(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return the messages from the first answer on; those before are the request's own."""
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            return messages[number:]
    return ()


def _tokens(messages: Sequence[Mapping[str, Any]], bytes_per_token: int = BYTES_PER_TOKEN) -> int:
    tokens = 0
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            if part["type"] == "text":
                tokens += -(-len(part["text"].encode()) // bytes_per_token)
            else:
                tokens += MOST_IMAGE_TOKENS
        tokens += -(-_num_bytes_beside(message) // bytes_per_token)
    return tokens


def _num_bytes_beside(message: Mapping[str, Any]) -> int:
    """Return the bytes of what an agent's turn has beside its content: its reasoning and its calls."""
    size = len((message.get("reasoning_content") or "").encode())
    for call in message.get("tool_calls") or ():
        function = call["function"]
        size += sum(len(text.encode()) for text in (call["id"], *function.values()))
    return size


def usage_of(reply: Reply, body: Mapping[str, Any], worst: Usage) -> Usage:
    """Return a call's usage: as the endpoint told it, or an estimate where it told none that can be.

    A token has at least one byte, so that no prompt has more of them than bytes, and no answer more
    than it was allowed or than it has bytes. Without this one wrong number would end a budget.

    Args:
        reply: What came back.
        body: What was sent.
        worst: What was set aside for it; no estimate is larger.
    """
    size = len(reply.reasoning.encode()) + len(reply.content.encode())
    told, allowed = reply.usage, worst.completion_tokens
    if told is not None and told.completion_tokens <= max(allowed, size) + _MARGIN_TOKENS:
        prompt = told.prompt_tokens
        if prompt <= worst.prompt_tokens or prompt <= _most_prompt_tokens(body):
            return told
    return Usage(
        prompt_tokens=worst.prompt_tokens,
        completion_tokens=min(allowed, 1 + size // BYTES_PER_TOKEN),
        num_guessed=1,
    )


def _most_prompt_tokens(body: Mapping[str, Any]) -> int:
    """Return the tokens of a prompt of which every byte is one; some hosts show the schema as well."""
    schema = len(str(body.get("response_format", "")).encode())
    tools = len(str(body.get("tools", "")).encode())
    margin = _MARGIN_TOKENS * (1 + len(body["messages"]))
    return margin + schema + tools + _tokens(body["messages"], 1)


def worst_usage_of_texts(texts: Sequence[str]) -> Usage:
    """Return the most that making texts into vectors can take, by their length in bytes."""
    tokens = sum(-(-len(text.encode()) // BYTES_PER_TOKEN) + MARKS_TOKENS for text in texts)
    return Usage(prompt_tokens=_MARGIN_TOKENS + tokens)


def usage_of_texts(told: Usage | None, texts: Sequence[str], worst: Usage) -> Usage:
    """Return the usage of a call for vectors: as told, or an estimate where none was told that can be."""
    most = _MARGIN_TOKENS + sum(len(text.encode()) + MARKS_TOKENS for text in texts)
    if told is not None and told.prompt_tokens <= most:
        return replace(told, embedded_tokens=told.prompt_tokens)
    tokens = worst.prompt_tokens
    return Usage(prompt_tokens=tokens, embedded_tokens=tokens, num_guessed=1)
