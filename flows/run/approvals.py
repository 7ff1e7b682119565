"""What waits until a person has agreed to it, calls of agents and stages: asked and decided by way of the sink.

The question lies at `runs/<run>/approvals/<id>.json`, the decision is put beside it; both outlast every process,
so whoever decides need not be where the run is. Decisions are part of the run: an audit finds who agreed to what.
The first decision stands. (flows.run.stage_approval withholds those of stages)
"""

from __future__ import annotations

import asyncio
import getpass
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from config.errors import ConfigError
from connectors.sinks.lake import Lake
from engine.modes.mode import AwaitingApproval
from engine.request import Request, content_key
from engine.steps import AskedCall, Decided
from engine.tool import ToolSpec
from flows.report.words import in_one_line

ID_CHARS = 10
_NUM_THREADS = 4
_READ_AT_ONCE = 16
_QUESTION, _DECISION = ".json", ".decision.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What a stage is about to ask, as far as it is known."""

    requests: int
    documents: int
    """0 where they are about answers from many documents."""
    prompt_tokens: int
    """Of an agent those of its first turn."""
    max_output_tokens: int
    """Thinking included; of an agent those of one turn."""
    max_usd: float | None
    """Price of the tokens without any cache; None where the profile has no prices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A call, or a stage, that somebody has to decide on."""

    approval_id: str
    stage: str
    tool: str | None
    """What is to be called; None where it is about the stage itself."""
    description: str
    """The tool's; of a stage its prompt."""
    asked_at: str
    request_key: str = ""
    """Of a call: whose it is."""
    call_id: str = ""
    arguments: str = ""
    """Of a call: as the model wrote them."""
    waiting: Waiting | None = None
    """Of a stage; None until its first requests have been counted."""
    builds_on: tuple[str, ...] = ()
    """Of a stage: globs of the records that it needs."""


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
        self._lake.claim(question_path(self._run_id, question.approval_id), asdict(question))
        found = find_decision(self._lake, self._run_id, question.approval_id)
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
            is_approved=found.is_approved,
            by=found.by,
            reason=found.reason,
        )


def folder(run_id: str) -> str:
    """Return where a run's questions and decisions lie."""
    return f"runs/{run_id}/approvals"


def question_path(run_id: str, approval_id: str) -> str:
    """Return where a question lies."""
    return f"{folder(run_id)}/{approval_id}{_QUESTION}"


def _decision_path(run_id: str, approval_id: str) -> str:
    return f"{folder(run_id)}/{approval_id}{_DECISION}"


def _question(request: Request, call: AskedCall, spec: ToolSpec, written_at: float) -> Question:
    asked = request.request_key, call.call_id, call.name, call.arguments, written_at
    return Question(
        approval_id=content_key("approval", *asked)[:ID_CHARS],
        stage=request.stage,
        request_key=request.request_key,
        call_id=call.call_id,
        tool=call.name,
        description=spec.description,
        arguments=call.arguments,
        asked_at=now(),
    )


def question_from_json(value: dict[str, Any]) -> Question:
    """Return the question that `asdict` wrote."""
    waiting = Waiting(**value["waiting"]) if value["waiting"] else None
    return Question(**{**value, "waiting": waiting, "builds_on": tuple(value["builds_on"])})


def questions(lake: Lake, run_id: str) -> Iterator[tuple[Question, Decision | None]]:
    """Yield all that a person was asked about in a run, oldest first, with what was decided."""
    paths = {item.path for item in lake.storage.list(folder(run_id))}
    asked = [path for path in paths if not path.endswith(_DECISION)]
    decided = paths.intersection(path.removesuffix(_QUESTION) + _DECISION for path in asked)
    with ThreadPoolExecutor(_READ_AT_ONCE) as threads:
        questions_found = [*threads.map(lake.find_json, asked)]
        decisions = dict(zip(decided, threads.map(lake.find_json, decided), strict=True))
    found = []
    for path, value in zip(asked, questions_found, strict=True):
        if value is None:
            continue  # withdrawn since it was listed
        decision = decisions.get(path.removesuffix(_QUESTION) + _DECISION)
        found.append((
            question_from_json(value),
            None if decision is None else Decision(**decision),
        ))
    yield from sorted(found, key=lambda pair: (pair[0].asked_at, pair[0].approval_id))


def find_decision(lake: Lake, run_id: str, approval_id: str) -> Decision | None:
    """Return what was decided; None where nobody has yet."""
    found = lake.find_json(_decision_path(run_id, approval_id))
    return None if found is None else Decision(**found)


def decide(
    lake: Lake,
    run_id: str,
    question: Question,
    *,
    is_approved: bool,
    reason: str,
    by: str | None = None,
) -> Decision:
    """Put a decision into the sink, and return the one that stands: the first.

    Args:
        lake: The run's sink.
        run_id: The run.
        question: What was asked.
        is_approved: Whether somebody agrees.
        reason: Why, in their words.
        by: Who; None for the user of this process.

    Raises:
        ConfigError: The question was withdrawn, since its stage was changed.
    """
    decision = Decision(
        is_approved=is_approved,
        by=in_one_line(by or getpass.getuser()),
        # It is told in logs, records, reports and at terminals.
        reason=in_one_line(reason),
        decided_at=now(),
    )
    held = lake.claim(_decision_path(run_id, question.approval_id), asdict(decision))
    if lake.find_json(question_path(run_id, question.approval_id)) is None:
        raise ConfigError(
            f"stage {question.stage!r} was changed after it was asked about; see what it asks now with: headrace"
            f" approve {run_id}"
        )
    return Decision(**held)


def summary(found: Sequence[tuple[Question, Decision | None]]) -> list[dict[str, Any]]:
    """Return what was asked and decided, equal decisions on calls of one tool in one entry, oldest first.

    `at` is when the last of them was decided, or the first that waits was asked.
    """
    times: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for question, decision in found:
        verdict = "waiting"
        if decision is not None:
            verdict = "approved" if decision.is_approved else "refused"
        said = (decision.by, decision.reason) if decision else (None, None)
        key = (question.stage, question.tool, verdict, *said)
        times[key].append(decision.decided_at if decision else question.asked_at)
    return [
        {
            "stage": stage,
            "tool": tool,
            "decision": verdict,
            "by": by,
            "reason": reason,
            "count": len(at),
            "at": min(at) if verdict == "waiting" else max(at),
        }
        for (stage, tool, verdict, by, reason), at in times.items()
    ]


def now() -> str:
    """Return the time as questions and decisions have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
