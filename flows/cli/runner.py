"""`headrace engine runner`: Clarifai's local runner on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from flows.cli.app import AsJson, exit_codes, note, print_json, print_lines
from flows.cli.engine import engine_app


@engine_app.command()
def runner(
    folder: Annotated[Path, typer.Argument(help="What `engine plan clarifai --emit` has written.")],
    mode: Annotated[
        str,
        typer.Option(
            "--mode",
            help="Packages of clarifai's environment (none), of a new one (env), or an image (container).",
        ),
    ] = "none",
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", min=1, help="Most requests at the same time.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start Clarifai's local runner on an emitted model, and watch over it until Ctrl-C.

    It runs `clarifai model serve`, asks the model for one token through Clarifai until it answers, and
    starts the runner again where it ends. Requests travel through Clarifai; the model runs here.

    Examples:
      headrace engine runner deploy
    """
    from typing import get_args

    from config.errors import ConfigError
    from engine.serving.runner import RunnerMode
    from flows.local_runner import Running, run_local

    def show(profile: str) -> None:
        if as_json:
            print_json({"profile": profile})
        else:
            print_lines([f"the model answers; use it with --engine {profile}"])

    with exit_codes(lambda: "local runner ended"):
        if mode not in get_args(RunnerMode):
            raise ConfigError(f"--mode {mode!r}: expected one of {', '.join(get_args(RunnerMode))}")
        asked = Running(folder=folder, mode=cast("RunnerMode", mode), concurrency=concurrency)
        run_local(asked, note, show)
