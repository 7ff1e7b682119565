"""What agents did, after or during a run: transcript."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

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

_KEY_CHARS = 12


@app.command(rich_help_panel="Look")
def transcript(
    run: RunArgument = None,
    request: Annotated[
        str | None,
        typer.Option("--request", help="Write the pages of requests whose keys begin so."),
    ] = None,
    stage: Annotated[str | None, typer.Option("--stage", help="Only this stage's.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Write the pages into this folder, not beside the run's report."
        ),
    ] = None,
    sink: RunSinkOption = None,
    as_json: AsJson = False,
) -> None:
    """List what the agents of a run did, or write it as pages: every turn, call and result.

    Examples:
      headrace transcript

      headrace transcript 4f2a --request 9c1e

      headrace transcript 4f2a --stage dig --out pages
    """
    from config.errors import ConfigError
    from flows.report.transcript_pages import list_requests, write_pages

    with exit_codes():
        if request is not None and stage is not None:
            raise ConfigError("--request names single requests; leave out --stage")
        if request == "":
            raise ConfigError("--request is empty; give the beginning of a request's key")
        if request is None and out is None:
            found = list_requests(run, sink, stage)
        else:
            found = write_pages(run, sink, request=request or "", stage=stage, out=out)
        if as_json:
            print_json(found)
        elif request is None and out is None:
            _print_requests(found)
        else:
            print_lines([told["page"] for told in found["requests"]])


def _print_requests(found: Mapping[str, Any]) -> None:
    from flows.question import cell
    from flows.report.templates import clean
    from flows.report.words import counted
    from flows.terminal import dollars

    run_id, requests = found["run_id"], found["requests"]
    if not requests:
        print_lines([f"no agent has done anything in run {run_id}"])
        return
    table = Table(title=f"{run_id}: transcripts", title_justify="left")
    numbers = ("steps", "calls", "failed", "tokens", "USD")
    for name in ("request", "stage", "unit", *numbers, "stopped"):
        justify: Literal["left", "right"] = "right" if name in numbers else "left"
        # The key is what the command wants: it is never cut, nor are figures.
        whole = name in {"request", *numbers}
        table.add_column(name, justify=justify, overflow="fold", no_wrap=whole)
    for told in requests:
        table.add_row(
            told["request_key"][:_KEY_CHARS],
            told["stage"],
            cell(clean(told["unit"])),
            f"{told['num_steps']:,}",
            f"{told['num_calls']:,}",
            f"{told['num_failed_calls']:,}",
            f"{told['prompt_tokens'] + told['completion_tokens']:,}",
            dollars(told["cost_usd"]),
            cell(clean(told["stopped"] or "")),
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{counted(len(requests), 'request')}; a page of one: headrace transcript {run_id} --request KEY",
        markup=False,
        soft_wrap=True,
    )
