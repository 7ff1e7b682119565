"""An aiohttp server on a port of 127.0.0.1, in a thread as a context manager or until it is killed."""

from __future__ import annotations

import asyncio
import socket
import threading
from abc import ABC, abstractmethod
from typing import Self

from aiohttp import web


class AsyncServer(ABC):
    """Serves what `routes` adds; `url` is known before it starts, and what it calls waits until then."""

    def __init__(self, port: int = 0) -> None:
        """Take a port, any free one where 0."""
        self._socket = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.serve_until_killed, daemon=True)
        self._end = asyncio.Event()
        """Set when the server is to end; whoever hangs waits for it."""

    @abstractmethod
    def routes(self, router: web.UrlDispatcher) -> None:
        """Add what is served."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def serve_until_killed(self) -> None:
        """Serve in this thread."""
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()
            self._socket.close()

    async def _serve(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        self.routes(app.router)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.SockSite(runner, self._socket, backlog=1024).start()
        await self._end.wait()
        await runner.cleanup()
