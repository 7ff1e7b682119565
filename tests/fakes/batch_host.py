"""A fake host with a batch API: files and batches over a real socket, kept as long as it lives.

It refuses what Moonshot's host refuses (platform.kimi.ai/docs/api/batch-create): a file that is too large,
empty, of two models, with a `custom_id` twice, another window. Its answers are those of the fake engine, so
a question has the same answer in a batch as at once. Tests read `kept` and set `rules`, in their own
process or over `/control`; as a process of its own: `python -m tests.fakes.batch_host`.
"""

from __future__ import annotations

import argparse
import email
import email.policy
import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.fakes.batch_rules import Kept, Refused, Rules
from tests.fakes.engine_server import MODEL, answer

ENDED = ("completed", "failed", "expired", "cancelled")
_MODEL = {"id": MODEL, "object": "model", "max_model_len": 8192}
_UNITS_S = {"h": 3600, "d": 86_400}


class BatchHostServer:
    """The host; a context manager that serves from a thread."""

    def __init__(self, *, port: int = 0, api_key: str | None = None) -> None:
        self.rules, self.kept = Rules(), Kept()
        self.api_key = api_key
        self.lock = threading.RLock()
        self._looks: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._numbers = 0
        self._num_ended = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve_until_killed(self) -> None:
        self._server.serve_forever()

    def set(self, **changes: Any) -> None:
        with self.lock:
            self.rules = replace(self.rules, **changes)
            self.kept.calls.clear()
            self._refused.clear()
            self._lost.clear()

    def _id(self, kind: str) -> str:
        self._numbers += 1
        return f"{kind}-{self._numbers:05d}"

    def count(self, call: str) -> None:
        """Take down a call, or refuse it."""
        with self.lock:
            self.kept.calls.append(call)
            status = self.rules.refuse.get(call)
            if status is not None and self._refused[call] < self.rules.refuse_times:
                self._refused[call] += 1
                raise Refused(status, f"{call} is refused")

    def is_lost(self, call: str) -> bool:
        """Tell whether the answer of a call that was done does not arrive."""
        with self.lock:
            if self._lost[call] >= self.rules.lose_answers.get(call, 0):
                return False
            self._lost[call] += 1
            return True

    def halts(self, call: str, *, before: bool) -> None:
        """Stand still for good where the rules say so; whoever called is killed meanwhile."""
        with self.lock:
            rules = self.rules
            if rules.halt not in {call, "any"} or before != rules.halt_before:
                return
            if rules.halt_after > 0:
                self.rules = replace(rules, halt_after=rules.halt_after - 1)
                return
            self.rules = replace(rules, halt="")
            self.kept.halted += 1
        time.sleep(3600)

    def add_file(self, name: str, purpose: str, data: bytes) -> dict[str, Any]:
        if purpose != "batch" or not name.endswith(".jsonl"):
            raise Refused(400, f"no batch file: purpose {purpose!r}, name {name!r}")
        if not data or len(data) > self.rules.max_bytes:
            raise Refused(413, f"the file has {len(data)} bytes")
        with self.lock:
            if len(self.kept.files) >= self.rules.max_files:
                raise Refused(400, "the organization has too many files")
            file_id = self._id("file")
            self.kept.files[file_id] = (name, data)
        return self.file(file_id)

    def file(self, file_id: str) -> dict[str, Any]:
        name, data = self.kept.files[file_id]
        return {
            "id": file_id,
            "object": "file",
            "filename": name,
            "bytes": len(data),
            "purpose": "batch",
        }

    def begin(self, body: Mapping[str, Any]) -> dict[str, Any]:
        window = str(body.get("completion_window", ""))
        if body.get("endpoint") != "/v1/chat/completions":
            raise Refused(400, "endpoint is not /v1/chat/completions")
        found = re.fullmatch(r"(\d+)([hd])", window)
        if not found or not 12 * 3600 <= int(found[1]) * _UNITS_S[found[2]] <= 7 * 86_400:
            raise Refused(400, f"completion_window {window!r} is not between 12h and 7d")
        if body["input_file_id"] not in self.kept.files:
            raise Refused(400, f"no file {body['input_file_id']}")
        with self.lock:
            batch_id = self._id("batch")
            lines = [json.loads(line) for line in self._lines(body["input_file_id"])]
            errors = _errors(lines)
            now = int(time.time())
            batch = {
                "id": batch_id,
                "object": "batch",
                "endpoint": body["endpoint"],
                "input_file_id": body["input_file_id"],
                "completion_window": window,
                "status": "failed" if errors else "validating",
                "created_at": now,
                "expires_at": now + int(found[1]) * _UNITS_S[found[2]],
                "request_counts": {"completed": 0, "failed": 0, "total": len(lines)},
                "metadata": body.get("metadata") if self.rules.keeps_metadata else None,
                "output_file_id": None,
                "error_file_id": None,
                "errors": {"object": "list", "data": errors} if errors else None,
            }
            self.kept.batches[batch_id] = batch
            if not errors:
                self.kept.submitted.append([line["custom_id"] for line in lines])
                self.kept.bodies += [line["body"] for line in lines]
                self.kept.contents.update(
                    json.dumps(line["body"]["messages"], sort_keys=True) for line in lines
                )
        return batch

    def _lines(self, file_id: str) -> list[bytes]:
        return [line for line in self.kept.files[file_id][1].split(b"\n") if line]

    def look(self, batch_id: str) -> dict[str, Any]:
        with self.lock:
            batch = self.kept.batches.get(batch_id)
            if batch is None or self.rules.forgets:
                raise Refused(404, f"no batch {batch_id}")
            self._looks[batch_id] += 1
            is_due = self.rules.takes_to_end and self._looks[batch_id] >= self.rules.num_looks
            if batch["status"] not in ENDED:
                batch["status"] = "in_progress"
                if is_due:
                    self.end(batch_id)
            return batch

    def end(self, batch_id: str) -> None:
        """Answer the lines of a batch, all or some, and end it."""
        batch, rules = self.kept.batches[batch_id], self.rules
        if self._num_ended >= rules.bad_batches:
            rules = Rules()
        self._num_ended += 1
        lines = [json.loads(line) for line in self._lines(batch["input_file_id"])]
        output, errors = [], []
        for number, line in enumerate(lines):
            if rules.leave_out and number % rules.leave_out == 0:
                continue
            if rules.fail_status and number % rules.fail_every == 0:
                error = {"error": {"message": "it failed", "code": "server_error"}}
                errors.append(_out(line["custom_id"], rules.fail_status, error))
            else:
                bad = bool(rules.invalid_every) and number % rules.invalid_every == 0
                output.append(_out(line["custom_id"], 200, _completion(line["body"], bad=bad)))
        if rules.ends_as == "failed":
            output, errors = [], []
        output += [_out(f"stranger-{n}", 200, {"choices": []}) for n in range(rules.strangers)]
        if rules.double:
            output = [one for one in output for _ in range(2)]
        if rules.shuffle:
            output.reverse()
        if rules.ends_as == "expired":
            errors += [
                {
                    "id": "x",
                    "custom_id": line["custom_id"],
                    "response": None,
                    "error": {"code": "batch_expired", "message": "not executed in time"},
                }
                for number, line in enumerate(lines)
                if rules.leave_out and number % rules.leave_out == 0
            ]
        batch["output_file_id"] = self._put("output", output)
        batch["error_file_id"] = self._put("error", errors)
        batch["status"] = rules.ends_as
        batch[f"{rules.ends_as}_at"] = batch["created_at"] + 60
        batch["request_counts"] |= {"completed": len(output), "failed": len(errors)}

    def content(self, file_id: str) -> bytes:
        if file_id not in self.kept.files:
            raise Refused(404, f"no file {file_id}")
        return self.kept.files[file_id][1]

    def remove(self, file_id: str) -> dict[str, Any]:
        with self.lock:
            if self.kept.files.pop(file_id, None) is None:
                raise Refused(404, f"no file {file_id}")
        return {"id": file_id, "deleted": True}

    def at_once(self, body: Mapping[str, Any]) -> dict[str, Any]:
        with self.lock:
            self.kept.at_once += 1
        return _completion(body)

    def _put(self, kind: str, lines: list[dict[str, Any]]) -> str | None:
        if not lines:
            return None
        file_id = self._id(kind)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        self.kept.files[file_id] = (f"{kind}.jsonl", text.encode())
        return file_id


def _errors(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the host finds wrong with a file when it looks into it."""
    found, seen = [], set()
    for number, line in enumerate(lines, start=1):
        body = line.get("body") or {}
        if line["custom_id"] in seen:
            found.append({"code": "duplicate", "line": number, "message": "custom_id stands twice"})
        seen.add(line["custom_id"])
        if line.get("method") != "POST" or line.get("url") != "/v1/chat/completions":
            found.append({"code": "invalid", "line": number, "message": "method or url"})
        if body.get("stream"):
            found.append({"code": "invalid", "line": number, "message": "stream is not possible"})
        if "REFUSE THIS" in json.dumps(body.get("messages")):
            found.append({"code": "invalid", "line": number, "message": "this line is refused"})
    if len({line["body"].get("model") for line in lines}) > 1:
        found.append({"code": "model_mismatch", "line": None, "message": "more than one model"})
    return found


def _out(custom_id: str, status: int, body: Mapping[str, Any]) -> dict[str, Any]:
    response = {"status_code": status, "request_id": "r", "body": body}
    return {"id": "x", "custom_id": custom_id, "response": response, "error": None}


def _completion(body: Mapping[str, Any], *, bad: bool = False) -> dict[str, Any]:
    prompt = json.dumps(body["messages"], sort_keys=True)
    schema = (
        body.get("response_format", {}).get("json_schema", {}).get("schema", {"type": "string"})
    )
    # U+2028 ends a line for some readers of text, and none of JSON.
    content = "no JSON\u2028at all" if bad else json.dumps(answer(schema, prompt))
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content},
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": len(prompt.encode()) // 3,
            "completion_tokens": len(content) // 4 + 1,
        },
    }


def _handler(host: BatchHostServer) -> type[BaseHTTPRequestHandler]:  # noqa: C901 - a class within
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self._data = b""
            self._answer("GET")

        def do_POST(self) -> None:
            self._data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer("POST")

        def do_DELETE(self) -> None:
            self._data = b""
            self._answer("DELETE")

        def _answer(self, method: str) -> None:
            parts = urlsplit(self.path)
            path = parts.path.removeprefix("/v1")
            if path == "/control":
                self._control()
                return
            if host.api_key and self.headers.get("Authorization") != f"Bearer {host.api_key}":
                self._send(401, {"error": {"message": "invalid key"}})
                return
            call = _call(method, path)
            try:
                host.count(call)
                host.halts(call, before=True)
                value = self._do(call, path, parse_qs(parts.query))
                host.halts(call, before=False)
                if host.is_lost(call):
                    self.close_connection = True
                    return
            except Refused as exc:
                self._send(exc.status, {"error": {"message": str(exc)}})
                return
            if isinstance(value, bytes):
                self._send_bytes(200, value)
            else:
                self._send(200, value)

        def _do(self, call: str, path: str, query: Mapping[str, list[str]]) -> Any:
            last = path.rsplit("/", 1)[-1]
            todo: dict[str, Callable[[], Any]] = {
                "upload": lambda: host.add_file(*_form(self.headers["Content-Type"], self._data)),
                "begin": lambda: host.begin(json.loads(self._data)),
                "look": lambda: host.look(last),
                "list": lambda: self._list(path, query),
                "content": lambda: host.content(path.split("/")[2]),
                "remove": lambda: host.remove(last),
                "models": lambda: {"object": "list", "data": [_MODEL]},
                "at_once": lambda: host.at_once(json.loads(self._data)),
            }
            if call not in todo:
                raise Refused(404, f"no such path {path}")
            return todo[call]()

        def _list(self, path: str, query: Mapping[str, list[str]]) -> dict[str, Any]:
            with host.lock:
                if path == "/files":
                    return {"object": "list", "data": [host.file(one) for one in host.kept.files]}
                # The latest first, page by page.
                every = list(reversed(host.kept.batches.values()))
            if not host.rules.lists_batches:
                every = []
            after = query.get("after", [""])[0]
            start = next((n + 1 for n, one in enumerate(every) if one["id"] == after), 0)
            page = every[start : start + host.rules.page]
            return {
                "object": "list",
                "data": page,
                "has_more": start + host.rules.page < len(every),
            }

        def _control(self) -> None:
            if self._data:
                host.set(**json.loads(self._data))
            kept = host.kept
            self._send(
                200,
                {
                    "submitted": kept.submitted,
                    "calls": kept.calls,
                    "halted": kept.halted,
                    "at_once": kept.at_once,
                    "files": len(kept.files),
                    "rules": asdict(host.rules),
                },
            )

        def _send(self, status: int, value: Mapping[str, Any]) -> None:
            self._send_bytes(status, json.dumps(value).encode())

        def _send_bytes(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


def _call(method: str, path: str) -> str:
    """Return the name of a call."""
    known = {
        ("GET", "/models"): "models",
        ("POST", "/chat/completions"): "at_once",
        ("POST", "/files"): "upload",
        ("POST", "/batches"): "begin",
        ("GET", "/files"): "list",
        ("GET", "/batches"): "list",
    }
    other = "content" if path.endswith("/content") else "remove" if method == "DELETE" else "look"
    return known.get((method, path), "unknown" if method == "POST" else other)


def _form(kind: str, data: bytes) -> tuple[str, str, bytes]:
    """Return name, purpose and content of the file in a multipart form."""
    head = f"Content-Type: {kind}\r\n\r\n".encode()
    message = email.message_from_bytes(head + data, policy=email.policy.HTTP)
    name, purpose, content = "", "", b""
    for part in message.iter_parts():
        payload = part.get_payload(decode=True)
        assert isinstance(payload, bytes)
        if part.get_filename() is not None:
            name, content = str(part.get_filename()), payload
        else:
            purpose = payload.decode()
    return name, purpose, content


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    host = BatchHostServer(**vars(parser.parse_args()))
    sys.stdout.write(json.dumps({"url": host.url}) + "\n")
    sys.stdout.flush()
    host.serve_until_killed()


if __name__ == "__main__":
    main()
