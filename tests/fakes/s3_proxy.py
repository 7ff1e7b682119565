"""A proxy in front of a real object store, which gives some requests trouble of its own."""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.fakes.served import QuietHandler, Served


class Trouble(StrEnum):
    """What happens to a request beside an error status."""

    CUT_UPLOAD = "cut upload"
    """The connection ends in the middle of the request; the store never sees it."""
    LOST_ANSWER = "lost answer"
    """The store does what is asked, and the connection ends before it says so."""
    CUT_DOWNLOAD = "cut download"
    """The connection ends in the middle of the answer."""
    SILENCE = "silence"
    """Nothing is answered for longer than clients wait; the store never sees the request."""
    STALE_ETAG = "stale ETag"
    """A put that must meet a version is told that it does not; other requests go through."""
    CONFLICT = "conflict"
    """A put on condition is told 409, as S3 does where it meets a delete; others go through."""


Fault = Callable[[str, str], "int | Trouble | None"]
"""Returns the status or the trouble of a request, from its method and target; None passes it on."""

_CODES = {
    409: "ConditionalRequestConflict", 412: "PreconditionFailed", 500: "InternalError", 503: "SlowDown",
}  # fmt: skip


class Passed(NamedTuple):
    """One request that came in, and the status that it was answered with; 0 where the line was cut."""

    method: str
    target: str
    status: int


class Proxy(Served):
    """Passes requests on with the headers that their signature covers."""

    def __init__(self, address: str, fault: Fault, silence_s: float = 35.0) -> None:
        """Stand in front of `address`; `fault` says what a request meets in place of the store."""
        self._host = urlsplit(address).netloc
        self._fault = fault
        self._silence_s = silence_s
        self.requests: list[Passed] = []

    def handler(self) -> type[BaseHTTPRequestHandler]:
        return _handler_of(self)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a request, by a fault or as the store does."""
        method, target = request.command, request.path
        fault = self._fault(method, target)
        if fault in {Trouble.STALE_ETAG, Trouble.CONFLICT}:
            fault = _refusal(fault, request)
        length = int(request.headers.get("Content-Length") or 0)
        if fault is Trouble.CUT_UPLOAD:
            request.rfile.read(length // 2)
            self._hang_up(request)
            return
        data = request.rfile.read(length)
        if fault is Trouble.SILENCE:
            time.sleep(self._silence_s)
            self._hang_up(request)
            return
        if isinstance(fault, int):
            code = _CODES.get(fault, "Scripted")
            self._say(request, fault, [], f"<Error><Code>{code}</Code></Error>".encode())
            return
        status, headers, body = self._pass_on(request, data)
        if fault is Trouble.LOST_ANSWER:
            self._hang_up(request)
            return
        self._say(request, status, headers, body, cut=fault is Trouble.CUT_DOWNLOAD)

    def _pass_on(
        self, request: BaseHTTPRequestHandler, data: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self._host)
        connection.request(request.command, request.path, data, dict(request.headers))
        found = connection.getresponse()
        status, body, headers = found.status, found.read(), found.getheaders()
        connection.close()
        return status, headers, body

    def _say(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        headers: list[tuple[str, str]],
        body: bytes,
        *,
        cut: bool = False,
    ) -> None:
        is_head = request.command == "HEAD"
        self.requests.append(Passed(request.command, request.path, status))
        request.send_response(status)
        for name, value in headers:
            # The length that a HEAD tells of is not that of its own, empty body.
            if name.lower() not in {"transfer-encoding", "connection"} and (
                name.lower() != "content-length" or is_head
            ):
                request.send_header(name, value)
        if status != 204 and not (is_head and headers):
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if cut:
            request.wfile.write(body[: len(body) // 2])
            self._hang_up(request)
        elif not is_head and status != 204:
            request.wfile.write(body)

    def _hang_up(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append(Passed(request.command, request.path, 0))
        request.close_connection = True
        with suppress(OSError):
            request.connection.shutdown(socket.SHUT_RDWR)


class RandomFaults:
    """Picks faults at random, by a seed; `met` counts what was picked."""

    def __init__(
        self, seed: object, rates: Mapping[int | Trouble, float], max_silences: int = 0
    ) -> None:
        """Pick each fault for its share of all requests, silences no more often than that."""
        self._random = random.Random(str(seed))
        self._rates = dict(rates)
        self._silences = max_silences
        self._lock = threading.Lock()
        self.met: Counter[int | Trouble] = Counter()

    def __call__(self, method: str, target: str) -> int | Trouble | None:
        with self._lock:
            drawn = self._random.random()
            for fault, rate in self._rates.items():
                drawn -= rate
                if drawn < 0:
                    return self._pick(fault)
        return None

    def _pick(self, fault: int | Trouble) -> int | Trouble | None:
        if fault is Trouble.SILENCE:
            if self._silences == 0:
                return None
            self._silences -= 1
        self.met[fault] += 1
        return fault


def _refusal(trouble: int | Trouble | None, request: BaseHTTPRequestHandler) -> int | None:
    """Return the status that a put on condition is refused with; None for another request."""
    if request.command != "PUT":
        return None
    must_match, must_be_new = (request.headers.get(n) for n in ("If-Match", "If-None-Match"))
    if trouble is Trouble.STALE_ETAG:
        return 412 if must_match else None
    return 409 if must_match or must_be_new else None


def _handler_of(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(QuietHandler):
        def do_GET(self) -> None:  # noqa: N802 - the name that the library calls
            # A killed client is gone before its answer.
            with suppress(ConnectionError):
                proxy.answer(self)

        # The names that the library calls.
        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    return Handler
