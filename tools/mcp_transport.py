"""The ways to an MCP server, with bounds that the SDK's own do not have: bytes of a message, and an environment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from mcp.types import jsonrpc_message_adapter

MAX_MESSAGE_BYTES = 8 * 2**20
_CONNECT_S = 10.0
_END_S = 2.0
_Streams = tuple[Any, Any]
"""Messages from the server, and to it; the SDK's types of them are not public."""


@asynccontextmanager
async def process_streams(
    command: Sequence[str], environment: Mapping[str, str]
) -> AsyncGenerator[_Streams]:
    """Yield the streams to a server that is started for them and ended after.

    Args:
        command: Program and arguments.
        environment: All of its environment; nothing of this process is inherited.

    Raises:
        OSError: It cannot be started.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=dict(environment),
        limit=MAX_MESSAGE_BYTES,
        process_group=0,
    )
    to_session, from_server = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    from_session, to_server = anyio.create_memory_object_stream[SessionMessage](0)
    tasks = [
        asyncio.create_task(_read(process, to_session)),
        asyncio.create_task(_write(process, to_server)),
    ]
    try:
        yield from_server, from_session
    finally:
        for task in tasks:
            task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.gather(*tasks, return_exceptions=True)
            for stream in (to_session, from_server, from_session, to_server):
                stream.close()
            await _end(process)


async def _read(
    process: asyncio.subprocess.Process,
    messages: MemoryObjectSendStream[SessionMessage | Exception],
) -> None:
    """Hand on what the server writes, line by line, until it ends or writes too long a line."""
    with messages, contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        while process.stdout is not None:
            try:
                line = await process.stdout.readuntil(b"\n")
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
                return
            # What is no message is a server's own chatter.
            with contextlib.suppress(ValueError):
                message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                await messages.send(SessionMessage(message))


async def _write(
    process: asyncio.subprocess.Process, messages: MemoryObjectReceiveStream[SessionMessage]
) -> None:
    with contextlib.suppress(OSError):
        async for item in messages:
            if process.stdin is None:
                return
            text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
            process.stdin.write(f"{text}\n".encode())
            await process.stdin.drain()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Close its input, give it a moment, then kill it with all it has started."""
    if process.stdin is not None:
        process.stdin.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_S):
            # A server that still writes would wait for ever.
            while process.stdout is not None and await process.stdout.read(2**16):
                pass
            await process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_S):
            await process.wait()


class _TooLong(httpx2.StreamError):
    """A response is longer than allowed."""


class _Bounded(httpx2.AsyncByteStream):
    """A response's body that ends with an error where it becomes too long."""

    def __init__(self, body: httpx2.AsyncByteStream) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        num_bytes = 0
        async for piece in self._body:
            num_bytes += len(piece)
            if num_bytes > MAX_MESSAGE_BYTES:
                raise _TooLong(f"the response has more than {MAX_MESSAGE_BYTES:,} bytes")
            yield piece

    async def aclose(self) -> None:
        await self._body.aclose()


async def _bound(response: httpx2.Response) -> None:
    if response.headers.get("content-encoding", "identity") != "identity":
        # A few bytes may unpack to gigabytes; the request asked for none.
        raise _TooLong("the response is compressed")
    if isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = _Bounded(response.stream)


@asynccontextmanager
async def http_streams(
    url: str, headers: Mapping[str, str], timeout_s: float
) -> AsyncGenerator[_Streams]:
    """Yield the streams to a server over streamable HTTP."""
    client = httpx2.AsyncClient(
        headers={**headers, "Accept-Encoding": "identity"},
        timeout=httpx2.Timeout(_CONNECT_S, read=timeout_s),
        event_hooks={"response": [_bound]},
    )
    async with (
        client,
        streamable_http_client(
            url, http_client=client, max_sse_event_size=MAX_MESSAGE_BYTES
        ) as streams,
    ):
        yield streams
