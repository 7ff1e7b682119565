"""Counters that ask the host: `/tokenize` of vLLM and SGLang, and Moonshot's estimate of a message.

Each text is a call, so counts are kept, calls run side by side, and `weigh` does not call at all.
"""

from __future__ import annotations

import hashlib
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from engine.errors import EngineUnavailable
from engine.status import authorization, map_errors, raise_for_status
from engine.tokens.estimate import EstimateCounter

AT_ONCE = 8
"""Calls under way at the same time; a host with a limit on requests is asked by fewer."""
MOST_KEPT = 65_536
"""Counts kept, at about 200 bytes each: 13 MB."""
TIMEOUT = httpx.Timeout(60.0, connect=10.0)
"""Seconds for one count; vLLM takes about 0.5 s for 262,144 tokens."""
TRIES = 4
LONGEST_WAIT_S = 20.0

_PROBE = "Hello, world!"


class RemoteCounter(ABC):
    """A counter that asks a host over a pool of connections; its threads share it."""

    exact = False
    weighs_exactly = False
    name: str

    def __init__(
        self, url: str, *, api_key: str | None, at_once: int, estimate: EstimateCounter
    ) -> None:
        self._url = url
        self._estimate = estimate
        self._at_once = at_once
        self._kept: OrderedDict[bytes, int] = OrderedDict()
        self._lock = threading.Lock()
        self._sleep: Callable[[float], None] = time.sleep
        limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
        self._http = httpx.Client(headers=authorization(api_key), limits=limits, timeout=TIMEOUT)

    def count(self, text: str) -> int:
        """Return the tokens of `text`, without special tokens.

        Raises:
            EngineUnavailable: The host does not answer, or not with a count, after several tries.
            EngineMisconfigured: The host refuses all counts.
            RequestRejected: The host refuses to count this text.
        """
        if not text:
            return 0
        key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        # Lone surrogates have no UTF-8, so they are sent as the mark for unreadable text.
        num_tokens = self._ask(text.encode("utf-8", "replace").decode())
        with self._lock:
            self._kept[key] = num_tokens
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return num_tokens

    def count_many(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text; equal texts are asked about once.

        Raises:
            EngineUnavailable: As `count`.
            EngineMisconfigured: As `count`.
            RequestRejected: As `count`.
        """
        distinct = list(dict.fromkeys(texts))
        if len(distinct) < 2:
            counts = [self.count(text) for text in distinct]
        else:
            with ThreadPoolExecutor(min(self._at_once, len(distinct))) as pool:
                counts = list(pool.map(self.count, distinct))
        found = dict(zip(distinct, counts, strict=True))
        return [found[text] for text in texts]

    def weigh(self, texts: Sequence[str]) -> list[int]:
        """Return estimates, without a call."""
        return self._estimate.count_many(texts)

    def probe(self) -> None:
        """Find out with one call whether the host counts.

        Raises:
            EngineError: It does not; the message says how it answered.
        """
        self._ask_once(_PROBE)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _ask(self, text: str) -> int:
        for tries_left in reversed(range(TRIES)):
            try:
                return self._ask_once(text)
            except EngineUnavailable as exc:
                if not tries_left:
                    raise
                waited = 0.5 * 2.0 ** (TRIES - tries_left)
                self._sleep(min(exc.retry_after_s or waited, LONGEST_WAIT_S))
        raise AssertionError  # pragma: no cover - the last try returns or raises

    def _ask_once(self, text: str) -> int:
        return self._post(self._body(text))

    def _post(self, body: Mapping[str, Any]) -> int:
        """Return the host's count.

        Raises:
            EngineUnavailable: No answer, or one that is not a count.
        """
        with map_errors(self._url):
            answer = self._http.post(self._url, json=body)
        raise_for_status(answer, self._url)
        try:
            return self._read(answer.json())
        except (ValueError, KeyError, TypeError) as exc:
            raise EngineUnavailable(
                f"{self._url} answered 200 with a body that is not a token count"
                f" ({len(answer.content)} bytes)"
            ) from exc

    @abstractmethod
    def _body(self, text: str) -> Mapping[str, Any]: ...

    @abstractmethod
    def _read(self, answer: Any) -> int: ...  # noqa: ANN401 - any JSON


class ServerCounter(RemoteCounter):
    """Counts with `/tokenize` of the server that runs the model.

    A text that reads like a special token counts as the server's chat does: as that token.
    """

    exact = True

    def __init__(
        self, base_url: str, *, model: str, api_key: str | None, at_once: int = AT_ONCE
    ) -> None:
        root = base_url.rstrip("/").removesuffix("/v1")
        super().__init__(
            f"{root}/tokenize", api_key=api_key, at_once=at_once, estimate=EstimateCounter(model)
        )
        self.name = f"server/{model}"
        self._model = model

    def count_chat(self, messages: Sequence[Mapping[str, str]]) -> int:
        """Return the tokens of a whole chat, the template's marks included.

        Raises:
            EngineUnavailable: The server does not answer, or counts no chats.
            EngineMisconfigured: It refuses all counts.
        """
        return self._post({"model": self._model, "messages": list(messages)})

    def _body(self, text: str) -> Mapping[str, Any]:
        return {"model": self._model, "prompt": text, "add_special_tokens": False}

    def _read(self, answer: Any) -> int:  # noqa: ANN401 - any JSON
        return _positive(answer["count"])


class HostEstimateCounter(RemoteCounter):
    """Counts with a host's estimate of a chat message, as Moonshot offers it.

    Not exact: the host says it estimates, and counts the message with the marks around it, which is
    a few tokens too many for each text.
    """

    def __init__(
        self, base_url: str, path: str, *, model: str, api_key: str | None, at_once: int = 4
    ) -> None:
        super().__init__(
            f"{base_url.rstrip('/')}/{path.lstrip('/')}",
            api_key=api_key,
            at_once=at_once,
            estimate=EstimateCounter(model),
        )
        self.name = f"host-estimate/{model}"
        self._model = model

    def _body(self, text: str) -> Mapping[str, Any]:
        return {"model": self._model, "messages": [{"role": "user", "content": text}]}

    def _read(self, answer: Any) -> int:  # noqa: ANN401 - any JSON
        return _positive(answer["data"]["total_tokens"])


def _positive(value: object) -> int:
    """Return the count.

    Raises:
        ValueError: It is none, or not positive: every text that is sent has a token.
    """
    if not isinstance(value, int) or value < 1:
        raise ValueError(value)
    return value
