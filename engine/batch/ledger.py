"""Has it on record that a request is about to be paid for, before it is: the ledger's intent.

With the results behind it, a later attempt knows of every request whether it was answered, never
sent, or sent with an unknown end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from typing import Protocol

from engine.request import Request, Result

WINDOW = 64
"""Most requests that are on record and not yet sent, and most results that are not yet flushed."""

_END = object()


class Log(Protocol):
    """What outlasts this process; journal, replay and audit read it."""

    async def intend(self, request_keys: Sequence[str]) -> None:
        """Return when it is on record that these requests are about to be sent."""

    def note(self, result: Result) -> None:
        """Take a result down; it is on record soon after."""


async def on_record(
    requests: AsyncIterable[Request], log: Log | None, *, ahead: int = WINDOW
) -> AsyncGenerator[Request, None]:
    """Yield the requests in order, each after the log has it.

    Works ahead by at most `ahead` requests, and `WINDOW`, so that a place that becomes free does not
    wait for the log, and several share one entry. What is taken ahead cannot be overtaken any more.
    """
    if log is None:
        async for request in requests:
            yield request
        return
    half = max(1, min(WINDOW, ahead) // 2)
    taken: asyncio.Queue[object] = asyncio.Queue(half)
    ready: asyncio.Queue[object] = asyncio.Queue(half)
    tasks = [
        asyncio.create_task(_take(requests, taken)),
        asyncio.create_task(_intend(taken, ready, log)),
    ]
    try:
        while (item := await ready.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            assert isinstance(item, Request)
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _take(requests: AsyncIterable[Request], taken: asyncio.Queue[object]) -> None:
    """Put the requests into `taken`, and at their end what ended them."""
    try:
        async for request in requests:
            await taken.put(request)
        await taken.put(_END)
    except Exception as exc:  # noqa: BLE001 - handed on, and raised by the reader of `on_record`
        await taken.put(exc)


async def _intend(taken: asyncio.Queue[object], ready: asyncio.Queue[object], log: Log) -> None:
    """Log what `taken` holds, all at once, and pass it on to `ready`."""
    try:
        while True:
            batch = [await taken.get()]
            while not taken.empty():
                batch.append(taken.get_nowait())
            # What goes through a batch is put on record when the batch is.
            keys = [
                item.request_key
                for item in batch
                if isinstance(item, Request) and item.batch_api is None
            ]
            if keys:
                await log.intend(keys)
            for item in batch:
                await ready.put(item)
    except Exception as exc:  # noqa: BLE001 - handed on, and raised by the reader of `on_record`
        await ready.put(exc)
