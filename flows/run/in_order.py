"""Brings any number of inquiries to their ends, in their order, with a bounded number in memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import aclosing
from functools import partial
from itertools import chain, count, islice
from typing import TYPE_CHECKING

from flows.run.families import Family

if TYPE_CHECKING:
    from flows.run.families import Scheduler
    from flows.run.rows import Answered, Inquiry

MAX_INQUIRIES = 256
"""Most inquiries whose material is in memory at a time."""
MAX_TOKENS = 2_000_000
"""Tokens of material that are in memory at a time, where they are of more inquiries than are in flight."""


async def in_order(
    scheduler: Scheduler, inquiries: Iterable[Inquiry], *, max_in_flight: int
) -> AsyncGenerator[Answered, None]:
    """Yield the ends of inquiries of one stage, each a prefix family, in their order.

    Others are begun as soon as the oldest has ended. Where the stage escalates, a number of them come to
    their ends before the next are begun, since which are asked again depends on them all.
    """
    every = iter(inquiries)
    first = next(every, None)
    if first is None:
        return
    every = chain([first], every)
    if first.stage.escalate is None:
        async with aclosing(_streamed(scheduler, every, max_in_flight)) as ends:
            async for end in ends:
                yield end
        return
    while slab := _slab(every, max_in_flight):
        async with aclosing(_streamed(scheduler, slab, max_in_flight)) as ends:
            found = [end async for end in ends]
        for end in await scheduler.ask_again(found):
            yield end


async def _streamed(
    scheduler: Scheduler, inquiries: Iterable[Inquiry], max_in_flight: int
) -> AsyncGenerator[Answered, None]:
    ends: dict[int, Answered] = {}
    held: deque[int] = deque()
    """Tokens of the inquiries that are in memory, the oldest first."""
    changed = asyncio.Event()
    room = asyncio.Event()

    async def ask(number: int, inquiry: Inquiry, family: int) -> None:
        ends[number] = await scheduler.ask(inquiry, family)
        changed.set()

    async def families() -> AsyncIterator[Family]:
        for number, inquiry in enumerate(inquiries):
            held.append(inquiry.material_tokens)
            yield Family(tokens=inquiry.material_tokens, work=partial(ask, number, inquiry))
            while _is_full(held, max_in_flight):
                room.clear()
                await room.wait()

    work = asyncio.create_task(scheduler.work_off(families()))
    work.add_done_callback(lambda _: changed.set())
    try:
        for number in count():
            while number not in ends and not work.done():
                changed.clear()
                await changed.wait()
            if number not in ends:
                # Raises what has ended it.
                work.result()
                return
            yield ends.pop(number)
            held.popleft()
            room.set()
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


def _is_full(held: deque[int], max_in_flight: int) -> bool:
    return len(held) >= MAX_INQUIRIES or (sum(held) >= MAX_TOKENS and len(held) >= max_in_flight)


def _slab(inquiries: Iterator[Inquiry], max_in_flight: int) -> list[Inquiry]:
    slab: list[Inquiry] = []
    held: deque[int] = deque()
    for inquiry in islice(inquiries, MAX_INQUIRIES):
        slab.append(inquiry)
        held.append(inquiry.material_tokens)
        if _is_full(held, max_in_flight):
            break
    return slab
