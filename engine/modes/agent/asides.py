"""Questions that tools put to the model: each is paid for once, however many agents come to ask it.

Ten agents that want the digest of one document share one call, and a request that is taken up again finds
the answer on record.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from engine.embeddings import Vector, Vectors
from engine.endpoint import Endpoint
from engine.errors import RequestTooLong
from engine.modes.mode import LogFailed, Send
from engine.modes.sight import look
from engine.prompt import ASIDE, user_text
from engine.request import ModeName, Request, content_key
from engine.steps import Answered, Embedded, StepLog
from engine.tool import ToolError
from engine.wire import Turn, body_of, opening_messages


class Embed(Protocol):
    """Makes texts into vectors, at the cost of the request behind a call."""

    async def __call__(self, texts: Sequence[str], *, are_queries: bool) -> Vectors:
        """Return one vector for each text, in their order."""


class Asides:
    """The questions put aside in one batch, by what they ask."""

    def __init__(self) -> None:
        self._asked: dict[str, asyncio.Event] = {}

    async def answer(self, key: str, steps: StepLog, ask: Callable[[], Awaitable[Answered]]) -> str:
        """Return the answer to the question with this key; one asks, the others wait for it.

        Args:
            key: What is asked.
            steps: Where answers are kept.
            ask: Asks it.

        Raises:
            LogFailed: The answer cannot be kept.
            ToolError: No answer came; that is on record too, since it is paid for, and is asked again.
        """
        while True:
            for known in steps.events(key):
                if isinstance(known, Answered) and known.text:
                    return known.text
            asked = self._asked.get(key)
            if asked is None:
                break
            # Who asks may fail or be cancelled; then one of those who waited asks.
            await asked.wait()
        self._asked[key] = asyncio.Event()
        try:
            answered = await ask()
            try:
                await steps.add(key, answered)
            except Exception as exc:
                # A tool stands in between, whose own failures are told to the model; this is none.
                raise LogFailed(f"the answer to a tool's question is not on record: {exc}") from exc
            if not answered.text:
                raise ToolError("the model gave no answer to that; ask otherwise")
            return answered.text
        finally:
            self._asked.pop(key).set()


@dataclass(frozen=True, slots=True, kw_only=True)
class OneAside:
    """What the tool behind one call asks the model with."""

    call_id: str
    asides: Asides
    request: Request
    endpoint: Endpoint
    send: Send
    steps: StepLog
    embed_texts: Embed

    async def embed(self, texts: Sequence[str], *, are_queries: bool = False) -> Sequence[Vector]:
        """Return the vectors of some texts, in their order; what they cost is on record when it returns.

        Raises:
            LogFailed: It cannot be put on record.
        """
        found = await self.embed_texts(texts, are_queries=are_queries)
        assert found.usage is not None
        event = Embedded(
            num_texts=len(texts),
            usage=found.usage,
            cost_usd=found.cost_usd,
            gpu_seconds=found.gpu_seconds,
            engine=found.engine,
        )
        try:
            await self.steps.add(content_key("vectors", self.request.request_key), event)
        except Exception as exc:
            # A tool stands in between, whose own failures are told to the model; this is none.
            raise LogFailed(f"what vectors cost is not on record: {exc}") from exc
        return found.vectors

    async def ask(
        self,
        question: str,
        material: str = "",
        *,
        images: Sequence[Path] = (),
        max_tokens: int = 800,
    ) -> str:
        """Return the answer as plain text.

        Raises:
            ToolError: The model takes no images, the material is too long, or no answer came.
        """
        if images and not self.endpoint.profile.capabilities.images:
            name = self.endpoint.profile.name
            raise ToolError(f"the model of {name!r} takes no images; read the text instead")
        parts = [hashlib.sha256(path.read_bytes()).hexdigest() for path in images]
        model = self.request.adapter or self.endpoint.model
        key = content_key("aside", model, question, material, parts, max_tokens)

        async def ask() -> Answered:
            return await self._ask(question, material, images, max_tokens)

        return await self.asides.answer(key, self.steps, ask)

    async def _ask(
        self, question: str, material: str, images: Sequence[Path], max_tokens: int
    ) -> Answered:
        mode: ModeName = "instant" if "instant" in self.endpoint.profile.modes else "thinking"
        request = Request(
            request_key=self.request.request_key,
            stage=self.request.stage,
            mode=mode,
            instructions=ASIDE,
            material=material,
            images=tuple(images),
            question=question,
            schema={},
            max_output_tokens=max_tokens,
            adapter=self.request.adapter,
        )
        messages = opening_messages(request, user_text(material, question))
        turn = Turn(mode=mode, messages=messages, max_tokens=max_tokens)
        try:
            reply = await self.send(body_of(turn, request, self.endpoint))
        except RequestTooLong as exc:
            raise ToolError("that is too much text for one question; ask about less") from exc
        sight = look(reply, mode)
        assert reply.usage is not None
        return Answered(
            text=sight.answer,
            usage=reply.usage,
            cost_usd=reply.cost_usd,
            gpu_seconds=reply.gpu_seconds,
        )
