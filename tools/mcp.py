"""Tools of MCP servers that a pipeline names: which are offered, and what their calls give.

A server is somebody else's program. It sees the arguments of calls and nothing more; what it says is
bounded and made harmless (`tools.mcp_text`), and when it dies the run goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import anyio
import httpx2
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CONNECTION_CLOSED,
    INVALID_REQUEST,
    REQUEST_TIMEOUT,
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    Implementation,
)
from mcp_types import Tool as RemoteTool
from pydantic import ValidationError

from engine.errors import PrerequisiteError
from engine.tool import Aside, ToolAnswer, ToolError, ToolSpec
from tools.mcp_config import HttpServer, ProcessServer, variables
from tools.mcp_text import (
    MAX_DESCRIPTION_CHARS,
    MAX_ERROR_CHARS,
    SchemaRefused,
    clean_schema,
    plain,
    result_text,
    tool_name,
)
from tools.mcp_transport import http_streams, process_streams

_LOGGER = logging.getLogger(__name__)
_MAX_NAME_CHARS = 64
_MAX_PAGES = 20
_START_S = 30.0
_ANSWER_S = 5.0

_FAILURES = (
    MCPError,
    ValidationError,
    RuntimeError,
    OSError,
    TimeoutError,
    httpx2.HTTPError,
    httpx2.StreamError,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    ExceptionGroup,
)
"""What the SDK raises where a server or the way to it fails."""
_GONE = frozenset({CONNECTION_CLOSED, REQUEST_TIMEOUT, INVALID_REQUEST})
"""Codes behind which no server answers: also a session that it has forgotten, since it was restarted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A tool that is not offered."""

    name: str
    """As the server, or the pipeline, calls it."""
    reason: str


class McpServer:
    """One server and its tools. Opened, used and closed in one event loop."""

    def __init__(self, config: ProcessServer | HttpServer, environment: Mapping[str, str]) -> None:
        """Prepare to connect.

        Args:
            config: Which server.
            environment: Where the variables that the configuration names are looked up.

        Raises:
            PrerequisiteError: A variable is not set.
        """
        self._config = config
        named = variables(config)
        missing = [name for name in named if not environment.get(name)]
        if missing:
            raise PrerequisiteError(
                f"MCP server {config.name!r} needs the environment variable {missing[0]}; set it"
            )
        self._environment = environment
        self._secrets = tuple(environment[name] for name in named)
        self._client: Client | None = None
        self._holder: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._lock = asyncio.Lock()
        self._num_ended = 0
        self.tools: tuple[McpTool, ...] = ()
        self.left_out: tuple[LeftOut, ...] = ()

    @property
    def name(self) -> str:
        """Return its name in the pipeline."""
        return self._config.name

    async def __aenter__(self) -> Self:
        """Connect and list the tools.

        Raises:
            PrerequisiteError: The server does not start, does not answer, or has none of the tools.
        """
        try:
            client = await self._connected()
            async with asyncio.timeout(_START_S):
                listed = await _listed(client)
        except _FAILURES as exc:
            await self._close()
            raise PrerequisiteError(
                f"MCP server {self.name!r} cannot be used: {self._why(exc)}; check its command or url"
            ) from None
        self._choose(listed)
        for item in self.left_out:
            _LOGGER.warning(
                "tool %s of MCP server %s is left out: %s", item.name, self.name, item.reason
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        """End the connection, and the process where it is one."""
        await self._close()

    def _choose(self, listed: Sequence[RemoteTool]) -> None:
        found: dict[str, McpTool] = {}
        left_out = []
        by_name = {tool.name: tool for tool in listed}
        for name in dict.fromkeys(self._config.allow):
            try:
                tool = self._made(name, by_name.get(name), found)
            except SchemaRefused as exc:
                left_out.append(LeftOut(name=name, reason=str(exc)))
            else:
                found[tool.spec.name] = tool
        self.tools = tuple(found.values())
        self.left_out = tuple(left_out)

    def _made(self, name: str, remote: RemoteTool | None, others: Mapping[str, McpTool]) -> McpTool:
        if remote is None:
            raise SchemaRefused("the server has no such tool")
        full = tool_name(self.name, name)
        if len(full) > _MAX_NAME_CHARS or full in others:
            raise SchemaRefused(f"its name {full!r} is taken, or longer than {_MAX_NAME_CHARS}")
        told = plain(remote.description or "", self._secrets, MAX_DESCRIPTION_CHARS)
        annotations = remote.annotations
        spec = ToolSpec(
            name=full,
            description=f"Tool {name!r} of the external server {self.name!r}, which describes it so: {told}",
            parameters=clean_schema(remote.input_schema, self._secrets),
            has_effects=annotations is None or annotations.read_only_hint is not True,
        )
        return McpTool(spec, name, self)

    # -- Calls --------------------------------------------------------------------------------------

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolAnswer:
        """Return what one of the server's tools gives.

        Raises:
            ToolError: It failed, took too long, or the server is gone.
        """
        try:
            client = await self._connected()
        except _FAILURES as exc:
            self._num_ended += 1
            raise ToolError(
                f"the server {self.name!r} does not answer: {self._why(exc)}; go on without it"
            ) from None
        holder = self._holder
        try:
            result = await self._result(client, name, arguments)
        except _FAILURES as exc:
            raise ToolError(await self._after(exc, holder)) from None
        self._num_ended = 0
        text = result_text(result)
        if result.is_error:
            raise ToolError(f"{self.name!r} says: {plain(text, self._secrets, MAX_ERROR_CHARS)}")
        return ToolAnswer(text=plain(text, self._secrets))

    async def _result(
        self, client: Client, name: str, arguments: Mapping[str, Any]
    ) -> CallToolResult:
        # Not by `call_tool`: it checks what comes back against the server's own schema, whose regular
        # expressions could keep this process busy for ever.
        request = CallToolRequest(
            params=CallToolRequestParams(name=name, arguments=dict(arguments))
        )
        timeout_s = self._config.timeout_s
        call = asyncio.ensure_future(
            client.session.send_request(
                request, CallToolResult, request_read_timeout_seconds=timeout_s
            )
        )
        held = {call, *([self._holder] if self._holder else [])}
        try:
            async with asyncio.timeout(timeout_s + 1):
                await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
                if not call.done():
                    raise MCPError(CONNECTION_CLOSED, "the connection ended")
                return await call
        finally:
            call.cancel()

    async def _after(self, exc: Exception, holder: asyncio.Task[None] | None) -> str:
        """Return what the model is told of a failed call; a connection that is of no more use is given up."""
        if isinstance(exc, MCPError) and exc.code not in _GONE:
            return f"{self.name!r} says: {self._why(exc)}"
        if isinstance(exc, ValidationError):
            return (
                f"{self.name!r} gave an answer that does not follow the protocol; go on without it"
            )
        is_late = isinstance(exc, TimeoutError) or getattr(exc, "code", 0) == REQUEST_TIMEOUT
        # Others may have calls with it: a server that is slow with one is kept.
        if not (is_late and await self._answers()):
            async with self._lock:
                # Of all calls that end with a connection, one closes it.
                if self._holder is holder:
                    self._num_ended += 1
                    await self._close()
        if is_late:
            return (
                f"{self.name!r} did not answer within {self._config.timeout_s:.0f} s; it may have acted "
                "all the same. Ask for less, or go on without it"
            )
        return (
            f"the server {self.name!r} ended during the call, or sent too much; it may have acted all the "
            "same. The next call tries it once more"
        )

    async def _answers(self) -> bool:
        """Return whether the server still answers at all."""
        client = self._client
        if client is None:
            return False
        try:
            async with asyncio.timeout(_ANSWER_S):
                await client.list_tools()
        except _FAILURES:
            return False
        return True

    def _why(self, exc: BaseException) -> str:
        while isinstance(exc, BaseExceptionGroup):
            exc = exc.exceptions[0]
        if isinstance(exc, MCPError):
            return plain(exc.message, self._secrets, MAX_ERROR_CHARS)
        if isinstance(exc, TimeoutError):
            return "it takes too long"
        if isinstance(exc, OSError) and exc.strerror:
            return exc.strerror
        return type(exc).__name__

    # -- The connection -----------------------------------------------------------------------------

    async def _connected(self) -> Client:
        """Return the client of a connection that stands, made anew where it does not.

        Raises:
            MCPError: The server was started again and ended again.
            OSError: It cannot be started.
        """
        async with self._lock:
            if self._client is not None and self._holder is not None and not self._holder.done():
                return self._client
            if self._num_ended > 1:
                raise MCPError(CONNECTION_CLOSED, "it was started again and ended again")
            await self._close()
            self._stop = asyncio.Event()
            started: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
            # Its context is entered and left in one task, as the SDK demands; calls come from others.
            self._holder = asyncio.create_task(self._hold(started, self._stop))
            try:
                async with asyncio.timeout(_START_S):
                    self._client = await started
            except BaseException:
                await self._close()
                raise
            return self._client

    async def _hold(self, started: asyncio.Future[Client], stop: asyncio.Event) -> None:
        try:
            async with Client(
                self._streams(),
                client_info=Implementation(name="headrace", version="0"),
                read_timeout_seconds=_START_S,
                cache=None,
            ) as client:
                if not started.done():
                    started.set_result(client)
                    await stop.wait()
        except _FAILURES as exc:
            if not started.done():
                started.set_exception(exc)
            else:
                _LOGGER.info("the connection to MCP server %s ended: %s", self.name, self._why(exc))

    def _streams(self) -> AbstractAsyncContextManager[Any]:
        config = self._config
        if isinstance(config, HttpServer):
            headers = {key: self._environment[name] for key, name in config.headers.items()}
            return http_streams(config.url, headers, config.timeout_s)
        names = ("PATH", "HOME", "LANG", *config.environment)
        return process_streams(
            config.command,
            {name: self._environment[name] for name in names if name in self._environment},
        )

    async def _close(self) -> None:
        self._client = None
        self._stop.set()
        if self._holder is not None:
            holder, self._holder = self._holder, None
            _, late = await asyncio.wait({holder}, timeout=10)
            for task in late:
                task.cancel()
            await asyncio.gather(holder, return_exceptions=True)


async def _listed(client: Client) -> list[RemoteTool]:
    found: list[RemoteTool] = []
    cursor = None
    for _ in range(_MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        found += page.tools
        cursor = page.next_cursor
        if not cursor:
            break
    return found


class McpTool:
    """One tool of a server."""

    def __init__(self, spec: ToolSpec, name: str, server: McpServer) -> None:
        """Offer the server's tool `name` under the name of `spec`."""
        self.spec = spec
        self._name = name
        self._server = server

    async def call(self, arguments: Mapping[str, Any], aside: Aside) -> ToolAnswer:  # noqa: ARG002 - the protocol's
        """Return what the server gives.

        Raises:
            ToolError: It failed, took too long, or the server is gone.
        """
        return await self._server.call(self._name, arguments)
