"""The `headrace` command. Turns errors into one message and an exit code; holds no logic of runs.

Exit codes: 0 complete; 1 the run did not complete; 2 wrong usage or configuration; 3 complete, but
over the failure limit; 130 interrupted.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler

from config.errors import ConfigError
from config.load import load_surroundings
from connectors.errors import ConnectorError, StorageError
from connectors.sinks.lake import Lake
from engine.errors import EngineError
from flows.run.core import run_job
from flows.run.job import make_job, new_run_id
from flows.run.progress import Listener, Progress
from flows.terminal import ProgressBar, print_summary

EXIT_INCOMPLETE, EXIT_USAGE, EXIT_OVER_LIMIT, EXIT_INTERRUPTED = 1, 2, 3, 130

app = typer.Typer(
    name="headrace",
    help="A batch engine for document corpora: object storage to a language model to Parquet.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    """Keep `run` a subcommand while it is the only one."""


@app.command()
def run(
    pipeline: Annotated[Path, typer.Argument(help="The pipeline's YAML file.")],
    source: Annotated[
        str | None, typer.Option(help="Folder or s3://bucket/prefix to read.")
    ] = None,
    sink: Annotated[str | None, typer.Option(help="Folder or s3://bucket/prefix to write.")] = None,
    engine: Annotated[str | None, typer.Option(help="Profile name, or URL of an endpoint.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most documents to read.")] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the manifest as one JSON object, and nothing else."),
    ] = False,
) -> None:
    """Run a pipeline over a folder or bucket of mixed files.

    Example: headrace run config/pipelines/demo.yaml --source ./papers --sink ./lake

    Without a Prefect API (PREFECT_API_URL) it runs in this process; with one, as a flow run.

    Raises:
        Exit: With the exit code.
    """
    console = Console(stderr=True)
    _configure_logging(console)
    with _exit_codes(console), ProgressBar(console, enabled=not as_json) as bar:
        options = {"source": source, "sink": sink, "engine": engine, "limit": limit}
        runner = _run_in_prefect if load_surroundings().prefect_api_url else _run_here
        manifest = runner(pipeline, options, bar.show, bar.note)
    if as_json:
        sys.stdout.write(json.dumps(manifest, ensure_ascii=False) + "\n")
    else:
        print_summary(Console(), manifest)
    if manifest["verdict"] == "over_failure_limit":
        raise typer.Exit(EXIT_OVER_LIMIT)
    if manifest["verdict"] != "complete":
        raise typer.Exit(EXIT_INCOMPLETE)


def _run_here(
    pipeline: Path, options: Mapping[str, Any], show: Listener, note: Callable[[str], None]
) -> Mapping[str, Any]:
    job = make_job(pipeline, **options)
    return run_job(job, progress=Progress(show), notify=note)


def _run_in_prefect(
    pipeline: Path, options: Mapping[str, Any], show: Listener, note: Callable[[str], None]
) -> Mapping[str, Any]:
    # Checked before Prefect is imported and a flow run exists, for a quick and clear answer.
    job = make_job(pipeline, **options, run_id=new_run_id())
    note("reporting to the Prefect server")
    from flows.corpus import process_corpus, show_progress_with  # noqa: PLC0415 - importing Prefect takes seconds

    show_progress_with(show)
    state = process_corpus(str(pipeline.resolve()), **options, run_id=job.run_id, return_state=True)
    if state.is_crashed() or (state.is_failed() and state.name == "Failed"):
        state.result(raise_on_failure=True)
    manifest = json.loads(Lake(job.sink).storage.get(f"runs/{job.run_id}/manifest.json"))
    assert isinstance(manifest, dict)
    return manifest


def _configure_logging(console: Console) -> None:
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=console, show_path=False)],
    )


@contextmanager
def _exit_codes(console: Console) -> Iterator[None]:
    """Turn errors that someone must act on into one message and an exit code.

    Raises:
        Exit: With the exit code.
    """
    try:
        yield
    except (ConfigError, StorageError) as exc:
        _complain(
            console, exc, EXIT_USAGE if not getattr(exc, "retryable", False) else EXIT_INCOMPLETE
        )
    except (EngineError, ConnectorError) as exc:
        _complain(console, exc, EXIT_INCOMPLETE)
    except KeyboardInterrupt:
        console.print("interrupted; run the same command again to go on")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _complain(console: Console, exc: Exception, code: int) -> None:
    console.print(f"[bold red]error:[/] {_escape(str(exc))}", highlight=False, soft_wrap=True)
    raise typer.Exit(code) from exc


def _escape(text: str) -> str:
    return text.replace("[", "\\[")


def main() -> None:
    """Run the command line."""
    app()
