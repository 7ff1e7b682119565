"""Commands about the machine: the servers of this laptop, brought up and taken down."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flows.cli.app import (
    AsJson,
    app,
    complete_profiles,
    exit_codes,
    note,
    print_json,
    print_lines,
)


@app.command(rich_help_panel="This machine")
def up(
    port: Annotated[
        int | None,
        typer.Option(
            min=1024, max=65534, help="Port of Prefect, 4200 by default; reports take the next one."
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            help="Profile or URL; the embedded one is started, others are only asked.",
            autocompletion=complete_profiles,
        ),
    ] = "embedded",
    no_engine: Annotated[bool, typer.Option("--no-engine", help="Leave the engine out.")] = False,
    database_url: Annotated[
        str | None,
        typer.Option(
            envvar="HEADRACE_DATABASE_URL",
            show_envvar=True,
            help="PostgreSQL for Prefect, for more than one run at a time; SQLite if left out."
            " Better in the variable: a password is not shown to others there.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start Prefect, a worker, the report server and the engine, and leave them running.

    What runs already is left alone. Runs of the worker see the environment of the `up` that
    started it: set AWS and API keys before, or `headrace down` and up again.

    Examples:
      headrace up

      headrace up --no-engine --port 4300

      HEADRACE_DATABASE_URL=postgresql+asyncpg://me:secret@db:5432/prefect headrace up
    """
    from flows.stack import Wanted, bring_up
    from flows.terminal import print_facts

    with exit_codes(lambda: "interrupted; what this command had started is ended"):
        wanted = Wanted(port=port, engine=None if no_engine else engine, database_url=database_url)
        found = bring_up(wanted, note)
        next_line = "headrace run demo --prefect --source ./papers --sink ./lake"
        if as_json:
            print_json({**found, "next": next_line})
            return
        print_facts({
            "UI": f"{found['prefect']['address']}   ({found['prefect']['state']})",
            "reports": f"{found['reports']['address']}   ({found['reports']['state']})",
            "worker": f"work pool headrace   ({found['worker']['state']})",
            "engine": _engine_line(found.get("engine")),
            "runs": f"{found['prefect']['address']}/deployments: start process-corpus there",
            "or": next_line,
            "end": "headrace down",
        })


def _engine_line(engine: dict[str, Any] | None) -> str:
    return "left out" if engine is None else f"{engine['address']}   ({engine['state']})"


@app.command(rich_help_panel="This machine")
def down(as_json: AsJson = False) -> None:
    """End everything that `headrace up` has started; runs in work save their answers first.

    Examples:
      headrace down
    """
    from flows.stack import bring_down

    with exit_codes():
        ended = bring_down(note)
        if as_json:
            print_json({"ended": ended})
        else:
            print_lines([f"ended: {', '.join(ended)}" if ended else "nothing was running"])
