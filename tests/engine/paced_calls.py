"""Calls that wait at a gate of `engine.batch.pace`, and the clock they wait by."""

import asyncio

from engine.profile import RateTier


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def tier(max_in_flight=4, **limits):
    return RateTier(name="t", max_in_flight=max_in_flight, **limits)


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


class Call:
    """A call in a task of its own: in its place until it is let go."""

    def __init__(self, pace, name=None, tokens=1, priority=0, log=None):
        self.pace, self.name, self.log = pace, name, [] if log is None else log
        self.end = asyncio.Event()
        self.place = None
        self.error = None
        self.task = asyncio.create_task(self._go(tokens, priority))

    async def _go(self, tokens, priority):
        async with self.pace.place(tokens, priority) as place:
            self.place = place
            self.log.append(self.name)
            await self.end.wait()
            if self.error is not None:
                raise self.error

    @property
    def is_out(self):
        return self.place is not None

    async def finish(self, error=None):
        self.error = error
        self.end.set()
        await asyncio.gather(self.task, return_exceptions=True)
        await settle()
