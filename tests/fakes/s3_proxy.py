"""A proxy in front of a real object store, which answers some requests with an error of its own."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.fakes.served import QuietHandler, Served


class Passed(NamedTuple):
    """One request that came in, and the status that it was answered with."""

    method: str
    target: str
    status: int


class Proxy(Served):
    """Passes requests on with the headers that their signature covers."""

    def __init__(self, address: str, fault: Callable[[str, str], int | None]) -> None:
        """Stand in front of `address`; `fault` gives a status in place of the store's answer."""
        self._host = urlsplit(address).netloc
        self._fault = fault
        self.requests: list[Passed] = []

    def handler(self) -> type[BaseHTTPRequestHandler]:
        return _handler_of(self)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a request, by a fault or as the store does."""
        method, target = request.command, request.path
        data = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        status = self._fault(method, target)
        headers: list[tuple[str, str]] = []
        body = b"<Error><Code>Scripted</Code></Error>"
        if status is None:
            connection = http.client.HTTPConnection(self._host)
            connection.request(method, target, data, dict(request.headers))
            found = connection.getresponse()
            status, body, headers = found.status, found.read(), found.getheaders()
            connection.close()
        self.requests.append(Passed(method, target, status))
        request.send_response(status)
        for name, value in headers:
            if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                request.send_header(name, value)
        if status != 204:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if method != "HEAD" and status != 204:
            request.wfile.write(body)


def _handler_of(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(QuietHandler):
        def do_GET(self) -> None:  # noqa: N802 - the name that the library calls
            proxy.answer(self)

        # The names that the library calls.
        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    return Handler
