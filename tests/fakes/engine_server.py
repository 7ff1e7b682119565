"""A fake engine: OpenAI's protocol over a real socket, with answers that follow from the request.

Answers are made from the request's JSON Schema and a hash of its prompt, so the same question has
the same answer in every process. Faults are scripted by call number. Runs in a thread as a context
manager, or as a process: `python -m tests.fakes.engine_server` prints its URL as one JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MODEL = "fake-model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong with a call, in place of an answer."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    """Close the connection in the middle of the body."""
    hang_s: float = 0.0
    """Wait before answering."""
    content: str | None = None
    """Answer 200 with this content."""
    message: Mapping[str, Any] | None = None
    """Answer 200 with this message, in place of `content`."""
    finish_reason: str = "stop"
    usage: object = ...
    """What the answer says of its usage; None leaves it out."""
    events: Sequence[bytes] | None = None
    """Stream these pieces as they are, and close the connection."""
    stall_s: float = 0.0
    """Wait in the middle of a stream."""

    @property
    def answers(self) -> bool:
        """Tell whether there is an answer, such as it is."""
        return self.content is not None or self.message is not None or bool(self.stall_s)


Script = Callable[[int, Mapping[str, Any]], Fault | None]
"""Returns the fault of a call, from its number (from 0) and its body."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # With the default of 5, connections beyond it wait a second for their next try.
    request_queue_size = 256

    def __init__(self, port: int, engine: FakeEngine) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _handler(engine))

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that are gone: tests break them."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def die(self) -> None:
        """Take no more connections, and drop those there are."""
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class FakeEngine:
    """The server; `calls` keeps every request body in order of arrival."""

    def __init__(
        self,
        *,
        port: int = 0,
        max_model_len: int = 8192,
        script: Script | None = None,
        api_key: str | None = None,
        latency_s: float = 0.0,
        log: Path | None = None,
        bursts_miss: bool = False,
        kv_cache_tokens: int | None = None,
    ) -> None:
        """Serve on a port of 127.0.0.1, any free one where 0.

        Args:
            port: Where it listens.
            max_model_len: Context it tells of, in tokens.
            script: What goes wrong.
            api_key: Key that it asks for.
            latency_s: Seconds that every answer takes.
            bursts_miss: Whether its cache knows a prompt only after it has been answered.
            kv_cache_tokens: Size of its KV cache, which it tells as vLLM does; None: it does not.
            log: File that gets one JSON line per call as it arrives, which is when it is paid.
        """
        self.calls: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.max_model_len = max_model_len
        self.script = script
        self.api_key = api_key
        self.latency_s = latency_s
        self.bursts_miss = bursts_miss
        self.metrics: str | None = None
        """What it tells of its load."""
        self.num_read = 0
        self._log = None if log is None else log.open("a", encoding="utf-8")
        self.lock = threading.Lock()
        self.prefixes: set[str] = set()
        self.cached: list[tuple[str, int]] = []
        """Prompts with the tokens of each that the cache had, in order of arrival."""
        self.kv_cache_tokens = kv_cache_tokens
        self.tells_cached = True
        self.answered: set[int] = set()
        """Numbers of the calls that were answered, or are just being."""
        self.lost: set[int] = set()
        """Numbers of the calls that were dropped by a restart."""
        self.life = 0
        self._is_dying = False
        self._server = _Server(port, self)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> FakeEngine:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def restart(self, down_s: float) -> None:
        """Drop all connections, be away for so long, and come back at the same port, the cache cold."""
        port = self._server.server_address[1]
        with self.lock:
            self._is_dying = True
        # Answers that are being written come to their end, further ones are not begun.
        time.sleep(0.1)
        self._server.die()
        with self.lock:
            self.lost |= set(range(len(self.calls))) - self.answered
            self.prefixes.clear()
            self.life += 1
            self._is_dying = False
        time.sleep(down_s)
        self._server = _Server(port, self)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def begin_answer(self, number: int, life: int) -> None:
        """Take down that a call is answered now.

        Raises:
            ConnectionResetError: The engine has been restarted since the call came.
        """
        with self.lock:
            if self._is_dying or life != self.life:
                raise ConnectionResetError
            self.answered.add(number)

    def note(self, body: Mapping[str, Any]) -> None:
        """Write down a call; the caller holds the lock."""
        if self._log is not None:
            text = json.dumps(body["messages"], sort_keys=True)
            key = hashlib.sha256(text.encode()).hexdigest()[:16]
            self._log.write(json.dumps({"call": key}) + "\n")
            self._log.flush()

    def serve_until_killed(self) -> None:
        self._server.serve_forever()


def answer(schema: Mapping[str, Any], seed: str) -> Any:
    """Return a value that follows the schema, picked by the seed."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:6], "big")
    if "enum" in schema:
        return schema["enum"][number % len(schema["enum"])]
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0]
    if "pattern" in schema:
        tries = (f"2026-01-{1 + number % 28:02d}", str(number % 1000 / 8), f"L{1 + number % 3}")
        return next(text for text in tries if re.fullmatch(schema["pattern"], text))
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: answer(sub, f"{seed}.{name}") for name, sub in properties.items()}
    if kind == "array":
        return [answer(schema.get("items", {}), f"{seed}[{i}]") for i in range(number % 3)]
    plain: dict[str, Any] = {
        "integer": number % 1000,
        "number": number % 1000 / 8,
        "boolean": number % 2 == 0,
    }
    return plain.get(str(kind), f"answer {number % 1000}")


def _handler(engine: FakeEngine) -> type[BaseHTTPRequestHandler]:  # noqa: C901 - a class within
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        _is_counted = False

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            if not self._allowed():
                return
            if self.path == "/v1/models":
                model = {"id": MODEL, "object": "model", "max_model_len": engine.max_model_len}
                self._send(200, {"object": "list", "data": [model]})
            elif self.path == "/health":
                self._send_text(200, b"")
            elif self.path == "/metrics" and engine.kv_cache_tokens is not None:
                info = f'block_size="16",num_gpu_blocks="{engine.kv_cache_tokens // 16}"'
                self._send_text(200, f"vllm:cache_config_info{{{info}}} 1.0\n".encode())
            elif self.path == "/metrics" and engine.metrics is not None:
                engine.num_read += 1
                self._send_text(200, engine.metrics.encode())
            else:
                self._send(404, {"error": {"message": f"no such path {self.path}"}})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self._allowed():
                return
            if not self.path.endswith("/chat/completions"):
                self._send(404, {"error": {"message": f"no such path {self.path}"}})
                return
            with engine.lock:
                number = len(engine.calls)
                engine.calls.append(body)
                engine.note(body)
                engine.headers.append(dict(self.headers))
                engine.in_flight += 1
                engine.most_in_flight = max(engine.most_in_flight, engine.in_flight)
                self._is_counted = True
            try:
                self._complete(number, body)
            finally:
                self._leave()

        def _leave(self) -> None:
            """Count the request out: before its last byte, at which the client may send another."""
            with engine.lock:
                engine.in_flight -= self._is_counted
                self._is_counted = False

        def _allowed(self) -> bool:
            if (
                engine.api_key is None
                or self.headers.get("Authorization") == f"Bearer {engine.api_key}"
            ):
                return True
            self._send(401, {"error": {"message": "invalid key"}})
            return False

        def _complete(self, number: int, body: Mapping[str, Any]) -> None:
            prompt = _prompt_of(body)
            cached = _cached_tokens(engine, prompt)
            engine.cached.append((prompt, cached))
            if not engine.bursts_miss:
                _keep_prefixes(engine, prompt)
            life = engine.life
            time.sleep(engine.latency_s)
            _keep_prefixes(engine, prompt)
            fault = engine.script(number, body) if engine.script else None
            if fault is not None and fault.hang_s:
                time.sleep(fault.hang_s)
            engine.begin_answer(number, life)
            if fault is not None and not (fault.answers or (fault.hang_s and not fault.cut)):
                self._fail(fault)
                return
            completion = _completion(engine, body, fault, cached)
            if completion is None:
                self._send(400, {"error": {"message": "prompt is longer than the context"}})
            elif body.get("stream"):
                self._stream(completion, fault.stall_s if fault else 0.0)
            else:
                self._send(200, completion)

        def _stream(self, completion: Mapping[str, Any], stall_s: float) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for number, event in enumerate(_events(completion)):
                if stall_s and number == 1:
                    time.sleep(stall_s)
                self._piece(b"data: " + event + b"\n\n")
            self._leave()
            self._piece(b"data: [DONE]\n\n")
            self.wfile.write(b"0\r\n\r\n")

        def _piece(self, data: bytes) -> None:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

        def _fail(self, fault: Fault) -> None:
            self._leave()
            if fault.events is not None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(b"".join(fault.events))
                self.close_connection = True
                return
            if fault.cut:
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices": [')
                self.close_connection = True
                return
            self.send_response(fault.status)
            for name, value in fault.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(fault.body)))
            self.end_headers()
            self.wfile.write(fault.body)

        def _send(self, status: int, value: Mapping[str, Any]) -> None:
            self._leave()
            self._send_text(status, json.dumps(value).encode(), "application/json")

        def _send_text(self, status: int, data: bytes, kind: str = "text/plain") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


def _prompt_of(body: Mapping[str, Any]) -> str:
    return json.dumps(body["messages"], sort_keys=True)


def _completion(
    engine: FakeEngine, body: Mapping[str, Any], fault: Fault | None, cached_tokens: int
) -> dict[str, Any] | None:
    prompt = _prompt_of(body)
    num_tokens = len(prompt.encode()) // 3
    if num_tokens > engine.max_model_len:
        return None
    schema = (
        body.get("response_format", {}).get("json_schema", {}).get("schema", {"type": "string"})
    )
    content = json.dumps(answer(schema, prompt))
    message: dict[str, Any] = {"role": "assistant", "content": content}
    finish_reason = "stop"
    if fault is not None and fault.content is not None:
        message["content"], finish_reason = fault.content, fault.finish_reason
    if fault is not None and fault.message is not None:
        message, finish_reason = {"role": "assistant", **fault.message}, fault.finish_reason
    usage: Any = {
        "prompt_tokens": num_tokens,
        "completion_tokens": len(json.dumps(message)) // 4 + 1,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }
    if not engine.tells_cached:
        del usage["prompt_tokens_details"]
    if fault is not None and fault.usage is not ...:
        usage = fault.usage
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "message": message,
                "finish_reason": finish_reason,
            }
        ],
    } | ({} if usage is None else {"usage": usage})


def _events(completion: Mapping[str, Any]) -> list[bytes]:
    """Return a completion as vLLM streams it: role, pieces, finish reason, then the usage alone."""
    head = {"id": completion["id"], "object": "chat.completion.chunk", "model": completion["model"]}
    choice = completion["choices"][0]
    message = choice["message"]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    for name in ("reasoning", "reasoning_content", "content"):
        text = message.get(name)
        if isinstance(text, str):
            deltas += [{name: text[i : i + 12]} for i in range(0, len(text), 12)]
        elif text:
            deltas.append({name: text})
    if message.get("tool_calls"):
        deltas.append({"tool_calls": message["tool_calls"]})
    events: list[dict[str, Any]] = [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        for delta in deltas
    ]
    end = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}
    events.append({**head, "choices": [end]})
    if "usage" in completion:
        events.append({**head, "choices": [], "usage": completion["usage"]})
    return [json.dumps(event).encode() for event in events]


def _cached_tokens(engine: FakeEngine, prompt: str) -> int:
    """Return the tokens of the longest prefix seen before, in blocks of 64 characters."""
    with engine.lock:
        known = itertools.takewhile(engine.prefixes.__contains__, _prefixes(prompt))
        return sum(64 for _ in known) // 3


def _keep_prefixes(engine: FakeEngine, prompt: str) -> None:
    with engine.lock:
        engine.prefixes.update(_prefixes(prompt))


def _prefixes(prompt: str) -> Iterator[str]:
    digest = hashlib.sha256()
    for start in range(0, len(prompt) - 64, 64):
        digest.update(prompt[start : start + 64].encode())
        yield digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--max-model-len", type=int, default=262_144)
    parser.add_argument("--latency-s", type=float, default=0.0)
    parser.add_argument("--log", type=Path)
    engine = FakeEngine(**vars(parser.parse_args()))
    sys.stdout.write(json.dumps({"url": engine.url}) + "\n")
    sys.stdout.flush()
    engine.serve_until_killed()


if __name__ == "__main__":
    main()
