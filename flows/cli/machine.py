"""Commands about the machine: servers of this laptop and the engine that it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from config.load import child_environment, load_profile, load_surroundings
from flows.cli.app import (
    AsJson,
    app,
    complete_profiles,
    exit_codes,
    note,
    print_json,
    print_lines,
)

if TYPE_CHECKING:
    from engine.profile import Profile

engine_app = typer.Typer(
    name="engine", help="The embedded engine: install, serve, status, stop.", no_args_is_help=True
)
app.add_typer(engine_app, rich_help_panel="This machine")

ProfileOption = Annotated[
    str, typer.Option("--profile", help="Profile of an engine that this machine serves.")
]


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


@engine_app.command()
def install(as_json: AsJson = False) -> None:
    """Create the engine's own environment from locked versions; 1 to 2 minutes, 3 to 6 GB.

    Examples:
      headrace engine install
    """
    from engine.install import install as install_engine

    with exit_codes():
        surroundings = load_surroundings()
        venv, cache = surroundings.engine_venv, surroundings.cache
        install_engine(venv, cache, child_environment())
        if as_json:
            print_json({"environment": str(venv), "cache": str(cache), "installed": True})
        else:
            print_lines([f"installed in {venv}", "next: headrace engine serve"])


@engine_app.command()
def serve(
    profile: ProfileOption = "embedded",
    detach: Annotated[
        bool, typer.Option("--detach", help="Leave it running in the background.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start the engine and keep it until Ctrl-C; runs find it by themselves.

    Examples:
      headrace engine serve

      headrace engine serve --detach
    """
    from engine.server import ensure_server, find_server

    with exit_codes(lambda: "engine ended"):
        served, surroundings = _served(profile), load_surroundings()
        server = ensure_server(
            served,
            venv=surroundings.engine_venv,
            cache=surroundings.cache,
            environment=child_environment(),
            notify=note,
            detached=detach,
        )
        try:
            state = find_server(served, surroundings.cache)
            shown = {"address": server.base_url, "log": state.log if state else None}
            if as_json:
                print_json(shown)
            else:
                print_lines([f"{server.base_url}   (log: {shown['log']})"])
            server.wait()
        finally:
            server.stop()


@engine_app.command()
def status(profile: ProfileOption = "embedded", as_json: AsJson = False) -> None:
    """Tell whether the engine runs, where, and what it holds.

    Examples:
      headrace engine status --json
    """
    from engine.install import installed_megabytes
    from engine.server import cache_tokens, find_server
    from flows.terminal import print_facts

    with exit_codes():
        served, surroundings = _served(profile), load_surroundings()
        state = find_server(served, surroundings.cache)
        shown: dict[str, Any] = {
            "running": state is not None,
            "address": state.base_url if state else None,
            "model": state.model if state else served.model,
            "pid": state.pid if state else None,
            "log": state.log if state else None,
            "kv_cache_tokens": cache_tokens(state.base_url) if state else None,
            "environment": str(surroundings.engine_venv),
            "environment_megabytes": installed_megabytes(surroundings.engine_venv),
        }
        if as_json:
            print_json(shown)
            return
        facts = {name.replace("_", " "): value for name, value in shown.items() if value}
        print_facts({**facts, "next": _next(shown, surroundings.engine_venv)}, width=22)


def _next(shown: dict[str, Any], venv: Path) -> str:
    if shown["running"]:
        return "headrace engine stop"
    return "headrace engine serve" if venv.exists() else "headrace engine install"


@engine_app.command()
def stop(profile: ProfileOption = "embedded", as_json: AsJson = False) -> None:
    """End the engine, whoever started it.

    Examples:
      headrace engine stop
    """
    from engine.server import end_server

    with exit_codes():
        ended = end_server(_served(profile), load_surroundings().cache)
        if as_json:
            print_json({"ended": ended})
        else:
            print_lines(["engine ended" if ended else "no engine was running"])


def _served(name: str) -> Profile:
    """Return a profile that this machine serves.

    Raises:
        ConfigError: It names an engine elsewhere.
    """
    from config.errors import ConfigError
    from engine.local_models import LOCAL_MODELS

    profile = load_profile(name)
    if profile.serve is None:
        raise ConfigError(
            f"--profile {name!r} is an engine elsewhere; this machine serves"
            f" {' and '.join(LOCAL_MODELS)}"
        )
    return profile
