"""An endpoint that text is masked for: what it counts and is sent, and what its answers become."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from config.errors import ConfigError
from config.policy import PolicyConfig
from connectors.masking import Masker, in_texts
from connectors.sinks.lake import Lake
from connectors.storage import STATE_PREFIX
from engine.endpoint import Endpoint
from engine.request import content_key
from engine.tokens.counter import TokenCounter
from flows.run.labels import Resolved

KEY_FILE = f"{STATE_PREFIX}/mask.json"
"""Where a sink keeps the key of its placeholders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """What becomes of texts on their way to an engine, and of answers on their way back."""

    masker: Masker
    key: str
    """Of rules and placeholders: other ones make other questions."""
    secret: str = field(repr=False)
    """What the placeholders are made with, in hexadecimal digits."""
    restore: bool

    def shown(self, text: str) -> str:
        """Return the text as it may leave."""
        return self.masker.masked(text)

    def revealed(self, output: Mapping[str, Any]) -> dict[str, Any]:
        """Return an answer with the values in place of their placeholders."""
        found = in_texts(self.masker.restored, output)
        assert isinstance(found, dict)
        return found

    def told(self, text: str | None) -> str | None:
        """Return what a model has said besides its answer, as the sink may hold it."""
        return self.masker.restored(text) if text is not None and self.restore else text

    def hidden(self, found: Resolved) -> Resolved:
        """Return an answer with placeholders again; its citations stay what the source says."""
        output = in_texts(self.shown, found.output)
        assert isinstance(output, dict)
        claims = tuple(
            replace(claim, text=self.shown(claim.text), quote=self.shown(claim.quote))
            for claim in found.claims
        )
        return replace(found, output=output, claims=claims)


class MaskedCounter(TokenCounter):
    """Counts texts as they are sent, so that a counter at the host sees none of what is masked."""

    def __init__(self, counter: TokenCounter, mask: Mask) -> None:
        self._counter, self._mask = counter, mask
        self.name = f"{counter.name}, masked {mask.key[:16]}"
        self.exact, self.weighs_exactly = counter.exact, counter.weighs_exactly

    def count(self, text: str) -> int:
        """Return the tokens of the masked text."""
        return self._counter.count(self._mask.shown(text))

    def count_many(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each masked text."""
        return self._counter.count_many([self._mask.shown(text) for text in texts])

    def weigh(self, texts: Sequence[str]) -> list[int]:
        """Return cheap counts of the masked texts."""
        return self._counter.weigh([self._mask.shown(text) for text in texts])

    def close(self) -> None:
        """Close what the counter beneath needed."""
        self._counter.close()


def masked_endpoint(endpoint: Endpoint, mask: Mask) -> Endpoint:
    """Return the endpoint with masked counts, and without images: nothing in them could be masked."""
    seen = endpoint.profile.capabilities.model_copy(update={"images": False})
    profile = endpoint.profile.model_copy(update={"capabilities": seen})
    return replace(endpoint, profile=profile, counter=MaskedCounter(endpoint.counter, mask))


def open_mask(policy: PolicyConfig | None, lake: Lake) -> Mask | None:
    """Return what a pipeline masks, with the key that the sink has, or a new one; None: nothing is masked.

    Raises:
        StorageError: The sink cannot be read.
    """
    if policy is None or policy.mask is None:
        return None
    held = lake.find_json(KEY_FILE)
    secret = held["key"] if held else secrets.token_hex(32)
    rules = policy.mask.rules()
    # Hashed, so that keys of questions tell nothing of the placeholders' own.
    key = content_key("mask", asdict(rules), content_key("mask key", secret))
    masker = Masker(rules, bytes.fromhex(secret))
    return Mask(masker=masker, key=key, secret=secret, restore=policy.mask.restore)


def claim_key(lake: Lake, mask: Mask) -> None:
    """Keep the key of the placeholders in the sink.

    Raises:
        ConfigError: Another run has just kept one of its own.
        StorageError: The sink cannot be written.
    """
    if lake.claim(KEY_FILE, {"key": mask.secret})["key"] != mask.secret:
        raise ConfigError(
            f"sink {lake.url!r} has just been given the key of its placeholders by another run; start"
            " this one again"
        )
