"""Serves a profile's model on this machine: what `headrace engine serve` does."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from config.errors import ConfigError
from config.load import child_environment, load_secret, load_surroundings
from engine.capacity import find_gpus
from engine.errors import PrerequisiteError, SetUpImpossible
from engine.process import ProcessMark, start_mark
from engine.profile import Profile
from engine.server import ensure_server, find_server
from engine.serving import (
    Home,
    KeepRule,
    Launch,
    ServeOptions,
    kept_launches,
    kept_local,
    launches_of,
)
from flows.capacity import Asked, capacity

Show = Callable[[str | None, str | None], None]
"""Called with the address and the log once the engine answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What a person asks to be served."""

    profile: Profile
    asked: Asked
    weights: str | None = None
    lora: tuple[str, ...] = ()
    """Adapters as given: NAME=FOLDER each."""
    speculate: bool = False
    offload_gib: float = 0.0
    node_rank: int = 0
    master_addr: str | None = None
    drain_s: int = 120
    """Seconds that requests under way get at the end."""


def launches(serving: Serving) -> list[Launch]:
    """Return what is started for a profile on GPUs.

    Raises:
        ConfigError: The profile names no facts of its model, or an adapter is not NAME=FOLDER.
        SetUpImpossible: It does not fit, or vLLM cannot serve it so.
    """
    asked = serving.asked
    if asked.wish.context_tokens is None:
        wish = replace(asked.wish, context_tokens=serving.profile.context_tokens)
        asked = replace(asked, wish=wish)
    options = ServeOptions(
        weights=serving.weights,
        adapters=dict(_adapter(text) for text in serving.lora),
        speculate=serving.speculate,
        offload_gib=serving.offload_gib,
        node_rank=serving.node_rank,
        master_addr=serving.master_addr,
        drain_s=serving.drain_s,
    )
    return launches_of(serving.profile, capacity(serving.profile, asked), options)


def _adapter(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not name or not equals or not folder:
        raise ConfigError(f"--lora {text!r}: expected NAME=FOLDER, such as contracts=./adapters/c1")
    return name, folder


def command_lines(serving: Serving) -> list[str]:
    """Return the commands that would be started, one a line.

    Raises:
        SetUpImpossible: As `launches`; or the model comes along and has no command of its own.
    """
    if serving.profile.serve is not None:
        raise SetUpImpossible(
            f"profile {serving.profile.name!r} is served from files that are made on this machine; --dry-run is"
            " for profiles on GPUs, such as kimi-k2.5"
        )
    return [launch.shown() for launch in launches(serving)]


def serve_engine(serving: Serving, notify: Callable[[str], None], show: Show) -> None:
    """Start the engine and watch over it until this process is interrupted.

    Raises:
        ConfigError: As `launches`.
        SetUpImpossible: As `launches`.
        PrerequisiteError: It cannot be started, or crashed too often.
    """
    profile, surroundings = serving.profile, load_surroundings()
    rule = KeepRule(drain_s=serving.drain_s)
    home = Home(
        venv=surroundings.engine_venv, cache=surroundings.cache, environment=child_environment()
    )
    if profile.serve is not None:
        kept = kept_local(
            profile,
            home,
            rule=replace(rule, ready_s=600.0),
            notify=notify,
        )
    else:
        started = launches(serving)
        _require_gpus(profile, serving.asked)
        kept = kept_launches(
            profile,
            started,
            home,
            api_key=load_secret(profile.api_key_env),
            rule=rule,
            notify=notify,
        )
    with kept as keeper:
        state = find_server(profile, surroundings.cache)
        show(*((state.base_url, state.log) if state is not None else (None, None)))
        keeper.keep()


def _require_gpus(profile: Profile, asked: Asked) -> None:
    """Refuse where this machine lacks the GPUs; those of AMD are not looked for.

    Raises:
        PrerequisiteError: There are too few.
        SetUpImpossible: They are mixed, or the driver is too old.
    """
    plan = capacity(profile, asked)
    if plan.layout is None or plan.gpus is None or plan.gpus.gpu.vendor == "amd":
        return
    needed = plan.layout.gpus_per_server * plan.layout.replicas // plan.layout.nodes
    found = find_gpus()
    if found is None or found.count < needed:
        has = "no GPU" if found is None else f"{found}"
        raise PrerequisiteError(
            f"nvidia-smi lists {has} on this machine, and {needed} are needed, so that nothing is started;"
            " --dry-run prints the command for the machine that has them"
        )


def detach_server(serving: Serving, notify: Callable[[str], None]) -> tuple[str | None, str | None]:
    """Start the engine in the background, wait until it answers, and return its address and log.

    Raises:
        ConfigError: As `launches`.
        SetUpImpossible: As `launches`.
        PrerequisiteError: It does not start.
    """
    profile, surroundings = serving.profile, load_surroundings()
    if profile.serve is not None:
        server = ensure_server(
            profile,
            venv=surroundings.engine_venv,
            cache=surroundings.cache,
            environment=child_environment(),
            notify=notify,
            detached=True,
        )
        state = find_server(profile, surroundings.cache)
        return server.base_url, state.log if state is not None else None
    # What is wrong with the set-up is said here, not in a log.
    launches(serving)
    _require_gpus(profile, serving.asked)
    log = surroundings.cache.absolute() / "engine" / f"{profile.name}.keeper.log"
    return _in_background(profile, log, notify)


def _in_background(
    profile: Profile, log: Path, notify: Callable[[str], None]
) -> tuple[str | None, str | None]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        keeper = subprocess.Popen(
            _again_in_front(sys.argv),
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    own, began = ProcessMark(pid=keeper.pid, started=start_mark(keeper.pid)), time.monotonic()
    notify(f"engine: starting in the background (log: {log})")
    try:
        while keeper.poll() is None:
            state = find_server(profile, load_surroundings().cache)
            if state is not None and state.keeper == own:
                notify(f"engine: ready after {time.monotonic() - began:.0f} s")
                return state.base_url, state.log
            time.sleep(1.0)
    except BaseException:
        own.ask_to_end(_GIVE_UP_S)
        raise
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
    raise PrerequisiteError("the engine did not start:\n" + "\n".join(tail))


_GIVE_UP_S = 30.0
"""Seconds that a start in the background gets to be taken back, once nobody waits for it."""


def _again_in_front(argv: Sequence[str]) -> list[str]:
    """Return this very command without what asks for the background."""
    return [argv[0], *(word for word in argv[1:] if word not in {"--detach", "--json"})]
