"""Commands after a run: status, records, report."""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flows.cli.app import (
    AsJson,
    RunArgument,
    RunSinkOption,
    app,
    exit_codes,
    print_json,
    print_lines,
)


@app.command(rich_help_panel="Look")
def status(
    run: RunArgument = None,
    sink: RunSinkOption = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Most runs to list.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show the latest runs of this machine, or one run with its figures.

    Examples:
      headrace status

      headrace status 4f2a --json
    """
    from flows.run.look import run_status, runs_status

    with exit_codes():
        if run is None and sink is None:
            found = runs_status(count)
            if as_json:
                print_json({"runs": found})
            else:
                _print_runs(found)
            return
        shown = run_status(run, sink)
        if as_json:
            print_json(shown)
        else:
            _print_run(shown)


def _print_runs(runs: Sequence[Mapping[str, Any]]) -> None:
    if not runs:
        print_lines(['no run yet; a first one: headrace ask "What is it about?" ./papers'])
        return
    table = Table()
    for name in ("run", "pipeline", "state", "done", "sink"):
        # The id is what other commands want: it is never cut.
        fixed = name in {"run", "state"}
        table.add_column(
            name, overflow="fold", no_wrap=fixed, min_width=21 if name == "run" else None
        )
    for run in runs:
        table.add_row(run["run_id"], run["pipeline"], run["state"], run["done"], run["sink"])
    Console(highlight=False).print(table)


def _print_run(shown: Mapping[str, Any]) -> None:
    from flows.terminal import print_facts, print_summary

    if shown.get("manifest") is not None:
        print_summary(shown["manifest"])
    names = ("run_id", "pipeline", "state", "error", "done", "source", "sink", "log", "next")
    print_facts({name: shown[name] for name in names if shown.get(name)})


@app.command(rich_help_panel="Look")
def records(
    run: RunArgument = None,
    stage: Annotated[
        str | None,
        typer.Argument(help="A stage, or documents, chunks or usage; the last stage if left out."),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            "--where", help="SQL condition, such as \"amount > 10000 and kind = 'letter'\"."
        ),
    ] = None,
    columns: Annotated[
        str | None, typer.Option("--columns", help="Columns to show, separated by commas.")
    ] = None,
    document: Annotated[
        str | None, typer.Option("--document", help="Only documents that match this glob.")
    ] = None,
    outcome: Annotated[
        str | None, typer.Option("--outcome", help="Only records that ended so, such as failed.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most rows to print.")] = 40,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print all rows as CSV, lists and structs as JSON.")
    ] = False,
    sink: RunSinkOption = None,
    as_json: AsJson = False,
) -> None:
    """Look at a run's output.

    Examples:
      headrace records

      headrace records 4f2a digest --where "kind = 'letter'" --columns path,topic

      headrace records 4f2a digest --outcome failed --columns path,error

      headrace records 4f2a --csv > answers.csv
    """
    from flows.report.words import counted
    from flows.run.look import Query, query_records

    with exit_codes():
        query = Query(
            where=where,
            columns=tuple(name.strip() for name in columns.split(",")) if columns else (),
            document=document,
            outcome=outcome,
            skipped=as_csv or as_json or bool(where or outcome),
        )
        found = query_records(run, stage, sink, query)
        if as_csv:
            sys.stdout.write(found.as_csv())
        elif as_json:
            print_json(found.as_json())
        else:
            _print_records(found.as_json(), limit)
            if found.num_skipped:
                line = f"not shown: {counted(found.num_skipped, 'skipped record')}; see --outcome skipped"
                print_lines([line])


def _print_records(found: Mapping[str, Any], limit: int) -> None:
    from flows.question import cell
    from flows.report.words import counted

    console = Console(highlight=False)
    rows = found["records"]
    table = Table(title=f"{found['run_id']}: {found['table']}", title_justify="left")
    for name in found["columns"]:
        table.add_column(name, overflow="fold")
    for row in rows[:limit]:
        table.add_row(*(cell(row[name]) for name in found["columns"]))
    console.print(table)
    more = f"; --limit or --csv shows more than {limit}" if len(rows) > limit else ""
    hidden = f"; further columns: {', '.join(found['hidden'])}" if found["hidden"] else ""
    console.print(f"{counted(len(rows), 'row')}{more}{hidden}", markup=False, soft_wrap=True)
    console.print(f"tables: {', '.join(found['tables'])}", markup=False, soft_wrap=True)


@app.command(rich_help_panel="Look")
def report(
    run: RunArgument = None,
    sink: RunSinkOption = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a run's report anew from its tables, and say where it is.

    Examples:
      headrace report

      headrace report 4f2a --open
    """
    from flows.report.build import rebuild
    from flows.terminal import print_facts

    with exit_codes():
        addresses = rebuild(run, sink)
        if as_json:
            print_json(addresses)
        else:
            print_facts(addresses)
        if show:
            webbrowser.open(addresses["html"])
