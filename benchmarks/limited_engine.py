"""A fake host with limits of its own, which counts by its own windows what breaks them and what it was used for.

`python -m benchmarks.limited_engine '{"max_in_flight": 50, ...}'` prints its URL and serves until it is killed.
Answers come after random times, streamed; in bursts all calls are refused with 429, in turn with and without
a Retry-After. `GET /figures` returns what was counted so far.
"""

from __future__ import annotations

import asyncio
import bisect
import dataclasses
import json
import math
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.fast_engine import ANSWER_HEAD, ANSWER_TAIL, MODELS, response

MINUTE_S = 60.0
_STEP_S = 0.01
_TOKENS = re.compile(rb"(\d+) tokens")
_MAX_TOKENS = re.compile(rb'"max_tokens": ?(\d+)')


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the host allows, and how it behaves."""

    max_in_flight: int
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    refuses: bool = False
    """Whether it answers 429 to more in flight than it allows; otherwise it only counts them."""
    latency_s: float = 1.0
    """Median of the answers' times; a tenth takes three times as long."""
    first_token_s: float = 0.1
    """Median of the times until the first event."""
    burst_every_s: float = 30.0
    """Mean time between bursts; they last 1 to 4 s."""
    seed: int = 1


@dataclass
class Book:
    """All that happened, for the figures."""

    rules: Rules
    arrivals: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """Of all calls so far, beginning with 0."""
    changes: list[tuple[float, int]] = field(default_factory=lambda: [(0.0, 0)])
    """When the number of calls in flight changed, and to what."""
    bursts: list[tuple[float, float]] = field(default_factory=list)
    refused: int = 0
    over: dict[str, int] = field(default_factory=lambda: {"in_flight": 0, "calls": 0, "tokens": 0})
    """Arrivals that broke a limit."""

    def __post_init__(self) -> None:
        self.tokens.append(0)

    def arrived(self, now: float, tokens: int) -> None:
        """Count a call, refused or not."""
        self.arrivals.append(now)
        self.tokens.append(self.tokens[-1] + tokens)
        calls, used = self.minute(now)
        self.over["calls"] += calls > (self.rules.requests_per_minute or math.inf)
        self.over["tokens"] += used > (self.rules.tokens_per_minute or math.inf)

    def minute(self, now: float) -> tuple[int, int]:
        """Return the calls and tokens of the minute before."""
        end = bisect.bisect_right(self.arrivals, now)
        begin = bisect.bisect_right(self.arrivals, now - MINUTE_S)
        return end - begin, self.tokens[end] - self.tokens[begin]

    def in_flight(self, now: float) -> int:
        """Return how many calls were in flight."""
        return self.changes[bisect.bisect_right(self.changes, (now, sys.maxsize)) - 1][1]

    def figures(self, now: float) -> dict[str, object]:
        """Return how far each limit was used, from when it was reached first, outside bursts."""
        rules = self.rules
        times = [number * _STEP_S for number in range(int(now / _STEP_S))]
        quiet = [at for at in times if not any(begin <= at < end for begin, end in self.bursts)]
        used = {"in_flight": _used([(at, self.in_flight(at)) for at in quiet], rules.max_in_flight)}
        if rules.requests_per_minute:
            minutes = [(at, self.minute(at)[0]) for at in quiet]
            used["calls"] = _used(minutes, rules.requests_per_minute)
        if rules.tokens_per_minute:
            minutes = [(at, self.minute(at)[1]) for at in quiet]
            used["tokens"] = _used(minutes, rules.tokens_per_minute)
        return {
            "used": used,
            "violations": sum(self.over.values()),
            "over": self.over,
            "refused": self.refused,
            "calls": len(self.arrivals),
            "bursts": len([begin for begin, _ in self.bursts if begin < now]),
        }


def _used(levels: Sequence[tuple[float, int]], limit: int) -> float:
    """Return the mean level as a share of the limit, from when it was reached first."""
    if not levels:  # no step has passed yet, or none outside a burst
        return 0.0
    full = next((n for n, (_, level) in enumerate(levels) if level >= 0.97 * limit), None)
    if full is None:
        return sum(level for _, level in levels) / len(levels) / limit
    rest = levels[full:]
    return sum(min(level, limit) for _, level in rest) / len(rest) / limit


class _Host:
    def __init__(self, rules: Rules) -> None:
        self.rules, self.book, self.random = rules, Book(rules), random.Random(rules.seed)
        self.loop = asyncio.get_running_loop()
        self.started = self.loop.time()
        self.in_flight = 0
        at = 0.0
        while at < 3600:
            at += self.random.uniform(0.5, 1.5) * rules.burst_every_s
            length = self.random.uniform(1, 4)
            self.book.bursts.append((at, at + length))
            at += length

    @property
    def now(self) -> float:
        return self.loop.time() - self.started

    def change(self, step: int) -> None:
        self.in_flight += step
        self.book.changes.append((self.now, self.in_flight))

    def refusal(self) -> bytes | None:
        """Return the answer to a call that is refused; None where it is taken."""
        now = self.now
        for number, (begin, end) in enumerate(self.book.bursts):
            if begin <= now < end:
                if number % 2:
                    return _busy(None)
                # It keeps to what it says: whole seconds, and nobody is let in before.
                after = math.ceil(end - now)
                self.book.bursts[number] = (begin, now + after)
                return _busy(after)
        if self.rules.refuses and self.in_flight >= self.rules.max_in_flight:
            return _busy(None)
        return None


def _busy(retry_after: int | None) -> bytes:
    more = "" if retry_after is None else f"Retry-After: {retry_after}\r\n"
    return (
        f"HTTP/1.1 429 Too Many Requests\r\n{more}Content-Type: application/json\r\n"
        "Content-Length: 2\r\n\r\n{}"
    ).encode()


class _Connection(asyncio.Protocol):
    def __init__(self, host: _Host) -> None:
        self._held, self._host = b"", host
        self._timers: list[asyncio.TimerHandle] = []
        self._is_counted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        for timer in self._timers:
            timer.cancel()
        self._leave()

    def data_received(self, data: bytes) -> None:
        self._held += data
        end = self._held.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._held[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._held) < end + 4 + length:
            return
        body, self._held = self._held[end + 4 : end + 4 + length], b""
        if head.startswith(b"post"):
            self._called(body)
        elif b"/figures" in head.split(b"\r\n", 1)[0]:
            figures = json.dumps(self._host.book.figures(self._host.now)).encode()
            self._transport.write(response("application/json", figures))
        else:
            self._transport.write(MODELS)

    def _called(self, body: bytes) -> None:
        host, later = self._host, self._host.loop.call_later
        told, most = _TOKENS.search(body), _MAX_TOKENS.search(body)
        assert told is not None
        assert most is not None
        host.book.arrived(host.now, int(told[1]) + int(most[1]))
        refusal = host.refusal()
        if refusal is not None:
            host.book.refused += 1
            self._timers = [later(0.005, self._transport.write, refusal)]
            return
        host.change(1)
        self._is_counted = True
        host.book.over["in_flight"] += host.in_flight > host.rules.max_in_flight
        first_s = host.rules.first_token_s * host.random.lognormvariate(0, 0.5)
        whole_s = first_s + host.rules.latency_s * host.random.lognormvariate(0, 0.86)
        self._timers = [
            later(first_s, self._transport.write, ANSWER_HEAD),
            later(whole_s, self._finish),
        ]

    def _finish(self) -> None:
        self._leave()
        self._transport.write(ANSWER_TAIL)

    def _leave(self) -> None:
        if self._is_counted:
            self._is_counted = False
            self._host.change(-1)


async def _serve(rules: Rules) -> None:
    host = _Host(rules)
    server = await host.loop.create_server(lambda: _Connection(host), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sys.stdout.write(f"http://127.0.0.1:{port}/v1\n")
    sys.stdout.flush()
    async with server:
        await server.serve_forever()


def arguments(rules: Rules) -> list[str]:
    """Return the command that serves them."""
    text = json.dumps(dataclasses.asdict(rules))
    return [sys.executable, "-m", "benchmarks.limited_engine", text]


if __name__ == "__main__":
    asyncio.run(_serve(Rules(**json.loads(sys.argv[1]))))
