"""A scripted model server: OpenAI's chat completions over a real socket, with calls of tools.

What it answers follows from the body it is sent (tests.fakes.agent_scripts), what goes wrong from a
hash of the messages and how often that very body came (tests.fakes.agent_faults); what a strict host
refuses it refuses (tests.fakes.agent_checks). So a client that is killed, resumed or reordered cannot
be answered by a sequence that the server had in mind. Runs in a thread as a context manager, or as a
process: `python -m tests.fakes.agent_server --script ledger` prints its URL as one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aiohttp import web

from tests.fakes.agent_checks import num_foreign_ids, refusal
from tests.fakes.agent_faults import CallFault, Faults, Latency, ReplyFault, wire_call
from tests.fakes.agent_script import Body, Script, ScriptedReply, is_thinking
from tests.fakes.agent_scripts import Injected, LedgerWalk, Swarm, WideSearch
from tests.fakes.async_server import AsyncServer
from tests.fakes.engine_server import _prefixes

MODEL = "scripted"
BYTES_PER_TOKEN = 3


@dataclass(slots=True, kw_only=True)
class Received:
    """One request, and what became of it."""

    number: int
    """From 0, in order of arrival."""
    body: Body
    nth: int
    """How often this very body had come before."""
    arrived_s: float
    """On the monotonic clock."""
    ended_s: float | None = None
    """None while it is open, or when the client went away."""
    kind: Literal["open", "answered", "refused"] | ReplyFault = "open"
    status: int = 200
    refusal: str | None = None
    """Why it was refused with 400."""
    call_faults: tuple[CallFault | None, ...] = ()
    """What went wrong with each call of the answer."""
    num_foreign_ids: int = 0
    """Calls in its history whose id is not `functions.name:idx`."""


class AgentServer(AsyncServer):
    """The server; `received` keeps every request in order of arrival."""

    def __init__(
        self,
        script: Script,
        *,
        port: int = 0,
        faults: Faults | None = None,
        latency: float | Latency = 0.0,
        strict: bool = True,
        max_model_len: int = 262_144,
        reasoning_field: Literal["reasoning_content", "reasoning"] = "reasoning_content",
        api_key: str | None = None,
        log: Path | None = None,
    ) -> None:
        """Take a port of 127.0.0.1, any free one where 0.

        Args:
            script: Who answers.
            port: Where it listens.
            faults: What goes wrong; None: nothing.
            latency: Seconds that an answer takes, fixed or drawn; others go on meanwhile.
            strict: Whether it refuses what Moonshot refuses.
            max_model_len: Context in tokens of 3 bytes; prompt and max_tokens beyond it are a 400.
            reasoning_field: Where it puts its thinking: as Moonshot and SGLang, or as vLLM.
            api_key: Key that it asks for.
            log: File that gets one JSON line per request as it arrives.
        """
        super().__init__(port)
        self.script = script
        self.faults = faults or Faults()
        self.latency = latency
        self.strict = strict
        self.max_model_len = max_model_len
        self.reasoning_field = reasoning_field
        self.api_key = api_key
        self.received: list[Received] = []
        self.counts: Counter[str] = Counter()
        """Requests by kind, calls in answers (`calls`), and broken calls by kind."""
        self.in_flight = 0
        self.most_in_flight = 0
        self._log = log
        self._bodies: Counter[str] = Counter()
        self._prompts: set[str] = set()

    @property
    def bodies(self) -> list[Body]:
        """Return the bodies in order of arrival."""
        return [one.body for one in self.received]

    def routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/v1/models", self._models)
        router.add_post("/v1/chat/completions", self._complete)

    async def _models(self, _: web.Request) -> web.Response:
        model = {"id": MODEL, "object": "model", "max_model_len": self.max_model_len}
        return web.json_response({"object": "list", "data": [model]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return _error(401, "invalid key")
        body = await request.json()
        one = self._receive(body)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._answer(request, one)
        finally:
            self.in_flight -= one.ended_s is None

    def _receive(self, body: Body) -> Received:
        key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        one = Received(
            number=len(self.received),
            body=body,
            nth=self._bodies[key],
            arrived_s=time.monotonic(),
            num_foreign_ids=num_foreign_ids(body),
        )
        self._bodies[key] += 1
        self.received.append(one)
        self.counts["requests"] += 1
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as log:
                log.write(json.dumps({"call": key[:16], "nth": one.nth}) + "\n")
        return one

    def _end_of(self, one: Received, kind: Any, status: int = 200) -> None:
        """Count a request out: before its last byte, at which the client may send another."""
        self.in_flight -= 1
        one.kind, one.status, one.ended_s = kind, status, time.monotonic()
        self.counts[kind] += 1

    async def _answer(self, request: web.Request, one: Received) -> web.StreamResponse:
        body = one.body
        one.refusal = self._too_long(body) or (refusal(body) if self.strict else None)
        if one.refusal is not None:
            self._end_of(one, "refused", 400)
            return _error(400, one.refusal)
        wait = self.latency
        await asyncio.sleep(wait.of(body, one.nth) if isinstance(wait, Latency) else wait)
        fault = self.faults.of_reply(body, one.nth)
        if fault in {"empty_body", "too_many", "server_error"}:
            return self._fail(one, fault)
        completion = self._completion(one, fault)
        if body.get("stream"):
            return await self._stream(request, one, completion, fault)
        if fault == "stall":
            await asyncio.sleep(self.faults.stall_s)
        self._end_of(one, fault or "answered")
        return web.json_response(completion)

    def _fail(self, one: Received, fault: str) -> web.Response:
        status = {"empty_body": 200, "too_many": 429, "server_error": 500}[fault]
        self._end_of(one, fault, status)
        if fault == "empty_body":
            return web.Response(body=b"")
        if fault == "server_error":
            return _error(500, "internal error")
        wait = {"Retry-After": str(self.faults.retry_after_s)}
        return _error(429, "max organization concurrency is reached, please try again", wait)

    def _too_long(self, body: Body) -> str | None:
        tokens, most = _prompt_tokens(body), body.get("max_tokens") or 0
        if tokens + most <= self.max_model_len:
            return None
        return (
            f"This model's maximum context length is {self.max_model_len} tokens. However, you requested"
            f" {most} output tokens and your prompt contains {tokens} input tokens."
        )

    def _completion(self, one: Received, fault: str | None) -> dict[str, Any]:
        body = one.body
        reply = self.script.reply(body)
        if fault == "blank_answer":
            reply = ScriptedReply(reasoning=reply.reasoning)
        message: dict[str, Any] = {"role": "assistant", "content": reply.content}
        if is_thinking(body) and reply.reasoning:
            message[self.reasoning_field] = reply.reasoning
        calls = self._calls(one, reply)
        if calls:
            message["tool_calls"] = calls
        usage = reply.usage or {
            "prompt_tokens": _prompt_tokens(body),
            "completion_tokens": len(json.dumps(message).encode()) // BYTES_PER_TOKEN + 1,
            "prompt_tokens_details": {"cached_tokens": self._cached(body)},
        }
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": reply.finish_reason or ("tool_calls" if calls else "stop"),
        }
        return {
            "id": f"chatcmpl-{one.number}",
            "object": "chat.completion",
            "model": body.get("model", MODEL),
            "choices": [choice],
            "usage": usage,
        }

    def _calls(self, one: Received, reply: ScriptedReply) -> list[dict[str, Any]]:
        """Return the calls of an answer; ids go on from the number of calls in the history."""
        before = sum(len(m.get("tool_calls") or ()) for m in one.body["messages"])
        single = one.body.get("parallel_tool_calls") is False
        wire = []
        for number, call in enumerate(reply.calls[:1] if single else reply.calls):
            fault = self.faults.of_call(one.body, one.nth, number)
            call_id = f"functions.{call.name}:{before + number}"
            wire.append(wire_call(call, call_id, fault, one.body))
            one.call_faults += (fault,)
            self.counts["calls"] += 1
            if fault is not None:
                self.counts[fault] += 1
        return wire

    def _cached(self, body: Body) -> int:
        """Return the tokens of the longest prefix that came before; only the usage tells of it."""
        prefixes = list(_prefixes(json.dumps(body["messages"])))
        known = sum(1 for _ in itertools.takewhile(self._prompts.__contains__, prefixes))
        self._prompts.update(prefixes[known:])
        return known * 64 // BYTES_PER_TOKEN

    async def _stream(
        self,
        request: web.Request,
        one: Received,
        completion: Mapping[str, Any],
        fault: str | None,
    ) -> web.StreamResponse:
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        for number, event in enumerate(_events(completion, one.body)):
            if fault == "stall" and number == 1:
                await asyncio.sleep(self.faults.stall_s)
            await stream.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self._end_of(one, fault or "answered")
        await stream.write(b"data: [DONE]\n\n")
        await stream.write_eof()
        return stream


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    error = {"message": message, "type": "invalid_request_error" if status == 400 else "error"}
    return web.json_response({"error": error}, status=status, headers=headers)


def _prompt_tokens(body: Body) -> int:
    text = json.dumps([body["messages"], body.get("tools")], ensure_ascii=False)
    return len(text.encode()) // BYTES_PER_TOKEN


def _events(completion: Mapping[str, Any], body: Body) -> Iterator[dict[str, Any]]:
    """Yield a completion as vLLM streams it: role, thinking, content, calls in pieces, end, usage."""
    head = {name: completion[name] for name in ("id", "model")}
    head["object"] = "chat.completion.chunk"
    choice = completion["choices"][0]
    for delta in _deltas(choice["message"]):
        yield {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    end = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}
    yield {**head, "choices": [end]}
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {**head, "choices": [], "usage": completion["usage"]}


def _deltas(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": ""}
    for name in ("reasoning_content", "reasoning", "content"):
        for piece in _pieces(message.get(name) or ""):
            yield {name: piece}
    for index, call in enumerate(message.get("tool_calls") or ()):
        function = {"name": call["function"]["name"], "arguments": ""}
        yield {"tool_calls": [{"index": index, **call, "function": function}]}
        for piece in _pieces(call["function"]["arguments"]):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def _pieces(text: str) -> Iterator[str]:
    return (text[i : i + 12] for i in range(0, len(text), 12))


def main() -> None:
    scripts: dict[str, type[Any]] = {
        "ledger": LedgerWalk,
        "wide": WideSearch,
        "swarm": Swarm,
        "injected": Injected,
    }
    parser = argparse.ArgumentParser()
    parser.add_argument("--script", choices=scripts, required=True)
    parser.add_argument("--options", type=json.loads, default={}, help="the script's, as JSON")
    parser.add_argument("--faults", type=json.loads, default={}, help="rates, as JSON")
    parser.add_argument("--broken-calls", type=float, default=0.0, help="rate over all kinds")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency-s", type=float, default=0.0)
    parser.add_argument("--max-model-len", type=int, default=262_144)
    parser.add_argument("--log", type=Path)
    told = parser.parse_args()
    server = AgentServer(
        scripts[told.script](**told.options),
        port=told.port,
        faults=Faults.broken_calls(told.broken_calls, **told.faults),
        latency=told.latency_s,
        max_model_len=told.max_model_len,
        log=told.log,
    )
    sys.stdout.write(json.dumps({"url": server.url}) + "\n")
    sys.stdout.flush()
    server.serve_until_killed()


if __name__ == "__main__":
    main()
