"""A fake host that counts tokens over a real socket: vLLM's `/tokenize` and Moonshot's estimate.

A token is a word, or whatever `count` says. Statuses in place of an answer are scripted by call.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MARKS = 3
"""Tokens around a message, which the estimate counts as well."""


class TokenServer:
    """The server; `calls` keeps path and body of every call in order of arrival."""

    def __init__(
        self,
        *,
        count: Callable[[str], int] = lambda text: len(text.split()),
        tokenize: bool = True,
        estimate: bool = True,
        api_key: str | None = None,
        script: Callable[[int], int | bytes | None] = lambda _: None,
        delay_s: float = 0.0,
    ) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        self.count, self.api_key, self.script, self.delay_s = count, api_key, script, delay_s
        self.paths = [
            *(["/tokenize"] if tokenize else []),
            *(["/v1/tokenizers/estimate-token-count"] if estimate else []),
        ]
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> TokenServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if path == "/tokenize":
            assert body["add_special_tokens"] is False
            num_tokens = self.count(body["prompt"])
            return {"count": num_tokens, "max_model_len": 8192, "tokens": list(range(num_tokens))}
        (message,) = body["messages"]
        assert message["content"]
        return {"data": {"total_tokens": self.count(message["content"]) + MARKS}}


def _handler(server: TokenServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                number = len(server.calls)
                server.calls.append((self.path, body))
                server.in_flight += 1
                server.most_in_flight = max(server.most_in_flight, server.in_flight)
            time.sleep(server.delay_s)
            with server.lock:
                server.in_flight -= 1
            fault = server.script(number)
            if server.api_key and self.headers.get("Authorization") != f"Bearer {server.api_key}":
                self._send(401, b'{"error": {"message": "invalid key"}}')
            elif self.path not in server.paths:
                self._send(404, b'{"detail": "Not Found"}')
            elif isinstance(fault, int):
                self._send(fault, b'{"error": {"message": "scripted"}}')
            else:
                told = json.dumps(server.answer(self.path, body)).encode()
                self._send(200, told if fault is None else fault)

        def _send(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler
