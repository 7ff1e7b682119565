"""Commands after a run: status, records, report."""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from flows.run.look import Query, Records


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
    from flows.report.words import batch_story
    from flows.terminal import print_facts, print_summary

    if shown.get("manifest") is not None:
        print_summary(shown["manifest"])
    names = ("run_id", "pipeline", "state", "error", "done", "source", "sink", "log", "next")
    facts = {name: shown[name] for name in names if shown.get(name)}
    for batch in shown.get("batches", ()):
        facts[f"batch {batch['batch_id'] or 'not begun'}"] = batch_story(batch)
    print_facts(facts)


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
    with_sources: Annotated[
        bool,
        typer.Option("--sources", help="Show the lines that each record cites, and their check."),
    ] = False,
    sink: RunSinkOption = None,
    as_json: AsJson = False,
) -> None:
    """Look at a run's output.

    Examples:
      headrace records

      headrace records 4f2a digest --where "kind = 'letter'" --columns path,topic

      headrace records 4f2a digest --outcome failed --columns path,error

      headrace records 4f2a briefing --sources

      headrace records 4f2a --csv > answers.csv
    """
    from config.errors import ConfigError
    from flows.report.words import counted
    from flows.run.look import Query, query_records

    with exit_codes():
        if with_sources and as_csv:
            raise ConfigError("--sources is for people and --json; leave out --csv")
        query = Query(
            where=where,
            columns=tuple(name.strip() for name in columns.split(",")) if columns else (),
            document=document,
            outcome=outcome,
            skipped=as_csv or as_json or bool(where or outcome),
        )
        found = query_records(run, stage, sink, query)
        sources = _sources(found, query, sink) if with_sources else None
        if as_csv:
            sys.stdout.write(found.as_csv())
        elif as_json:
            print_json(_joined(found.as_json(), sources))
        else:
            _print_records(found.as_json(), limit)
            if sources is not None:
                _print_sources(sources[:limit])
            if found.num_skipped:
                line = f"not shown: {counted(found.num_skipped, 'skipped record')}; see --outcome skipped"
                print_lines([line])


def _sources(found: Records, query: Query, sink: str | None) -> list[dict[str, Any]]:
    """Return for each record shown what it is about and its lines, in the same order.

    Raises:
        ConfigError: The table holds no answers.
    """
    from config.errors import ConfigError
    from flows.report.sources import source_lines
    from flows.run.look import query_records

    there = {*found.frame.columns, *found.hidden}
    if "citations" not in there:
        raise ConfigError(
            f"table {found.table!r} cites nothing; --sources is for the records of a stage"
        )
    names = tuple(name for name in ("path", "unit", "citations", "claims") if name in there)
    cited = query_records(found.run_id, found.table, sink, replace(query, columns=names))
    return [
        {"path": row["path"], "unit": row["unit"], "sources": source_lines(row)}
        for row in cited.frame.iter_rows(named=True)
    ]


def _joined(
    shown: dict[str, Any], sources: Sequence[Mapping[str, Any]] | None
) -> Mapping[str, Any]:
    if sources is None:
        return shown
    pairs = zip(shown["records"], sources, strict=True)
    return {**shown, "records": [{**row, "sources": each["sources"]} for row, each in pairs]}


def _print_sources(records: Sequence[Mapping[str, Any]]) -> None:
    from flows.question import cell
    from flows.report.words import claim_verdict, counted

    console = Console(highlight=False)
    table = Table(title="sources", title_justify="left")
    for name in ("record", "field", "path", "place", "quote", "verdict"):
        table.add_column(name, overflow="fold")
    num_lines = 0
    for record in records:
        about = " ".join(filter(None, (record["path"], record["unit"])))
        for line in record["sources"]:
            num_lines += 1
            verdict = claim_verdict(line["verdict"]) if line["verdict"] else None
            values = (about, line["field"], line["path"], line["place"], line["quote"], verdict)
            table.add_row(*map(cell, values))
    console.print(table)
    console.print(counted(num_lines, "source"), markup=False)


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
    template: Annotated[
        str | None,
        typer.Option("--template", help="briefing, or the folder of a template of your own."),
    ] = None,
    write_template: Annotated[
        Path | None,
        typer.Option(
            "--write-template", help="Copy the shipped template into this folder, and do no more."
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a run's report anew from its tables, and say where it is.

    Examples:
      headrace report

      headrace report 4f2a --open

      headrace report --write-template ours

      headrace report 4f2a --template ours
    """
    from flows.report.build import rebuild
    from flows.report.templates import write_template as copy_template
    from flows.terminal import print_facts

    with exit_codes():
        if write_template is not None:
            addresses = {file.name: str(file) for file in copy_template(write_template)}
        else:
            addresses = rebuild(run, sink, template)
        if as_json:
            print_json(addresses)
        else:
            print_facts(addresses)
        if show and "html" in addresses:
            webbrowser.open(addresses["html"])
