"""The peer of run_against_loop: recorded bodies, the openai client and a semaphore; nothing of Headrace.

`python plain_loop.py URL IN_FLIGHT BODIES ANSWERS SALT` prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

_NOT_OPENAI = {"priority", "cache_salt", "stream_interval"}


async def send_all(
    url: str, in_flight: int, bodies: list[dict[str, Any]], answers: Path, *, salt: str
) -> dict[str, float]:
    """Send the bodies, as many at a time as places, and return what it took."""
    started = time.monotonic()
    client = AsyncOpenAI(base_url=url, api_key="none", timeout=600)
    places = asyncio.Semaphore(in_flight)
    totals = {"tokens": 0, "prompt": 0, "cached": 0}
    left_out = {*_NOT_OPENAI, "stream", "stream_options"}

    with answers.open("w", encoding="utf-8") as file:

        async def one(body: dict[str, Any]) -> None:
            async with places:
                plain = {key: value for key, value in body.items() if key not in left_out}
                extra = {"priority": body.get("priority", 0), "cache_salt": salt}
                answer = await client.chat.completions.create(**plain, extra_body=extra)
                totals["tokens"] += answer.usage.total_tokens
                totals["prompt"] += answer.usage.prompt_tokens
                totals["cached"] += answer.usage.prompt_tokens_details.cached_tokens or 0
                file.write(json.dumps(json.loads(answer.choices[0].message.content)) + "\n")

        await asyncio.gather(*map(one, bodies))
    seconds = time.monotonic() - started
    return {"tokens_per_s": totals["tokens"] / seconds, **totals, "seconds": seconds}


if __name__ == "__main__":
    to, at_once, recorded, kept, own_salt = sys.argv[1:]
    requests = json.loads(Path(recorded).read_text(encoding="utf-8"))
    found = asyncio.run(send_all(to, int(at_once), requests, Path(kept), salt=own_salt))
    sys.stdout.write(json.dumps(found))
