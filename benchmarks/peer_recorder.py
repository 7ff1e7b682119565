"""A server that keeps what each arm of benchmarks/peers.py asks it, and tells where two arms differ.

Answers follow from the request's JSON Schema and the user's text alone, so that a stage that names an earlier
one's answer asks every arm the same.
"""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_LATENCY_S = 0.05
"""So that requests overlap, and the most in flight can be seen."""


@dataclass
class Recorder:
    """What has been asked since it was last taken."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    def take(self) -> tuple[list[dict[str, Any]], int]:
        """Return the bodies and the most in flight, and begin anew."""
        found = self.bodies, self.most_in_flight
        self.bodies, self.most_in_flight = [], 0
        return found


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # With the default of 5, connections beyond it wait a second for their next try.
    request_queue_size = 256


@contextmanager
def recording(model: str, context_tokens: int) -> Iterator[Recorder]:
    """Serve on a free port of this machine."""
    recorder = Recorder(url="")
    handler = _handler(recorder, threading.Lock(), model, context_tokens)
    server = _Server(("127.0.0.1", 0), handler)
    recorder.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield recorder
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def differences(
    wanted: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return what sets the second arm's requests apart from the first's, in words; empty where nothing.

    The order of the requests is left out; so are names of schemas, and how a list of choices is written.
    """
    said = []
    if len(found) != len(wanted):
        said.append(f"{len(found)} requests, not {len(wanted)}")
    for part in ("system", "user", "max_tokens", "temperature", "schema"):
        ours, theirs = (Counter(_part(part, body) for body in bodies) for bodies in (wanted, found))
        if ours != theirs:
            num = sum((theirs - ours).values())
            said.append(f"{part} of {num}" if num else f"{part} of fewer")
    if not said and Counter(map(_whole, wanted)) != Counter(map(_whole, found)):
        said.append("parts belong together in another way")
    return said


def _whole(body: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(
        _part(part, body) for part in ("system", "user", "max_tokens", "temperature", "schema")
    )


def _part(part: str, body: Mapping[str, Any]) -> str:
    if part in {"system", "user"}:
        return "".join(_text(one) for one in body.get("messages", []) if one["role"] == part)
    if part == "schema":
        asked = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
        return json.dumps(_plain(asked), sort_keys=True)
    value = body.get(part)
    return "none" if value is None else f"{float(value)}"


def _text(message: Mapping[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _plain(schema: object) -> object:
    """Return a schema without titles, and lists of choices without the type that they imply."""
    if not isinstance(schema, dict):
        return schema
    left_out = {"title"} | ({"type"} if "enum" in schema else set())
    return {key: _plain(value) for key, value in schema.items() if key not in left_out}


def _answer(body: Mapping[str, Any]) -> str:
    """Return an object with a choice for each field, picked by the user's text."""
    asked = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
    number = zlib.crc32(_part("user", body).encode())
    fields = asked.get("properties", {}).items()
    return json.dumps({name: one["enum"][number % len(one["enum"])] for name, one in fields})


def _handler(
    recorder: Recorder, lock: threading.Lock, model: str, context_tokens: int
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            one = {"id": model, "object": "model", "max_model_len": context_tokens}
            self._send(json.dumps({"object": "list", "data": [one]}).encode(), "application/json")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if body.get("messages"):
                with lock:
                    recorder.bodies.append(body)
                    recorder.in_flight += 1
                    recorder.most_in_flight = max(recorder.most_in_flight, recorder.in_flight)
                time.sleep(_LATENCY_S)
                with lock:
                    recorder.in_flight -= 1
            if body.get("stream"):
                self._send(_events(model, _answer(body)), "text/event-stream")
            else:
                self._send(_whole_answer(model, _answer(body)), "application/json")

        def _send(self, data: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


_USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


def _whole_answer(model: str, content: str) -> bytes:
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1_760_000_000}
    return json.dumps({**head, "model": model, "choices": [choice], "usage": _USAGE}).encode()


def _events(model: str, content: str) -> bytes:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": model}
    choices: list[list[dict[str, Any]]] = [
        [{"index": 0, "delta": {"role": "assistant", "content": content}, "finish_reason": None}],
        [{"index": 0, "delta": {}, "finish_reason": "stop"}],
    ]
    events: list[dict[str, Any]] = [{**head, "choices": choice} for choice in choices]
    events.append({**head, "choices": [], "usage": _USAGE})
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return "".join([*lines, "data: [DONE]\n\n"]).encode()
