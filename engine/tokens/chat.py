"""How many tokens a chat template puts around a request's two messages."""

from __future__ import annotations

from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.errors import EngineError
from engine.tokens.counter import TokenCounter
from engine.tokens.remote import ServerCounter

CHAT_TOKENS = 14
"""Marks of roles and ends as ChatML-like templates have them; SmolLM2's has 14, Kimi K2.5's 13."""

_MESSAGES = (
    {"role": "system", "content": "You read.\n"},
    {"role": "user", "content": "A line.\nQuestion: what is it?"},
)


def chat_tokens(counter: TokenCounter, template: Path | None) -> int:
    """Return the tokens of a prompt beside the texts of its system and its user message.

    Args:
        counter: Counts the texts; one that asks a server asks it for the whole chat too.
        template: The model's own chat template; None where it is not on this machine.
    """
    try:
        texts = sum(counter.count_many([message["content"] for message in _MESSAGES]))
        if template is not None:
            return max(0, counter.count(_rendered(template)) - texts)
        if isinstance(counter, ServerCounter):
            return max(0, counter.count_chat(_MESSAGES) - texts)
    except (OSError, jinja2.TemplateError, EngineError):
        # A plan is not refused over a handful of tokens.
        pass
    return CHAT_TOKENS


def _rendered(template: Path) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    shown = environment.from_string(template.read_text(encoding="utf-8"))
    return shown.render(messages=_MESSAGES, add_generation_prompt=True, thinking=False)
