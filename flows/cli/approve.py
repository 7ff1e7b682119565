"""`headrace approve`: the stages and calls of agents that a person has to agree to."""

from __future__ import annotations

import getpass
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.prompt import Confirm, Prompt

from flows.cli.app import AsJson, RunArgument, RunSinkOption, app, exit_codes, print_json

if TYPE_CHECKING:
    from flows.run.approvals import Ask, Decision, Question


@app.command(rich_help_panel="Look")
def approve(
    run: RunArgument = None,
    ids: Annotated[
        list[str] | None,
        typer.Option("--id", help="Only these stages and calls; all that wait if left out."),
    ] = None,
    yes: Annotated[
        bool | None, typer.Option("--yes/--no", help="Agree, or refuse; asks each if left out.")
    ] = None,
    reason: Annotated[
        str, typer.Option("--reason", help="Kept with the decision; an agent is told it.")
    ] = "",
    sink: RunSinkOption = None,
    as_json: AsJson = False,
) -> None:
    """Decide on stages and calls of a run that wait for a person, then go on with `headrace run --resume`.

    Examples:
      headrace approve 4f2a

      headrace approve 4f2a --no --reason "not this server"

      headrace approve 4f2a --json
    """
    from flows.report.words import report_place
    from flows.run.approvals import decide, questions
    from flows.run.registry import open_sink
    from flows.run.resume import locate, manifest_path

    with exit_codes():
        run_id, place = locate(run, sink)
        lake = open_sink(place)
        chosen = [pair for pair in questions(lake, run_id) if not ids or pair[0].approval_id in ids]
        waiting = [question for question, decision in chosen if decision is None]
        # Whoever says no to what another has agreed to must not believe that it holds.
        others = [
            (question, decision)
            for question, decision in chosen
            if decision and yes not in {None, decision.is_approved} and (ids or not waiting)
        ]
        report = report_place(lake.find_json(manifest_path(run_id)))
        console, ask = Console(), ask_person()
        if waiting and report and not as_json:
            console.print(f"report so far: {report}", markup=False, soft_wrap=True)
        for question in waiting if yes is not None or not as_json else ():
            is_approved, why = (yes, reason) if yes is not None else ask(question)
            stands = decide(lake, run_id, question, is_approved=is_approved, reason=why)
            if (stands.is_approved, stands.by) != (is_approved, getpass.getuser()):
                others.append((question, stands))
        if as_json:
            print_json({
                "run_id": run_id,
                "report": report,
                "questions": [
                    {**asdict(question), "decision": asdict(decision) if decision else None}
                    for question, decision in questions(lake, run_id)
                ],
            })
            return
        for question, stands in others:
            console.print(_stands(question, stands), markup=False, soft_wrap=True)
        if not waiting:
            console.print("nothing waits for approval")
        else:
            console.print(f"go on: headrace run --resume {run_id}", soft_wrap=True)


def _stands(question: Question, decision: Decision) -> str:
    """Return the decision on what was asked, which another one does not change."""
    what = f"stage {question.stage}"
    if question.tool is not None:
        what = f"{question.tool} of {what}"
    verdict = "approved" if decision.is_approved else "refused"
    return (
        f"{what} ({question.approval_id}): {verdict} by {decision.by} at {decision.decided_at};"
        " the first decision stands"
    )


def ask_person() -> Ask:
    """Return what asks whoever sits at the terminal."""
    console = Console(stderr=True)

    def ask(question: Question) -> tuple[bool, str]:
        console.print(f"\n{_told(question)}", soft_wrap=True)
        if Confirm.ask("Agree?", console=console, default=False):
            return True, ""
        return False, Prompt.ask("Why not (kept with the run)", console=console, default="")

    return ask


def _told(question: Question) -> str:
    """Return what is asked, as markup."""
    from flows.report.words import shown_arguments, waiting_words

    stage, call_id = f"[bold]{escape(question.stage)}[/]", question.approval_id
    if question.tool is not None:
        tool = f"[bold]{escape(question.tool)}[/]"
        arguments = escape(shown_arguments(question.arguments))
        return f"Stage {stage} wants to call {tool} ({call_id}):\n{arguments}"
    lines = [f"Stage {stage} waits for you ({call_id}): {waiting_words(question.waiting)}"]
    lines += [f"it builds on {escape(place)}" for place in question.builds_on]
    return "\n".join([*lines, f"it asks: {escape(shown_arguments(question.description))}"])
