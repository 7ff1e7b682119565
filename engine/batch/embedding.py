"""Vectors of texts: who gives them, found out before a run begins, and how a tool's texts get there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
import orjson

from engine.batch.amount import MARKS_TOKENS
from engine.batch.call import Account, Caller, RetryRule
from engine.batch.route import Line
from engine.embeddings import Vectors, read_vectors
from engine.endpoint import Endpoint
from engine.errors import (
    EngineMisconfigured,
    EngineUnavailable,
    RequestRejected,
    RequestTooLong,
    VectorsUnavailable,
)
from engine.request import Request
from engine.status import authorization, map_errors, raise_for_status
from engine.tokens import TokenCounter

logger = logging.getLogger(__name__)

_LEAST_TOKENS = 128
"""A text of no more is not cut where a host finds it too long. Small models take 256, and a host may count
twice what we do."""
_PROBE = "water"
_PROBE_RULE = RetryRule(max_attempts=4, max_delay_s=6.0)
"""A Retry-After of a minute is followed, after which a tier's minute has passed; no longer one: someone waits."""
_PROBE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedder:
    """An endpoint that has shown that it gives vectors."""

    line: Line
    num_dims: int
    """Numbers of each vector."""


def num_dims(endpoint: Endpoint, retry: RetryRule = _PROBE_RULE) -> int:
    """Return how many numbers the endpoint's vectors have, by asking for that of one word.

    Raises:
        EngineMisconfigured: It gives none.
        EngineUnavailable: It does not answer.
    """
    attempt = 0
    while True:
        attempt += 1
        try:
            return len(_asked_for_one(endpoint).vectors[0])
        except EngineUnavailable as exc:
            if attempt == retry.max_attempts:
                raise EngineUnavailable(
                    f"search.vectors: engine {endpoint.profile.name!r}: {exc}",
                    retry_after_s=exc.retry_after_s,
                    status=exc.status,
                ) from exc
            delay_s = retry.delay_s(attempt, exc.retry_after_s)
            logger.warning(
                "search.vectors: engine %r is asked again in %.0f s: %s",
                endpoint.profile.name,
                delay_s,
                exc,
            )
            time.sleep(delay_s)
        except (EngineMisconfigured, RequestRejected) as exc:
            raise EngineMisconfigured(
                f"search.vectors: engine {endpoint.profile.name!r} gives no vectors with model"
                f" {endpoint.model!r}: {exc}; name one that serves /v1/embeddings, or drop search.vectors"
            ) from exc


def _asked_for_one(endpoint: Endpoint) -> Vectors:
    url = endpoint.base_url
    with map_errors(url):
        answer = httpx.post(
            f"{url}/embeddings",
            json=_body([_PROBE], endpoint),
            headers=authorization(endpoint.api_key),
            timeout=_PROBE_TIMEOUT_S,
        )
    raise_for_status(answer, url, key=endpoint.profile.key_in_words)
    try:
        return read_vectors(orjson.loads(answer.content), 1)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as exc:
        raise EngineMisconfigured(f"{url} answered with no vector ({exc})") from exc


def _body(texts: Sequence[str], endpoint: Endpoint) -> dict[str, Any]:
    """Return the JSON of a call; nothing in it that the host refuses."""
    body: Mapping[str, Any] = {
        "model": endpoint.model,
        "input": list(texts),
        "encoding_format": "float",
    }
    return {name: value for name, value in body.items() if name not in endpoint.profile.refuses}


class TextEmbedding:
    """Makes texts into vectors for the tools of one batch."""

    def __init__(self, embedder: Embedder, caller: Caller) -> None:
        self._embedder, self._caller = embedder, caller
        self._endpoint = embedder.line.endpoint

    async def vectors(
        self, texts: Sequence[str], request: Request, account: Account, *, are_queries: bool
    ) -> Vectors:
        """Return the vectors of some texts, in their order.

        Args:
            texts: No more than the profile allows in one call.
            request: Whose tool asks; it pays.
            account: Of the request.
            are_queries: Whether they are looked for, and not looked in.

        Raises:
            VectorsUnavailable: It failed as often as the retry rule allows, its circuit is open for good, or it
                refuses the texts.
            BudgetReached: The budget does not cover it.
            EngineMisconfigured: The endpoint gives no vectors any more, or others than before.
        """
        profile = self._endpoint.profile
        rule = profile.embeddings
        assert rule is not None, "checked before the run"
        prefix = rule.query_prefix if are_queries else rule.passage_prefix
        whole = [_whole(prefix + text) for text in texts]
        try:
            found = await self._found(whole, request, account)
        except (EngineUnavailable, RequestRejected) as exc:
            # They would be taken for those of the agent's own engine.
            raise VectorsUnavailable(f"search.vectors: engine {profile.name!r}: {exc}") from exc
        given = len(found.vectors[0])
        if given != self._embedder.num_dims:
            raise EngineMisconfigured(
                f"{self._endpoint.base_url} gives vectors of {given} numbers, and gave"
                f" {self._embedder.num_dims} when the run began: it serves another model now; start the run anew"
            )
        return replace(found, engine=profile.name)

    async def _found(self, texts: Sequence[str], request: Request, account: Account) -> Vectors:
        """Return what the host answers; a text that is too long for it is cut.

        Raises:
            RequestTooLong: One is too long although it is short.
        """
        most = self._endpoint.context_tokens - MARKS_TOKENS
        counter = self._endpoint.counter
        while True:
            sent = await asyncio.to_thread(_fitting, texts, most, counter)
            try:
                return await self._caller.embed(_body(sent, self._endpoint), request, account)
            except RequestTooLong:
                # It may hold far less than is known of it: half of that could still be more than any text has.
                longest = max(await asyncio.to_thread(counter.count_many, sent))
                if longest <= _LEAST_TOKENS:
                    raise
                most = min(most, longest) // 2


def _whole(text: str) -> str:
    """Return the text as UTF-8 can hold it: half of a pair of surrogates, as a model may write it, it cannot."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _fitting(texts: Sequence[str], most: int, counter: TokenCounter) -> list[str]:
    """Return the texts, those that have more tokens than the model takes cut off at the end."""
    # A token has at least one byte: what has no more of them need not be counted.
    long = [number for number, text in enumerate(texts) if len(text.encode()) > most]
    sent = list(texts)
    while long:
        counts = counter.count_many([sent[number] for number in long])
        over = [(number, n) for number, n in zip(long, counts, strict=True) if n > most]
        for number, tokens in over:
            text = sent[number]
            sent[number] = text[: max(1, int(0.95 * len(text) * most / tokens))]
        long = [number for number, _ in over if len(sent[number]) > 1]
    return sent
