"""The form in which a person agrees, in Prefect: a flow run of a deployment is suspended with it.

While it is suspended it has no process, and no place among the runs of its deployment. The answer of the form goes to
the sink, as that of `headrace approve` does; then the flow runs again from its beginning, and goes on with its run.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput, keyset_from_paused_state
from prefect.runtime import flow_run as this_flow_run
from prefect.states import Suspended
from pydantic import Field, ValidationError, create_model

from engine.status import map_errors
from flows.report.words import in_one_line, shown_arguments, waiting_words
from flows.run.approvals import Question, decide, questions
from flows.run.registry import open_sink

logger = logging.getLogger(__name__)

RUN_LABEL, SINK_LABEL = "headrace.run", "headrace.sink"
"""Labels of a flow run that tell which run it works on; they outlive its process."""

_FORM_LABEL = "headrace.form"
"""Label with the number of the last form of a flow run. Prefect forgets on Retry how often it was suspended, but keeps
inputs and labels; and a second form cannot have the key of a first."""

_ASKED_LABEL = "headrace.asked"
"""Label with the ids of what the last form asks about."""

_MOST_ASKED = 20
_MOST_CHARS = 60_000
"""Most characters of what one form shows, unless a single call has more; nothing is shown in part."""


_ONLY = "Those that you decide on; none chosen: all. The others are asked about again."


class ApprovalForm(RunInput):
    """Agree to what is listed above, or refuse it."""

    decision: Annotated[
        Literal["agree", "refuse"], Field(description="Whether it may go on, just as it is shown.")
    ]
    your_name: Annotated[
        str, Field(min_length=1, max_length=200, description="Kept with the decision, for audits.")
    ]
    reason: Annotated[
        str, Field(max_length=2000, description="Kept with the decision; an agent is told it.")
    ] = ""
    only: list[str] = Field(default_factory=list, description=_ONLY)


def suspend(run_id: str, sink: str, *, hours: float, report: str) -> int:
    """Suspend the flow run that this is called in, with a form on what its run waits for.

    Args:
        run_id: The run.
        sink: Where its questions lie.
        hours: How long the form is open; then Prefect ends the flow run. 0: it is not suspended.
        report: Where the run's report can be read.

    Returns:
        How many decisions there are, where nothing waits any more since somebody has decided meanwhile. 0 where the flow
        run cannot be suspended: without a deployment there is no worker that would go on with it.

    Raises:
        EngineError: The Prefect server does not answer.
        StorageError: The sink cannot be read.
        Pause: The flow run is suspended, and its process is to end.
    """
    asked = list(questions(open_sink(sink), run_id))
    waiting = [question for question, decision in asked if decision is None]
    if not waiting:
        return len(asked)
    with map_errors("the Prefect server"):
        found = _this()
        if (
            not hours
            or found is None
            or found.deployment_id is None
            or found.parent_task_run_id is not None
        ):
            return 0
        listed = _listed(waiting)
        number = _num_forms(found) + 1
        with get_client(sync_client=True) as client:
            # All that the answer needs, at once: the run's page writes labels too, but may fail to.
            client.update_flow_run_labels(
                found.id,
                {
                    RUN_LABEL: run_id,
                    SINK_LABEL: sink,
                    _FORM_LABEL: number,
                    _ASKED_LABEL: ",".join(question.approval_id for question in listed),
                },
            )
        suspend_flow_run(
            wait_for_input=_form(run_id, listed, len(waiting) - len(listed), report),
            timeout=max(1, round(hours * 3600)),
            key=_key(number),
        )
    return 0


def was_suspended() -> bool:
    """Tell whether the flow run that this is called in was ever suspended with a form.

    Raises:
        EngineError: The Prefect server does not answer.
    """
    with map_errors("the Prefect server"):
        found = _this()
    return found is not None and _num_forms(found) > 0


def take_answer() -> tuple[str, str] | None:
    """Return id and sink of the run that this flow run was suspended with, its form's answer in the sink.

    Returns None where it was never suspended. After a Retry it is the last form's answer, which then is in the sink already.

    Raises:
        EngineError: The Prefect server does not answer.
        StorageError: The sink cannot be written.
    """
    with map_errors("the Prefect server"):
        found = _this()
        number = 0 if found is None else _num_forms(found)
        if found is None or number == 0:
            return None
        try:
            keys = keyset_from_paused_state(Suspended(pause_key=_key(number)))
            answer = cast(ApprovalForm, ApprovalForm.load(keys))
        except ValidationError:
            # Made to go on from elsewhere, or by Retry after the form's time was over.
            logger.warning("the flow run was resumed without an answer to its form")
            answer = None
    run_id, sink = str(found.labels[RUN_LABEL]), str(found.labels[SINK_LABEL])
    if answer is not None:
        _keep(answer, run_id, sink, str(found.labels[_ASKED_LABEL]).split(","))
    return run_id, sink


def _keep(answer: ApprovalForm, run_id: str, sink: str, asked: Sequence[str]) -> None:
    lake, chosen = open_sink(sink), set(answer.only or asked) & set(asked)
    found = [question for question, _ in questions(lake, run_id)]
    for gone in sorted(chosen - {question.approval_id for question in found}):
        logger.warning("run_id=%s %s was withdrawn, since its stage was changed", run_id, gone)
    for question in found:
        if question.approval_id not in chosen:
            continue
        stands = decide(
            lake,
            run_id,
            question,
            is_approved=answer.decision == "agree",
            reason=answer.reason,
            by=f"{answer.your_name} (form in Prefect)",
        )
        logger.info(
            "run_id=%s %s of stage %s: %s by %s at %s",
            run_id,
            question.tool or "all",
            question.stage,
            "approved" if stands.is_approved else "refused",
            stands.by,
            stands.decided_at,
        )


def _this() -> FlowRun | None:
    """Return the flow run that this is called in, as the server has it."""
    found = this_flow_run.get_id()
    if found is None:
        return None
    with get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(found))


def _num_forms(found: FlowRun) -> int:
    """Return how often the flow run has been suspended with a form, before a Retry too."""
    return int(str(found.labels.get(_FORM_LABEL, 0)))


def _key(number: int) -> str:
    """Return the key that Prefect keeps a form of a flow run under."""
    return f"headrace-approval-{number}"


def _listed(waiting: Sequence[Question]) -> list[Question]:
    """Return the first of what waits, as much as one form shows."""
    listed: list[Question] = []
    left = _MOST_CHARS
    for question in waiting[:_MOST_ASKED]:
        left -= len(told(question))
        if listed and left < 0:
            break
        listed.append(question)
    return listed


def _form(
    run_id: str, listed: Sequence[Question], num_more: int, report: str
) -> type[ApprovalForm]:
    ids = [question.approval_id for question in listed]
    # An `enum` and no Literal, which has none where it has one value only: the form makes it a list to choose from.
    choice = list[Annotated[str, Field(json_schema_extra={"enum": [*ids]})]]
    only: Any = (choice, Field(default_factory=list, description=_ONLY))
    form = create_model(ApprovalForm.__name__, __base__=ApprovalForm, only=only)
    more = f"\n\n{num_more:,} more are asked about afterwards." if num_more else ""
    lines = "\n\n".join(map(told, listed))
    place = f"[report so far]({report})" if report.startswith("http") else _code(report)
    head = f"Run {_code(run_id)} waits for a person: {place}"
    return form.with_initial_data(description=f"{head}\n\n{lines}{more}")


def told(question: Question) -> str:
    """Return what is asked, as Markdown; what a model wrote stands in it as text, whatever it says."""
    stage, approval_id = _code(question.stage), _code(question.approval_id)
    if question.tool is not None:
        head = f"**{approval_id}**: an agent of stage {stage} wants to call {_code(question.tool)}"
        return f"{head}:\n\n{_block(shown_arguments(question.arguments))}"
    lines = [f"**{approval_id}**: stage {stage}, {waiting_words(question.waiting)}"]
    lines += [f"- builds on {_code(place)}" for place in question.builds_on]
    return "\n".join([*lines, "", _block(shown_arguments(question.description))])


def _code(text: str) -> str:
    """Return text in one line, to be read as it is."""
    plain = in_one_line(text)
    ticks = "`" * (_longest_run(plain) + 1)
    return f"{ticks} {plain} {ticks}" if "`" in plain else f"`{plain}`"


def _block(text: str) -> str:
    ticks = "`" * max(3, _longest_run(text) + 1)
    return f"{ticks}\n{text}\n{ticks}"


def _longest_run(text: str) -> int:
    """Return the length of the longest run of backticks, which a longer one does not end."""
    return max(map(len, re.findall("`+", text)), default=0)
