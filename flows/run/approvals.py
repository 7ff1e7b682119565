"""Calls that wait until a person has agreed to them: asked and decided by way of the sink.

The question lies at `runs/<run>/approvals/<id>.json`, the decision is put beside it; both outlast every process,
so whoever decides need not be where the run is. Decisions are part of the run: an audit finds who agreed to what.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from connectors.sinks.lake import Lake
from engine.modes.mode import AwaitingApproval
from engine.request import Request, content_key
from engine.steps import AskedCall, Decided
from engine.tool import ToolSpec

_ID_CHARS = 10
_NUM_THREADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A call that somebody has to decide on."""

    approval_id: str
    stage: str
    request_key: str
    call_id: str
    tool: str
    description: str
    arguments: str
    """As the model wrote them."""
    asked_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What somebody has decided."""

    is_approved: bool
    by: str
    reason: str
    decided_at: str


Ask = Callable[[Question], tuple[bool, str]]
"""Asks whoever sits at the terminal; returns whether they agree, and why."""


class SinkApproval:
    """The engine's approval for one run."""

    def __init__(self, lake: Lake, run_id: str, ask: Ask | None) -> None:
        """Take where decisions lie.

        Args:
            lake: The sink.
            run_id: The run.
            ask: Asks somebody at once; None where nobody is there, and the request waits.
        """
        self._lake, self._run_id, self._ask = lake, run_id, ask
        self._asking = threading.Lock()
        # Of its own: while a person thinks, flushes and look-ups of hosts need the loop's threads.
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="approval")

    async def decide(
        self, request: Request, call: AskedCall, spec: ToolSpec, *, written_at: float
    ) -> Decided:
        """Return the decision on this one call.

        Raises:
            AwaitingApproval: Nobody has decided yet.
            StorageError: The sink cannot be read or written.
        """
        question = _question(request, call, spec, written_at)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._decide, question)

    def _decide(self, question: Question) -> Decided:
        path = f"{folder(self._run_id)}/{question.approval_id}"
        self._lake.claim(f"{path}.json", asdict(question))
        found = self._lake.find_json(f"{path}.decision.json")
        if found is None and self._ask is not None:
            with self._asking:
                is_approved, reason = self._ask(question)
            found = decide(
                self._lake, self._run_id, question, is_approved=is_approved, reason=reason
            )
        if found is None:
            raise AwaitingApproval(
                f"{question.tool} waits for a person's approval: headrace approve {self._run_id}"
            )
        return Decided(
            call_id=question.call_id,
            is_approved=found["is_approved"],
            by=found["by"],
            reason=found["reason"],
        )


def folder(run_id: str) -> str:
    """Return where a run's questions and decisions lie."""
    return f"runs/{run_id}/approvals"


def _question(request: Request, call: AskedCall, spec: ToolSpec, written_at: float) -> Question:
    asked = request.request_key, call.call_id, call.name, call.arguments, written_at
    key = content_key("approval", *asked)
    return Question(
        approval_id=key[:_ID_CHARS],
        stage=request.stage,
        request_key=request.request_key,
        call_id=call.call_id,
        tool=call.name,
        description=spec.description,
        arguments=call.arguments,
        asked_at=_now(),
    )


def questions(lake: Lake, run_id: str) -> Iterator[tuple[Question, Decision | None]]:
    """Yield all calls of a run that a person was asked about, oldest first, with what was decided."""
    paths = {item.path for item in lake.storage.list(folder(run_id))}
    found = []
    for path in sorted(paths):
        if path.endswith(".decision.json"):
            continue
        question = Question(**json.loads(lake.storage.get(path)))
        decided = f"{path.removesuffix('.json')}.decision.json"
        decision = Decision(**json.loads(lake.storage.get(decided))) if decided in paths else None
        found.append((question, decision))
    yield from sorted(found, key=lambda pair: pair[0].asked_at)


def decide(
    lake: Lake, run_id: str, question: Question, *, is_approved: bool, reason: str
) -> dict[str, object]:
    """Put a decision into the sink, and return the one that stands: the first."""
    decision = Decision(
        is_approved=is_approved, by=getpass.getuser(), reason=reason, decided_at=_now()
    )
    path = f"{folder(run_id)}/{question.approval_id}.decision.json"
    return dict(lake.claim(path, asdict(decision)))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
