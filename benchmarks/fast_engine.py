"""A fake engine that costs next to nothing: fixed answers over a socket, thousands a second.

`python -m benchmarks.fast_engine PORT DELAY_S` serves until it is killed. Answers look like vLLM's, streamed in
events of 16 tokens or in one piece, as the request asks.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.machine import ROOT

if TYPE_CHECKING:
    from engine.batch import Route
    from engine.profile import Profile

MODEL = "fast"
_ANSWER = json.dumps({"topic": "b"})
_USAGE = {
    "prompt_tokens": 500,
    "completion_tokens": 7,
    "total_tokens": 507,
    "prompt_tokens_details": {"cached_tokens": 384},
}


def response(kind: str, payload: bytes) -> bytes:
    """Return an HTTP answer in one piece."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(payload)}\r\n\r\n"
    return head.encode() + payload


def _chunks(payload: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in payload)


def _event(choices: list[dict[str, object]], **more: object) -> bytes:
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_760_000_000,
        "model": MODEL,
        "choices": choices,
        **more,
    }
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def _delta(delta: dict[str, object], finish: str | None = None) -> list[dict[str, object]]:
    return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWER_HEAD = _HEAD + _chunks([_event(_delta({"role": "assistant", "content": ""}))])
"""A streamed answer up to its first event."""
ANSWER_TAIL = (
    _chunks([
        _event(_delta({"content": _ANSWER})),
        _event(_delta({"content": ""}, "stop")),
        _event([], usage=_USAGE),
        b"data: [DONE]\n\n",
    ])
    + b"0\r\n\r\n"
)
"""The rest of it."""
_STREAM = ANSWER_HEAD + ANSWER_TAIL
_WHOLE = response(
    "application/json",
    json.dumps({
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": _ANSWER},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": _USAGE,
    }).encode(),
)
MODELS = response(
    "application/json",
    json.dumps({"data": [{"id": MODEL, "object": "model", "max_model_len": 32_768}]}).encode(),
)


class _Connection(asyncio.Protocol):
    def __init__(self, delay_s: float) -> None:
        self._held, self._delay_s = b"", delay_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._held += data
        while (end := self._held.find(b"\r\n\r\n")) >= 0:
            head = self._held[:end].lower()
            length = 0
            if (at := head.find(b"content-length:")) >= 0:
                length = int(head[at + 15 :].split(b"\r\n", 1)[0])
            if len(self._held) < end + 4 + length:
                return
            body = self._held[end + 4 : end + 4 + length]
            self._held = self._held[end + 4 + length :]
            if head.startswith(b"get"):
                self._transport.write(MODELS)
            else:
                streamed = b'"stream":true' in body.replace(b" ", b"")
                answer = _STREAM if streamed else _WHOLE
                if self._delay_s:
                    loop = asyncio.get_running_loop()
                    loop.call_later(self._delay_s, self._transport.write, answer)
                else:
                    self._transport.write(answer)


def route(url: str, *, max_in_flight: int, streamed: bool) -> Route:
    """Return the way to this engine."""
    from engine.profile import Capabilities, ModeSettings, Profile

    profile = Profile(
        name="fast",
        base_url=url,
        max_in_flight=max_in_flight,
        capabilities=Capabilities(structured_output=True, stream=streamed),
        modes={"instant": ModeSettings(sampling={"temperature": 0.6})},
    )
    return route_of(profile)


def route_of(profile: Profile) -> Route:
    """Return the way to the endpoint of a profile that is served already."""
    from engine.batch import route_to
    from engine.endpoint import open_endpoint

    endpoint = open_endpoint(
        profile,
        venv=Path("none"),
        cache=Path("none"),
        environment={},
        api_key=None,
        notify=lambda _: None,
    )
    return route_to(endpoint)


@contextmanager
def serving(delay_s: float = 0.0) -> Iterator[str]:
    """Serve in a process of its own, each answer after a delay, and yield the base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [sys.executable, "-m", "benchmarks.fast_engine", str(port), str(delay_s)]
    server = subprocess.Popen(argv, cwd=ROOT)
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


async def _serve(port: int, delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(delay_s), "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2])))
