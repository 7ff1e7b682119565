"""Commands about kept answers: cache stats, cache clear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flows.cli.app import (
    EXIT_INCOMPLETE,
    AsJson,
    OptionalPipelineArgument,
    app,
    exit_codes,
    note,
    print_json,
    print_lines,
)

if TYPE_CHECKING:
    from flows.run.stock import Stock

cache_app = typer.Typer(
    name="cache",
    help="Answers that are kept, in a cache or a sink: stats, clear.",
    no_args_is_help=True,
)
app.add_typer(cache_app, rich_help_panel="Look")

_CacheOption = Annotated[
    str | None, typer.Option("--cache", help="Folder or s3://bucket/prefix of shared answers.")
]
_SinkOption = Annotated[str | None, typer.Option("--sink", help="Sink, for the answers in it.")]


@cache_app.command()
def stats(
    pipeline: OptionalPipelineArgument = None,
    cache: _CacheOption = None,
    sink: _SinkOption = None,
    as_json: AsJson = False,
) -> None:
    """Count the answers of a pipeline's cache (of its sink, where it names none), and what they cost.

    Examples:
      headrace cache stats pipeline.yaml

      headrace cache stats --cache s3://lake/shared --json
    """
    from flows.run.stock import open_stock, shown, stats_of

    with exit_codes():
        stock = open_stock(pipeline, cache, sink)
        found = shown(stock, stats_of(stock))
        if as_json:
            print_json(found)
        else:
            _print_stats(found)


def _print_stats(found: Mapping[str, Any]) -> None:
    from flows.terminal import dollars, print_facts

    table = Table(title=f"{found['kind']} {found['url']}", title_justify="left")
    for name in ("stage", "model", "answers", "prompt tokens", "output tokens", "USD"):
        table.add_column(name, justify="left" if name in {"stage", "model"} else "right")
    for group in found["stages"]:
        table.add_row(
            group["stage"],
            group["model"],
            f"{group['answers']:,}",
            f"{group['prompt_tokens']:,}",
            f"{group['completion_tokens']:,}",
            dollars(group["cost_usd"]),
        )
    Console(highlight=False).print(table)
    facts = {
        "answers": f"{found['answers']:,} in {_size(found)}",
        "stand for": _worth(found),
        "oldest": found["oldest"],
        "newest": found["newest"],
        "unreadable": found["unreadable"],
    }
    print_facts({name: value for name, value in facts.items() if value})


def _size(found: Mapping[str, Any]) -> str:
    from flows.report.words import counted

    return f"{counted(found['objects'], 'object')}, {found['bytes'] / 1e6:,.2f} MB"


def _worth(found: Mapping[str, Any]) -> str:
    from flows.terminal import dollars

    tokens = found["prompt_tokens"] + found["completion_tokens"]
    usd = "" if found["cost_usd"] is None else f" and {dollars(found['cost_usd'])} USD"
    return f"{tokens:,} tokens{usd}"


@cache_app.command()
def clear(
    pipeline: OptionalPipelineArgument = None,
    cache: _CacheOption = None,
    sink: _SinkOption = None,
    older_than: Annotated[
        float | None,
        typer.Option("--older-than", min=0, help="Only answers of runs begun so many days ago."),
    ] = None,
    stage: Annotated[
        str | None, typer.Option("--stage", help="Only answers that this stage has asked for.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove answers from a cache or a sink, after asking; tables stay, and later runs pay again.

    Examples:
      headrace cache clear pipeline.yaml --older-than 90

      headrace cache clear --sink ./lake --stage digest --yes
    """
    from flows.run import stock as stocks
    from flows.run.claims import require_idle

    with exit_codes():
        stock = stocks.open_stock(pipeline, cache, sink)
        if stock.kind == "sink":
            require_idle(stock.storage)
        choice = stocks.Choice(older_than_days=older_than, stage=stage)
        found = stocks.shown(stock, stocks.stats_of(stock, choice))
        if not yes and not as_json:
            _ask(stock, found)
        num_cleared = stocks.clear(stock, choice)
        if as_json:
            print_json({**found, "cleared": num_cleared})
        else:
            print_lines([f"{num_cleared:,} answers removed from {stock.kind} {stock.storage.url}"])


def _ask(stock: Stock, found: Mapping[str, Any]) -> None:
    """Ask whether the answers are to go.

    Raises:
        Exit: They are not.
    """
    later = (
        "its tables stay; a later run pays again for those it needs: of a shard with a changed"
        " document, and with --rebuild"
        if stock.kind == "sink"
        else "sinks keep their own; others pay again for what they need"
    )
    note(
        f"{found['answers']:,} answers go from {stock.kind} {stock.storage.url}; they took"
        f" {_worth(found)}. {later[0].upper()}{later[1:]}."
    )
    if not typer.confirm("Remove them?", err=True):
        note("nothing was removed")
        raise typer.Exit(EXIT_INCOMPLETE)
