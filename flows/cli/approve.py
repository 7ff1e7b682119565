"""`headrace approve`: what agents want to do and a person has to agree to."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.prompt import Confirm, Prompt

from flows.cli.app import AsJson, RunArgument, RunSinkOption, app, exit_codes, print_json

if TYPE_CHECKING:
    from flows.run.approvals import Ask, Question


@app.command(rich_help_panel="Look")
def approve(
    run: RunArgument = None,
    ids: Annotated[
        list[str] | None, typer.Option("--id", help="Only these calls; all that wait if left out.")
    ] = None,
    yes: Annotated[
        bool | None, typer.Option("--yes/--no", help="Agree, or refuse; asks each if left out.")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Told to the agent.")] = "",
    sink: RunSinkOption = None,
    as_json: AsJson = False,
) -> None:
    """Decide on the calls of a run that wait for a person, then go on with `headrace run --resume`.

    Examples:
      headrace approve 4f2a

      headrace approve 4f2a --no --reason "not this server"

      headrace approve 4f2a --json
    """
    from flows.run.approvals import decide, questions
    from flows.run.registry import open_sink
    from flows.run.resume import locate

    with exit_codes():
        run_id, place = locate(run, sink)
        lake = open_sink(place)
        waiting = [
            question
            for question, decision in questions(lake, run_id)
            if decision is None and (not ids or question.approval_id in ids)
        ]
        ask = ask_person()
        for question in waiting if yes is not None or not as_json else ():
            is_approved, why = (yes, reason) if yes is not None else ask(question)
            decide(lake, run_id, question, is_approved=is_approved, reason=why)
        if as_json:
            print_json({
                "run_id": run_id,
                "calls": [
                    {**asdict(question), "decision": asdict(decision) if decision else None}
                    for question, decision in questions(lake, run_id)
                ],
            })
            return
        console = Console()
        if not waiting:
            console.print("nothing waits for approval")
        else:
            console.print(f"go on: headrace run --resume {run_id}", soft_wrap=True)


def shown_arguments(arguments: str) -> str:
    """Return arguments as a person can trust what is seen: what a terminal would obey or hide is written out."""
    return "".join(
        char if char == "\n" or char.isprintable() else char.encode("unicode_escape").decode()
        for char in arguments
    )


def ask_person() -> Ask:
    """Return what asks whoever sits at the terminal."""
    console = Console(stderr=True)

    def ask(question: Question) -> tuple[bool, str]:
        console.print(
            f"\nStage [bold]{escape(question.stage)}[/] wants to call [bold]{escape(question.tool)}[/]"
            f" ({question.approval_id}):\n{escape(shown_arguments(question.arguments))}"
        )
        if Confirm.ask("Agree?", console=console, default=False):
            return True, ""
        return False, Prompt.ask("Why not (told to the agent)", console=console, default="")

    return ask
