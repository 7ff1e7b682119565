"""A host of `/v1/embeddings` over a real socket, whose vectors follow from the texts alone.

A vector counts the words of a text by a hash of what they mean, so that texts that share no word but a
meaning are near one another: `SYNONYMS` says which words mean the same.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

from tests.fakes.async_server import AsyncServer

MODEL = "meanings"
NUM_DIMS = 256
SYNONYMS = {
    "lodging": "hotel", "accommodation": "hotel", "ceiling": "most", "limit": "most", "maximum": "most",
    "price": "cost", "pay": "cost", "overnight": "night", "railway": "train", "trains": "train",
}  # fmt: skip
_EMPTY = frozenset({"a", "an", "and", "for", "in", "is", "of", "the", "to", "may", "be", "at"})


def vector_of(text: str, num_dims: int = NUM_DIMS) -> list[float]:
    """Return a text's vector, of length 1 where it has words."""
    vector = [0.0] * num_dims
    for word in re.findall(r"\w+", text.casefold()):
        if word not in _EMPTY:
            meant = SYNONYMS.get(word, word).encode()
            vector[int.from_bytes(hashlib.sha256(meant).digest()[:4], "big") % num_dims] += 1.0
    length = math.hypot(*vector) or 1.0
    return [one / length for one in vector]


class EmbeddingServer(AsyncServer):
    """The server; `calls` keeps the texts of every call in order of arrival, `texts` those it has answered."""

    def __init__(
        self,
        *,
        fault: Callable[[int, Sequence[str]], str | None] = lambda _number, _texts: None,
        num_dims: int = NUM_DIMS,
        max_tokens: int = 8192,
        api_key: str | None = None,
        tells_usage: bool = True,
        is_tei: bool = False,
        is_llama_cpp: bool = False,
        model: str = MODEL,
    ) -> None:
        """Take a free port of 127.0.0.1.

        Args:
            fault: What goes wrong with a call, by its number from 0 and its texts: `busy`, `error`, `nan`,
                `null`, `fewer`, `lengths`, `shuffled`, `refused`, `hang`; None: nothing.
            num_dims: Numbers of a vector.
            max_tokens: Words of the longest text; a longer one is a 400, TEI's 413, or llama.cpp's 500.
            api_key: Key that it asks for; it is echoed in the refusal.
            tells_usage: Whether answers say what they took.
            is_tei: Whether it is like Hugging Face TEI, which has no `/v1/models` and other errors.
            is_llama_cpp: Whether it is like llama.cpp, which lists no context and refuses by its batch.
            model: What it calls its model.
        """
        super().__init__()
        self.calls: list[list[str]] = []
        self.texts: list[str] = []
        self.num_tokens = 0
        self.most_at_once = 0
        self.fault, self.num_dims = fault, num_dims
        self._max_tokens, self._api_key, self._tells_usage = max_tokens, api_key, tells_usage
        self._is_tei, self._is_llama_cpp = is_tei, is_llama_cpp
        self.model = model
        self._at_once = 0

    def routes(self, router: web.UrlDispatcher) -> None:
        if not self._is_tei:
            router.add_get("/v1/models", self._models)
        router.add_post("/v1/embeddings", self._embed)

    async def _models(self, _: web.Request) -> web.Response:
        model = {"id": self.model, "object": "model"}
        if not self._is_llama_cpp:
            model["max_model_len"] = self._max_tokens
        return web.json_response({"object": "list", "data": [model]})

    async def _embed(self, request: web.Request) -> web.Response:
        if self._api_key and request.headers.get("Authorization") != f"Bearer {self._api_key}":
            return _error(401, f"no such key: {request.headers.get('Authorization')}")
        body = await request.json()
        texts = body["input"]
        number = len(self.calls)
        self.calls.append(texts)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return await self._answer(body, number)
        finally:
            self._at_once -= 1

    async def _answer(self, body: dict[str, Any], number: int) -> web.Response:
        texts = body["input"]
        fault = self.fault(number, texts)
        if fault == "hang":
            await self._end.wait()
        if fault == "busy":
            return _error(429, "slow down", {"Retry-After": "0"})
        if fault in {"error", "hang"}:
            return _error(500, "internal error")
        if fault == "refused":
            return _error(400, "the model does not support Embeddings API")
        words = [len(re.findall(r"\w+", text)) for text in texts]
        if max(words) > self._max_tokens:
            return self._too_long(max(words))
        data = [
            {"object": "embedding", "index": place, "embedding": vector_of(text, self.num_dims)}
            for place, text in enumerate(texts)
        ]
        _spoil(data, fault)
        self.texts += texts
        self.num_tokens += sum(words)
        told = {"object": "list", "model": body["model"], "data": data}
        if self._tells_usage:
            told["usage"] = {"prompt_tokens": sum(words), "total_tokens": sum(words)}
        # As Python writes it, NaN is no JSON.
        return web.json_response(told)

    def _too_long(self, num_words: int) -> web.Response:
        if self._is_llama_cpp:
            return _error(
                500,
                f"input ({num_words} tokens) is too large to process. increase the physical batch size"
                f" (current batch size: {self._max_tokens})",
            )
        if not self._is_tei:
            return _error(400, f"This model's maximum context length is {self._max_tokens} tokens.")
        said = f"`inputs` must have less than {self._max_tokens} tokens. Given: {num_words}"
        told = {"message": said, "code": 413, "type": "Validation"}
        return web.json_response(told, status=413)


def _spoil(data: list[dict[str, Any]], fault: str | None) -> None:
    if fault == "shuffled":
        data.reverse()
    if fault == "fewer":
        data.pop()
    if fault in {"nan", "null"}:
        data[0]["embedding"][0] = math.nan if fault == "nan" else None
    if fault == "lengths":
        data[-1]["embedding"].pop()


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    error = {"error": {"message": message, "type": "invalid_request_error", "code": status}}
    return web.json_response(error, status=status, headers=headers)
