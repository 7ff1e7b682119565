"""One call to `/chat/completions`, streamed, watched, and read into a Reply; or one to `/embeddings`.

The only place that speaks to a model. A call that goes wrong raises one of our errors, by status and
kind of failure; whether and when it is sent again is engine.batch's to decide.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace, TracebackType
from typing import Any, Protocol, Self

import aiohttp
import orjson

from engine.embeddings import Vectors, read_vectors
from engine.errors import EngineMisconfigured, EngineUnavailable
from engine.load import Load, read_load
from engine.reply import ABORTED, Assembly, Reply
from engine.status import THE_KEY, authorization, said, status_error, too_late, unreachable

CONNECT_TIMEOUT_S = 10.0
PROMPT_S_PER_TOKEN = 0.01
"""Seconds allowed per prompt token until the first event: 100 tokens/s, a queue of other prompts
included. A prompt of 200K tokens may take half an hour."""
OUTPUT_S_PER_TOKEN = 0.1
"""Seconds allowed per output token: 10 tokens/s, slower than any engine worth waiting for."""
LEAST_TIMEOUT_S = 120.0
STALL_TIMEOUT_S = 180.0
"""Seconds between two events of a stream. vLLM may put a request back behind more urgent ones."""
MAX_BODY_BYTES = 64 << 20
"""Longest answer that is read; a 256K-token answer has about 1 MiB."""

LOAD_TIMEOUT_S = 2.0
"""Seconds for a page of metrics, which takes milliseconds; it is read on the way, and nothing hangs on it."""

LARGE_BODY_BYTES = 1 << 20
"""Prompts of about 250K tokens, and any with several images, are larger."""

_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long one call is waited for, in seconds."""

    first_s: float
    """Until the first event, or the whole answer where it is not streamed."""
    stall_s: float
    """Between two events."""
    total_s: float
    """In all."""

    @classmethod
    def of(cls, prompt_tokens: int, output_tokens: int, *, streamed: bool) -> Patience:
        """Return what a call of this size may take."""
        reading = max(LEAST_TIMEOUT_S, prompt_tokens * PROMPT_S_PER_TOKEN)
        total = reading + output_tokens * OUTPUT_S_PER_TOKEN
        return cls(first_s=reading if streamed else total, stall_s=STALL_TIMEOUT_S, total_s=total)


class Watch(Protocol):
    """Who is told how far a call has come."""

    def sending(self, num_bytes: int) -> None:
        """Hear that so many bytes more of the body go out now."""

    def heard(self, status: int) -> None:
        """Hear that the answer begins."""


class Client:
    """Sends calls to one endpoint over a pool of connections; belongs to one event loop."""

    def __init__(
        self, base_url: str, *, api_key: str | None, max_connections: int, key: str = THE_KEY
    ) -> None:
        self._base_url = base_url
        self._api_key = api_key
        self._key = key
        self._max_connections = max_connections
        self._http: aiohttp.ClientSession | None = None

    async def complete(
        self,
        body: Mapping[str, Any],
        *,
        prompt_tokens: int,
        patience: Patience | None = None,
        watch: Watch | None = None,
    ) -> Reply:
        """Return the reply to one chat completion, streamed where the body says so.

        Args:
            body: The request's JSON.
            prompt_tokens: Tokens of the prompt, about; the time-outs grow with them.
            patience: How long to wait, in place of what follows from the tokens.
            watch: Is told how far the call has come.

        Raises:
            EngineUnavailable: No answer, an empty, broken or stalled one, or a status that says
                'later'.
            EngineMisconfigured: The endpoint refuses all requests of this kind.
            RequestRejected: The endpoint refuses this request.
        """
        streamed = bool(body.get("stream"))
        wait = patience or Patience.of(prompt_tokens, body["max_tokens"], streamed=streamed)
        started = time.monotonic()
        async with self._posted("chat/completions", body, wait.first_s, watch) as (answer, clock):
            if answer.content_type != "text/event-stream":
                return self._whole(await answer.read())
            reader = _Reader(self._base_url, self._api_key, wait, started, key=self._key)
            return await reader.read(answer.content, clock)

    async def embed(
        self, body: Mapping[str, Any], *, prompt_tokens: int, watch: Watch | None = None
    ) -> Vectors:
        """Return the vectors of the texts in `body["input"]`.

        Args:
            body: The request's JSON.
            prompt_tokens: Tokens of all texts, about; the time-out grows with them.
            watch: Is told how far the call has come.

        Raises:
            EngineUnavailable: No answer, a broken one or one for other texts, or a status that says
                'later'.
            EngineMisconfigured: The endpoint refuses all requests of this kind.
            RequestRejected: The endpoint refuses this request.
        """
        wait = Patience.of(prompt_tokens, 0, streamed=False)
        async with self._posted("embeddings", body, wait.first_s, watch) as (answer, _):
            data = await answer.read()
        try:
            return read_vectors(orjson.loads(data), len(body["input"]))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as exc:
            raise EngineUnavailable(
                f"{self._base_url} answered 200 to /embeddings, but not with the vectors of the"
                f" {len(body['input'])} texts that were sent: {exc or type(exc).__name__}"
            ) from exc

    @asynccontextmanager
    async def _posted(
        self, path: str, body: Mapping[str, Any], first_s: float, watch: Watch | None
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, asyncio.Timeout]]:
        """Send a body and yield the answer, a good one, while it is read.

        Raises:
            status_error: What belongs to another status.
        """
        assert self._http is not None, "entered before use"
        with _map_errors(self._base_url):
            async with (
                asyncio.timeout(first_s) as clock,
                self._http.post(
                    f"{self._base_url}/{path}",
                    data=_payload(body),
                    headers=_JSON,
                    trace_request_ctx=watch,
                ) as answer,
            ):
                if watch is not None:
                    watch.heard(answer.status)
                if not answer.ok:
                    raise status_error(
                        answer.status,
                        await answer.content.read(1 << 16),
                        base_url=self._base_url,
                        retry_after=answer.headers.get("Retry-After"),
                        secret=self._api_key,
                        key=self._key,
                    )
                yield answer, clock

    async def load(self) -> Load | None:
        """Return what the server says of its load; None where it does not answer, or is no vLLM."""
        assert self._http is not None, "entered before use"
        try:
            async with (
                asyncio.timeout(LOAD_TIMEOUT_S),
                self._http.get(f"{self._base_url.removesuffix('/v1')}/metrics") as answer,
            ):
                return read_load(await answer.text()) if answer.ok else None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None

    def _whole(self, data: bytes) -> Reply:
        """Return an answer that came in one piece.

        Raises:
            EngineUnavailable: It is empty, cut off or not a completion.
        """
        assembly = Assembly()
        try:
            assembly.add_completion(orjson.loads(data))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as exc:
            raise EngineUnavailable(
                f"{self._base_url} answered 200 with a body that is not a completion"
                f" ({len(data)} bytes)"
            ) from exc
        return _finished(assembly.reply(first_token_s=None), self._base_url)

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            headers=authorization(self._api_key),
            connector=aiohttp.TCPConnector(limit=self._max_connections),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[_watching()],
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._http is not None:
            await self._http.close()


class _Reader:
    """Reads one stream of events, and moves the time-out on as they come."""

    def __init__(
        self, base_url: str, secret: str | None, wait: Patience, started: float, *, key: str
    ) -> None:
        self._base_url = base_url
        self._secret = secret
        self._key = key
        self._wait = wait
        self._started = started
        self._assembly = Assembly()
        self._first_token_s: float | None = None

    async def read(self, content: aiohttp.StreamReader, clock: asyncio.Timeout) -> Reply:
        """Return the reply when the stream has ended.

        Raises:
            EngineUnavailable: It was cut, or is no stream of completions.
        """
        async for line in self._lines(content, clock):
            if line == b"[DONE]":
                break
            self._take(line)
        if not self._assembly.finish_reason:
            raise EngineUnavailable(
                f"{self._base_url} cut the answer off after {self._assembly.num_events} events"
            )
        first_s = self._first_token_s
        decoding_s = None if first_s is None else time.monotonic() - self._started - first_s
        reply = self._assembly.reply(first_token_s=first_s, decoding_s=decoding_s)
        return _finished(reply, self._base_url)

    async def _lines(
        self, content: aiohttp.StreamReader, clock: asyncio.Timeout
    ) -> AsyncIterator[bytes]:
        """Yield the data of each event.

        Raises:
            EngineUnavailable: It grows beyond all bounds.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wait.total_s - (time.monotonic() - self._started)
        rest, num_bytes = b"", 0
        async for piece in content.iter_any():
            # A comment shows life as well, such as the `: ping` of gateways.
            clock.reschedule(min(loop.time() + self._wait.stall_s, deadline))
            num_bytes += len(piece)
            if num_bytes > MAX_BODY_BYTES:
                raise EngineUnavailable(
                    f"{self._base_url} sent more than {MAX_BODY_BYTES:,} bytes for one answer"
                )
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    yield line[5:].strip()
        if rest.startswith(b"data:"):
            yield rest[5:].strip()

    def _take(self, line: bytes) -> None:
        """Add one event to the answer.

        Raises:
            EngineUnavailable: The event is none, or tells that the answer broke off.
            EngineError: The event tells of an error with a status.
        """
        try:
            event = orjson.loads(line)
            if "error" in event:
                raise self._told(event["error"], line)
            self._assembly.add_event(event)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as exc:
            raise EngineUnavailable(
                f"{self._base_url} sent an event that is not a completion ({len(line)} bytes)"
            ) from exc
        if self._first_token_s is None:
            self._first_token_s = time.monotonic() - self._started

    def _told(self, error: object, line: bytes) -> Exception:
        """Return the error of an event that tells of one, in the middle of a 200."""
        code = error.get("code") if isinstance(error, Mapping) else None
        if isinstance(code, int) and 400 <= code < 600:
            return status_error(
                code, line, base_url=self._base_url, secret=self._secret, key=self._key
            )
        return EngineUnavailable(
            f"{self._base_url} broke the answer off: {said(line, self._secret)}"
        )


def _watching() -> aiohttp.TraceConfig:
    """Return what tells a call's watch when its body goes out, which is not before there is a connection."""

    async def sending(
        _: aiohttp.ClientSession,
        context: SimpleNamespace,
        params: aiohttp.TraceRequestChunkSentParams,
    ) -> None:
        watch: Watch | None = context.trace_request_ctx
        if watch is not None:
            watch.sending(len(params.chunk))

    config = aiohttp.TraceConfig()
    config.on_request_chunk_sent.append(sending)
    return config


def _payload(body: Mapping[str, Any]) -> bytes | io.BytesIO:
    """Return the body's JSON; a large one is written piece by piece, or it would hold up all others."""
    data = orjson.dumps(body)
    return data if len(data) <= LARGE_BODY_BYTES else io.BytesIO(data)


def _finished(reply: Reply, base_url: str) -> Reply:
    """Return the reply.

    Raises:
        EngineUnavailable: The server gave up on it.
    """
    if reply.finish_reason in ABORTED:
        raise EngineUnavailable(f"{base_url} gave the answer up ({reply.finish_reason})")
    return reply


@contextmanager
def _map_errors(base_url: str) -> Iterator[None]:
    """Turn what aiohttp raises into errors of this folder.

    Raises:
        EngineMisconfigured: The URL cannot be one.
        EngineUnavailable: Anything that another try may cure.
    """
    try:
        yield
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as exc:
        raise EngineMisconfigured(f"engine URL {base_url!r} is not usable: {exc}") from exc
    except TimeoutError as exc:
        # aiohttp's own time-outs are TimeoutErrors too.
        raise EngineUnavailable(too_late(base_url, type(exc).__name__)) from exc
    except aiohttp.ClientError as exc:
        raise EngineUnavailable(unreachable(base_url, type(exc).__name__)) from exc
    except OSError as exc:
        raise EngineUnavailable(unreachable(base_url, type(exc).__name__)) from exc
