"""What an HTTP answer means for us: the one place where statuses and httpx's failures become errors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from engine.errors import (
    EngineError,
    EngineMisconfigured,
    EngineUnavailable,
    RequestRejected,
    RequestTooLong,
)

_MISCONFIGURED = {401: "{key}", 403: "the rights of {key}", 404: "URL and model"}
THE_KEY = "the API key"
_ABOUT_BODY = frozenset({400, 413, 422})
_LATER = frozenset({408, 409, 425, 429})
_MAX_SAID = 300
_TOO_LONG_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error"})
"""`code` or `type` of an error at OpenAI and in llama.cpp."""

_TOO_LONG = re.compile(
    r"maximum context length is \d|(?:longer|greater) than the (?:model|context)"
    r"|exceed(?:s|ed)? (?:the available context size|(?:the )?model token limit)"
    r"|input tokens exceed|`?inputs`? must have less than \d+ tokens|`?inputs`? tokens \+ `?max_new_tokens`? must",
    re.IGNORECASE,
)
"""How vLLM, SGLang, llama.cpp, Moonshot, TEI and TGI say it; the protocol has no code for it. By it an agent's
conversation is made shorter and a text of a search is cut, and the record says so."""
_TOO_LARGE = re.compile(
    r"input (?:\(\d+ tokens\) )?is too large to process[.,] (?:please )?increase the physical batch size",
    re.IGNORECASE,
)
"""How llama.cpp says, with status 500, that a text for a vector is longer than its --ubatch-size."""


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
        raise EngineUnavailable(too_late(base_url, type(exc).__name__)) from exc
    except (httpx.HTTPError, httpx.StreamError, httpx.CookieConflict) as exc:
        raise EngineUnavailable(unreachable(base_url, type(exc).__name__)) from exc


def too_late(base_url: str, what: str) -> str:
    """Return the message for an endpoint that was waited for in vain."""
    return f"{base_url} did not answer in time ({what}); check the engine's load and log"


def unreachable(base_url: str, what: str) -> str:
    """Return the message for an endpoint that cannot be spoken to."""
    return (
        f"{base_url} cannot be reached ({what});"
        " check that the engine runs there and the URL is right"
    )


def raise_for_status(answer: httpx.Response, base_url: str, *, key: str = THE_KEY) -> None:
    """Raise the error that belongs to the answer's status; nothing for a 2xx.

    Args:
        answer: What the host answered.
        base_url: Who answered.
        key: As `status_error` takes it.

    Raises:
        status_error: What belongs to the status.
    """
    if not answer.is_success:
        header = answer.request.headers.get("authorization", "")
        raise status_error(
            answer.status_code,
            answer.content,
            base_url=base_url,
            retry_after=answer.headers.get("retry-after"),
            secret=header.removeprefix("Bearer ") or None,
            key=key,
        )


def status_error(
    status: int,
    body: bytes,
    *,
    base_url: str,
    retry_after: str | None = None,
    secret: str | None = None,
    key: str = THE_KEY,
) -> EngineError:
    """Return the error of an answer that is not a 2xx.

    EngineMisconfigured for 401, 403 and 404, EngineUnavailable for 408, 409, 425, 429 and 5xx,
    RequestTooLong for a 400, 413 or 422 about the context's length and for llama.cpp's 500 about its batch,
    RequestRejected for any other.

    Args:
        status: HTTP status.
        body: The answer's body; its message is quoted.
        base_url: Who answered.
        retry_after: The header of that name.
        secret: Text that is never quoted, should the host echo it.
        key: How the message names the key, see `Profile.key_in_words`.
    """
    text = f"{base_url} answered {status}: {said(body, secret)}"
    if status in _MISCONFIGURED:
        return EngineMisconfigured(f"{text}; check {_MISCONFIGURED[status].format(key=key)}")
    if _TOO_LARGE.match(said(body, secret)):
        return RequestTooLong(text, status=status)
    if status in _LATER or status >= 500:
        return EngineUnavailable(text, retry_after_s=_retry_after(retry_after), status=status)
    if status in _ABOUT_BODY and _is_about_length(body):
        return RequestTooLong(text, status=status)
    return RequestRejected(text, status=status)


def said(body: bytes, secret: str | None) -> str:
    """Return the server's own message in one line, cut short, without the secret."""
    text = body.decode("utf-8", "replace")
    with suppress(ValueError, KeyError, TypeError):
        text = _message(json.loads(text))
    if secret:
        text = text.replace(secret, "[key]")
    return " ".join(text.split())[:_MAX_SAID] or "no message"


def _message(body: Mapping[str, Any]) -> str:
    """Return the message of an error as OpenAI's protocol has it, or as Clarifai's own API has it.

    Raises:
        KeyError: It is neither.
        TypeError: It is neither.
    """
    if "error" not in body and "status" in body:
        status = body["status"]
        parts = (str(status["description"]), str(status.get("details") or ""))
        return ": ".join(part for part in parts if part)
    error = body["error"]
    return str(error["message"] if isinstance(error, dict) else error)


def _is_about_length(body: bytes) -> bool:
    """Tell whether the server says that prompt and answer exceed the context."""
    text = body.decode("utf-8", "replace")
    try:
        error = json.loads(text)["error"]
        codes = {str(error.get("code")), str(error.get("type"))}
    except (ValueError, KeyError, TypeError, AttributeError):
        codes = set()
    return bool(codes & _TOO_LONG_CODES) or _TOO_LONG.search(text) is not None


def _retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After asks for, given in seconds or as a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
