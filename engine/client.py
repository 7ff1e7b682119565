"""One HTTP call to `/chat/completions`, and the one place where HTTP failures become our errors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from engine.errors import EngineMisconfigured, EngineUnavailable, RequestRejected
from engine.request import Usage

CONNECT_TIMEOUT_S = 10.0
PROMPT_S_PER_TOKEN = 0.01
"""Seconds allowed per prompt token: 100 tokens/s, a queue of other prompts included."""
OUTPUT_S_PER_TOKEN = 0.1
"""Seconds allowed per output token: 10 tokens/s, slower than any engine worth waiting for."""
LEAST_TIMEOUT_S = 120.0

_MISCONFIGURED = {401: "the API key", 403: "the API key's rights", 404: "URL and model"}
_LATER = frozenset({408, 409, 425, 429})

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back from one call."""

    content: str
    reasoning: str
    """Thinking that the host returned beside the content; empty where there is none."""
    finish_reason: str
    usage: Usage


class Client:
    """Sends calls to one endpoint over a pool of connections."""

    def __init__(self, base_url: str, *, api_key: str | None, max_connections: int) -> None:
        self._base_url = base_url
        limits = httpx.Limits(
            max_connections=max_connections, max_keepalive_connections=max_connections
        )
        self._http = httpx.AsyncClient(headers=authorization(api_key), limits=limits, timeout=None)

    async def complete(self, body: Mapping[str, Any], *, prompt_tokens: int) -> Reply:
        """Return the reply to one chat completion.

        Args:
            body: The request's JSON.
            prompt_tokens: Tokens of the prompt, about; the time-out grows with them.

        Raises:
            EngineUnavailable: No answer, an empty or broken one, or a status that says 'later'.
            EngineMisconfigured: The endpoint refuses all requests of this kind.
            RequestRejected: The endpoint refuses this request.
        """
        allowed_s = prompt_tokens * PROMPT_S_PER_TOKEN + body["max_tokens"] * OUTPUT_S_PER_TOKEN
        timeout = httpx.Timeout(max(LEAST_TIMEOUT_S, allowed_s), connect=CONNECT_TIMEOUT_S)
        with map_errors(self._base_url):
            answer = await self._http.post(
                f"{self._base_url}/chat/completions", json=dict(body), timeout=timeout
            )
        raise_for_status(answer, self._base_url)
        return _parse(answer, self._base_url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.aclose()


def authorization(api_key: str | None) -> dict[str, str]:
    """Return the header that carries the key; none where there is no key."""
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


@contextmanager
def map_errors(base_url: str) -> Iterator[None]:
    """Turn what httpx raises into errors of this folder.

    Raises:
        EngineMisconfigured: The URL cannot be one.
        EngineUnavailable: Anything that another try may cure.
    """
    try:
        yield
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError) as exc:
        raise EngineMisconfigured(f"engine URL {base_url!r} is not usable: {exc}") from exc
    except httpx.TimeoutException as exc:
        raise EngineUnavailable(
            f"{base_url} did not answer in time ({type(exc).__name__}); check the engine's load and log"
        ) from exc
    except (httpx.HTTPError, httpx.StreamError, httpx.CookieConflict) as exc:
        raise EngineUnavailable(
            f"{base_url} cannot be reached ({type(exc).__name__});"
            " check that the engine runs there and the URL is right"
        ) from exc


def raise_for_status(answer: httpx.Response, base_url: str) -> None:
    """Raise the error that belongs to the answer's status; nothing for a 2xx.

    Raises:
        EngineMisconfigured: 401, 403 or 404.
        EngineUnavailable: 408, 409, 425, 429 or 5xx.
        RequestRejected: Any other status.
    """
    status = answer.status_code
    if answer.is_success:
        return
    said = _said(answer)
    if status in _MISCONFIGURED:
        raise EngineMisconfigured(
            f"{base_url} answered {status}: {said}; check {_MISCONFIGURED[status]}"
        )
    if status in _LATER or status >= 500:
        raise EngineUnavailable(
            f"{base_url} answered {status}: {said}",
            retry_after_s=_retry_after(answer.headers.get("retry-after")),
        )
    raise RequestRejected(f"{base_url} answered {status}: {said}", status=status)


def _said(answer: httpx.Response) -> str:
    """Return the server's own message, cut short."""
    try:
        error = answer.json()["error"]
        text = error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        text = answer.text
    return " ".join(str(text).split())[:300] or "no message"


def _retry_after(value: str | None) -> float | None:
    try:
        return max(0.0, float(value)) if value is not None else None
    except ValueError:
        return None


def _parse(answer: httpx.Response, base_url: str) -> Reply:
    """Return the first choice.

    Raises:
        EngineUnavailable: The body is empty, cut off or not a completion.
    """
    try:
        data = answer.json()
        choice: Mapping[str, Any] = data["choices"][0]
        message: Mapping[str, Any] = choice["message"]
        usage: Mapping[str, Any] = data.get("usage") or {}
        details: Mapping[str, Any] = usage.get("prompt_tokens_details") or {}
        return Reply(
            content=_text(message.get("content")),
            # vLLM says `reasoning`, SGLang and Moonshot `reasoning_content`.
            reasoning=_text(message.get("reasoning") or message.get("reasoning_content")),
            finish_reason=str(choice.get("finish_reason") or ""),
            usage=Usage(
                prompt_tokens=int(usage.get("prompt_tokens") or 0),
                cached_tokens=details.get("cached_tokens"),
                completion_tokens=int(usage.get("completion_tokens") or 0),
            ),
        )
    except (json.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError) as exc:
        raise EngineUnavailable(
            f"{base_url} answered 200 with a body that is not a completion"
            f" ({len(answer.content)} bytes)"
        ) from exc


def _text(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "".join(str(part.get("text", "")) for part in value if isinstance(part, Mapping))
    return str(value) if value is not None else ""
