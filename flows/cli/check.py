"""`headrace doctor`: checks the set-up and says how to mend it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from flows.cli.app import (
    EXIT_INCOMPLETE,
    AsJson,
    EngineOption,
    OptionalPipelineArgument,
    SourceOption,
    app,
    exit_codes,
    print_json,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flows.checks.finding import Finding

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@app.command(rich_help_panel="This machine")
def doctor(
    pipeline: OptionalPipelineArgument = None,
    engine: EngineOption = None,
    source: SourceOption = None,
    sink: Annotated[
        str | None,
        typer.Option("--sink", help="Folder or s3://bucket/prefix to write; a probe is put there."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine, the engine, storage and Prefect, and say what mends each finding.

    With a pipeline: its engine, source and sink, reached as its `storage` says.

    Exits with 0 where nothing fails; warnings are allowed. Nothing is started and no prompt is sent.

    Examples:
      headrace doctor

      headrace doctor invoices.yaml

      headrace doctor --source s3://lake/in --sink s3://lake/out

      headrace doctor --engine moonshot --json
    """
    from config.pipeline import DEFAULT_ENGINE
    from flows.doctor import diagnose, is_well
    from flows.run.job import Options, load_config

    with exit_codes():
        if pipeline is None:
            findings = diagnose(engine or DEFAULT_ENGINE, source, sink)
        else:
            config = load_config(pipeline, Options(source=source, sink=sink, engine=engine))
            findings = diagnose(
                config.engine,
                config.source,
                config.sink,
                cache=config.cache,
                access_to=config.access_to,
            )
        well = is_well(findings)
        if as_json:
            print_json({"ok": well, "findings": [asdict(finding) for finding in findings]})
        else:
            _show(findings)
        _end(well=well)


def _end(*, well: bool) -> None:
    """End with the exit code; apart, since a command's docstring is its help.

    Raises:
        Exit: With 1 where a check fails.
    """
    if not well:
        raise typer.Exit(EXIT_INCOMPLETE)


def _show(findings: Sequence[Finding]) -> None:
    """Print the findings in columns; lines are not folded, so that commands can be copied."""
    console = Console(highlight=False)
    width = max(len(finding.check) for finding in findings) + 2
    for finding in findings:
        line = Text(f"{finding.status:<6}", style=_COLOURS[finding.status])
        line.append(f"{finding.check:<{width}}{finding.says}", style="default")
        if finding.mend:
            line.append(f"\n{'':<{6 + width}}mend: {finding.mend}", style="default")
        console.print(line, soft_wrap=True)
    counts = {status: sum(f.status == status for f in findings) for status in _COLOURS}
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()))
