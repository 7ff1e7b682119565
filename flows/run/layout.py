"""Finds what keeps stages that ask about the same unit from sharing the engine's prefix cache.

Works on the bodies of calls as a run would send them, and compares them piece by piece in the order in
which an engine hashes a prompt. The first difference in front of the question is what breaks the prefix.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Kind = Literal[
    "adapter", "tools", "settings", "system", "images", "question", "material", "volatile", "cache"
]

BLOCK_TOKENS = 16
"""Tokens of a block of vLLM's KV cache: what is shorter is never found in it."""


def whole_blocks(num_tokens: int, block_tokens: int | None) -> int:
    """Return how many of a prompt's first tokens lie in full blocks; all where their size is not known."""
    return num_tokens // block_tokens * block_tokens if block_tokens else num_tokens


_BESIDE = frozenset({
    "model", "messages", "tools", "chat_template_kwargs", "max_tokens", "temperature", "top_p", "top_k",
    "min_p", "seed", "response_format", "stream", "stream_options", "stream_interval", "priority",
    "thinking_token_budget",
})  # fmt: skip
"""Fields of a body that are looked at by name, or are no part of the prompt."""

_BEHIND = frozenset({"thinking", "enable_thinking"})
"""Switches that templates act upon behind the last message: Kimi K2.5 closes `<think>` there, as Qwen
does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that breaks the shared prefix."""

    kind: Kind
    where: str
    """Key of the pipeline, such as `stages.obligations.adapter`."""
    what: str
    tokens_lost: int
    """Prompt tokens that are computed more than once: over the whole corpus and in each run, for
    `volatile` once it is edited."""
    advice: str
    stage: str = ""
    """The stage that cannot share; empty where it is not one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """The first call of one stage about one unit."""

    stage: str
    body: Mapping[str, Any]
    material: str
    """The text of the unit within the user's message."""
    material_tokens: int
    """Of the unit, images included."""


class _Piece(NamedTuple):
    kind: Kind
    text: str


def compare(sent: Sequence[Sent], corpus_tokens: int, block_tokens: int) -> list[Finding]:
    """Return what each stage cannot share with those before it.

    Args:
        sent: What the stages send about the same unit, in their order.
        corpus_tokens: Material of all such units, which each stage is shown.
        block_tokens: Prompts that share less than this share nothing, whatever their layout.
    """
    found = []
    for number, later in enumerate(sent[1:], 1):
        breaks = [_difference(earlier, later) for earlier in sent[:number]]
        # It shares with whichever stage has most in common with it.
        kind, left = min(breaks, key=lambda one: one[1])
        other = sent[breaks.index((kind, left))]
        if left * later.material_tokens < block_tokens:
            continue
        assert kind is not None
        found.append(_finding(kind, later, other, round(left * corpus_tokens)))
    return found


def _difference(first: Sent, second: Sent) -> tuple[Kind | None, float]:
    """Return what differs first in front of the question, and the share of the unit behind it."""
    for one, other in zip(_pieces(first), _pieces(second), strict=True):
        if one == other:
            continue
        if other.kind != "material":
            return other.kind, 1.0
        shared = _common(one.text, other.text)
        in_front = other.text.removesuffix(second.material) or one.text.removesuffix(first.material)
        if in_front:
            return "question", 1.0
        return "material", 1.0 - shared / max(1, len(other.text))
    return None, 0.0


def _pieces(sent: Sent) -> list[_Piece]:
    """Return what an engine hashes in front of the question, in its order."""
    body, messages = sent.body, sent.body["messages"]
    user = messages[-1]["content"]
    parts = [{"type": "text", "text": user}] if isinstance(user, str) else user
    images = [part for part in parts if part["type"] != "text"]
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    at = text.find(sent.material)
    return [
        # vLLM hashes the adapter into every block, and other hosts keep a cache per model.
        _Piece("adapter", str(body["model"])),
        _Piece("tools", json.dumps(body.get("tools"), sort_keys=True)),
        _Piece("settings", json.dumps(_settings(body), sort_keys=True)),
        _Piece("system", json.dumps(messages[:-1], sort_keys=True)),
        _Piece("images", _hash(images)),
        _Piece("material", text if at < 0 else text[: at + len(sent.material)]),
    ]


def _settings(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that may change what stands in front of the messages."""
    template = body.get("chat_template_kwargs") or {}
    beside = {name: value for name, value in body.items() if name not in _BESIDE}
    return {name: v for name, v in {**beside, **template}.items() if name not in _BEHIND}


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _common(first: str, second: str) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))


_SAID: Mapping[Kind, tuple[str, str, str]] = {
    "adapter": (
        "adapter",
        "asks {model!r}, and {other} asks {other_model!r}: an engine keeps a cache for each adapter",
        "ask the stages that share a chunk of one model, or accept that it is computed twice",
    ),
    "tools": (
        "tools",
        "other tools than {other}, and templates put them in front of everything",
        "give both stages the same tools in the same order",
    ),
    "settings": (
        "mode",
        "its mode sends other template settings than that of {other}, which may stand in front",
        "give both stages the same mode, or take the setting out of the profile's `wire`",
    ),
    "system": (
        "shared",
        "another system text than {other}",
        "move what differs behind the chunk, into the stage's prompt",
    ),
    "images": (
        "require",
        "other images than {other}, or in another order",
        "show both stages the same images in the same order",
    ),
    "question": (
        "prompt",
        "text in front of the chunk that {other} has not",
        "put it behind the chunk, into the stage's prompt",
    ),
    "material": (
        "over",
        "shows the chunk in other words than {other}",
        "let both stages be asked about the same text",
    ),
}


def _finding(kind: Kind, later: Sent, other: Sent, tokens: int) -> Finding:
    key, what, advice = _SAID[kind]
    said = what.format(
        other=other.stage, model=later.body["model"], other_model=other.body["model"]
    )
    where = key if key == "shared" else f"stages.{later.stage}.{key}"
    return Finding(
        kind=kind,
        where=where,
        what=f"stage {later.stage}: {said}",
        tokens_lost=tokens,
        advice=advice,
        stage=later.stage,
    )


_VOLATILE: Sequence[tuple[str, re.Pattern[str]]] = (
    (
        "a UUID",
        re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.I),
    ),
    ("a time", re.compile(r"\b(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?\b")),
    (
        "a date",
        re.compile(
            r"\b(?:\d{4}-\d{2}-\d{2}|\d{1,2}[./]\d{1,2}[./]\d{4}"
            r"|\d{1,2}\.? (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]* \d{4}"
            r"|(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]* \d{1,2}, \d{4})\b"
        ),
    ),
    ("a hexadecimal id", re.compile(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{8,}\b", re.I)),
    (
        "a counter",
        re.compile(
            r"\b(?:run|batch|job|build|attempt|iteration|request|session)[ _#:-]*\d+\b", re.I
        ),
    ),
)


def volatile(
    shared: Mapping[str, str], num_tokens: int, instructions_tokens: int, block_tokens: int
) -> Iterator[Finding]:
    """Yield texts in front of every chunk that look as if they were edited from run to run.

    Args:
        shared: The pipeline's shared sub-prompts.
        num_tokens: Prompt tokens of all stages over the corpus: what an edit makes asked anew.
        instructions_tokens: Of all that stands in front of the chunk.
        block_tokens: Instructions shorter than this are never shared.
    """
    if instructions_tokens < block_tokens:
        return
    for name, text in shared.items():
        for what, pattern in _VOLATILE:
            if met := pattern.search(text):
                yield Finding(
                    kind="volatile",
                    where=f"shared.{name}",
                    what=f"{what}, {met.group()!r}, stands in front of every chunk: the same for a whole"
                    " run, but whoever edits it has every question asked anew",
                    tokens_lost=num_tokens,
                    advice="leave it out, or put it into the prompt of the stage that needs it",
                )
                break


def too_large(
    chunks: Sequence[int], corpus_tokens: int, *, room: int | None, num_stages: int
) -> Finding | None:
    """Return what is to be said of chunks that the engine's KV cache cannot hold; None: nothing.

    Args:
        chunks: Tokens of the chunks of the sample.
        corpus_tokens: Tokens of all chunks.
        room: Tokens that the KV cache holds beside the instructions; None where it does not tell.
        num_stages: Stages that ask about each chunk.
    """
    if room is None or num_stages < 2:
        return None
    over = [tokens for tokens in chunks if tokens > room]
    if not over:
        return None
    share = sum(over) / sum(chunks)
    return Finding(
        kind="cache",
        where="chunk.max_tokens",
        what=f"a chunk has {max(over):,} tokens, and the engine's KV cache holds {max(0, room):,} beside"
        " the instructions: it is computed anew for each stage",
        tokens_lost=round(share * corpus_tokens * (num_stages - 1)),
        advice=f"set chunk.max_tokens to at most {max(64, room // 2):,}, so that two chunks fit",
    )
