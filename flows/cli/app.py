"""What commands share: the application, arguments and options, errors as one message, exit codes, JSON.

Exit codes: 0 all inputs have an outcome; 1 did not complete, or the verdict asked for is no; 2 wrong usage or
configuration; 3 complete, but over the failure limit; 4 stopped by its budget; 130 interrupted; 143 terminated.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler

from config.errors import ConfigError
from config.load import known_pipelines, known_profiles
from connectors.errors import ConnectorError, DiskFull, StorageError
from engine.errors import EngineError, SetUpImpossible
from flows.run.log import LOGGERS

EXIT_INCOMPLETE, EXIT_USAGE, EXIT_OVER_LIMIT, EXIT_BUDGET = 1, 2, 3, 4
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143

app = typer.Typer(
    name="headrace",
    help=(
        "A batch engine for document corpora: object storage to a language model to Parquet.\n\n"
        'First try:  headrace ask "What is it about?" ./papers\n\n'
        "Then:  headrace init,  headrace try,  headrace plan,  headrace run,  headrace records"
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")
]


def _complete_pipelines(incomplete: str) -> list[str]:
    return [name for name in known_pipelines() if name.startswith(incomplete)]


def complete_profiles(incomplete: str) -> list[str]:
    """Return the profiles whose names begin so, for the shell."""
    return [name for name in known_profiles() if name.startswith(incomplete)]


def complete_runs(incomplete: str) -> list[str]:
    """Return the ids of this machine's runs that begin so, for the shell."""
    from flows.run.registry import known_runs

    return [run.run_id for run in known_runs() if run.run_id.startswith(incomplete)]


_FOREIGN = ("httpx2", "mcp")
"""Loggers of the MCP SDK and its HTTP client, which warn of each odd message of a server."""

_PIPELINE = typer.Argument(
    help="The pipeline's YAML file, or the name of a known one.",
    autocompletion=_complete_pipelines,
)
_ENGINE = typer.Option(
    "--engine",
    help="Profile, by name or file, or URL of an OpenAI-compatible endpoint.",
    autocompletion=complete_profiles,
)

PipelineArgument = Annotated[str, _PIPELINE]
OptionalPipelineArgument = Annotated[str | None, _PIPELINE]
RunArgument = Annotated[
    str | None,
    typer.Argument(
        help="Id of a run or a part of it; the latest if left out.", autocompletion=complete_runs
    ),
]
SourceOption = Annotated[
    str | None, typer.Option("--source", help="Folder or s3://bucket/prefix to read.")
]
SinkOption = Annotated[
    str | None, typer.Option("--sink", help="Folder or s3://bucket/prefix to write.")
]
CacheOption = Annotated[
    str | None,
    typer.Option("--cache", help="Folder or s3://bucket/prefix of shared answers; empty for none."),
]
RunSinkOption = Annotated[
    str | None,
    typer.Option("--sink", help="Sink of the run, for one that was made on another machine."),
]
EngineOption = Annotated[str | None, _ENGINE]
ThisEngineOption = Annotated[str, _ENGINE]
"""For commands about one engine, the embedded one if left out."""
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Any key of the pipeline, such as chunk.max_tokens=500."
    ),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Most documents, in path order.")
]
ModeOption = Annotated[
    str | None, typer.Option("--mode", help="Mode of every stage, in place of their own.")
]
BudgetUsdOption = Annotated[
    float | None, typer.Option("--budget-usd", min=0.0, help="Most US dollars to spend.")
]
BudgetTokensOption = Annotated[
    int | None,
    typer.Option("--budget-tokens", min=1, help="Most tokens to spend, prompts and answers."),
]
BudgetGpuSecondsOption = Annotated[
    float | None,
    typer.Option("--budget-gpu-seconds", min=0.0, help="Most seconds of GPU time to spend."),
]


class Interrupted(KeyboardInterrupt):
    """The process got a signal that ends it; `code` is the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


@app.callback()
def _root(
    *,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the log at INFO on stderr.")
    ] = False,
) -> None:
    # The handler has the level, not the loggers: a run's own log keeps more than is shown here.
    level = logging.INFO if verbose else logging.WARNING
    handler = RichHandler(level=level, console=stderr(), show_path=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    for name in _FOREIGN:
        # What matters of an MCP server is told by `tools.mcp`.
        logging.getLogger(name).setLevel(logging.ERROR)
    if verbose:
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.INFO)


def stderr() -> Console:
    """Return the console for everything but a command's result."""
    return Console(stderr=True, highlight=False)


def note(line: str) -> None:
    """Show one line on stderr."""
    stderr().print(line, markup=False, soft_wrap=True)


def print_json(value: Mapping[str, Any]) -> None:
    """Print a command's result for a machine."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def print_lines(lines: Sequence[str]) -> None:
    """Print a command's result for a person, each line as it is: some are to be copied."""
    for line in lines:
        Console(highlight=False).print(line, markup=False, soft_wrap=True)


def print_verdict(lines: Sequence[str]) -> None:
    """Print sentences behind labels: on a terminal broken between words, the rest below where each began.

    Into a file or a pipe each goes as one line, for tools that look for it.
    """
    console = Console(highlight=False)
    if console.is_terminal:
        lines = [part for line in lines for part in hanging(line, console.width)]
    print_lines(lines)


def hanging(line: str, width: int) -> list[str]:
    """Return a line of labels and a sentence as lines of a width; labels end with two blanks."""
    labels = re.match(r"(?: {2,}|[^ ]+(?: [^ ]+)* {2,}){1,3}", line[: width // 2])
    indent = " " * (labels.end() if labels is not None else 2)
    return textwrap.wrap(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or [line]


def end_on_no(*, is_no: bool) -> None:
    """End a command that gives a verdict, once it is printed; apart, since a command's docstring is its help.

    Raises:
        Exit: With 1 where the verdict is no, for scripts that ask before they go on.
    """
    if is_no:
        raise typer.Exit(EXIT_INCOMPLETE)


@contextmanager
def exit_codes(
    on_interrupt: Callable[[], str] = lambda: "interrupted",
    on_incomplete: Callable[[], str] = lambda: "",
) -> Iterator[None]:
    """Turn errors that someone must act on into one message and an exit code.

    Args:
        on_interrupt: Returns what to say after Ctrl-C or SIGTERM: what stays, and how to go on.
        on_incomplete: Returns what to say last after an error that can be mended midway; empty for nothing.

    Raises:
        Exit: With the exit code.
    """
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except (ConfigError, StorageError, SetUpImpossible) as exc:
        may_go_on = _may_go_on(exc)
        _complain(exc, on_incomplete() if may_go_on else "")
        raise typer.Exit(EXIT_INCOMPLETE if may_go_on else EXIT_USAGE) from exc
    except (EngineError, ConnectorError) as exc:
        _complain(exc, on_incomplete())
        raise typer.Exit(EXIT_INCOMPLETE) from exc
    except KeyboardInterrupt as exc:
        note(on_interrupt())
        sys.stdout.flush()
        # Everything is closed by now; a thread that still waits for the network must not hold us.
        os._exit(exc.code if isinstance(exc, Interrupted) else EXIT_INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _may_go_on(exc: Exception) -> bool:
    """Tell whether the same command can go through later, as it is."""
    return isinstance(exc, DiskFull) or getattr(exc, "retryable", False)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted(EXIT_TERMINATED)


def _complain(exc: Exception, last: str) -> None:
    escaped = str(exc).replace("[", "\\[")
    stderr().print(f"[bold red]error:[/] {escaped}", soft_wrap=True)
    if last:
        note(last)


def main() -> None:
    """Run the command line."""
    app()
