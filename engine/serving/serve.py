"""Keeps the servers of a profile on this machine: one keeper per profile, found and ended by its state file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engine.errors import PrerequisiteError
from engine.process import ChildProcess, Command, start_mark
from engine.profile import Profile
from engine.server import answers, find_server, flags_of, is_healthy, local_command
from engine.server_state import ServerState, locked, read_state, state_file, write_state
from engine.serving.command import Launch
from engine.serving.keeper import Keeper, KeepRule


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """What servers find on this machine."""

    venv: Path
    """The engine's environment; its `vllm` is taken before one on the PATH."""
    cache: Path
    """Folder of models, state files and logs."""
    environment: Mapping[str, str]
    """Environment variables for the servers."""


@contextmanager
def kept_launches(
    profile: Profile,
    launches: Sequence[Launch],
    home: Home,
    *,
    api_key: str | None,
    rule: KeepRule,
    notify: Callable[[str], None],
) -> Iterator[Keeper]:
    """Start the servers of launches, wait until they answer, and end them when the block is left.

    Args:
        profile: The host that they stand for.
        launches: Its servers.
        home: What this machine has.
        api_key: Key that they ask requests for; None: none.
        rule: When one is started again.
        notify: Called with a line whenever something changes.

    Raises:
        PrerequisiteError: There is no vLLM, the profile's server runs already, or one does not start.
    """
    program = _program(home.venv, home.environment)
    folder = home.cache.absolute() / "engine"
    own = {
        **home.environment,
        "PYTHONSAFEPATH": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    if api_key:
        # By its variable: a command line can be read by every user of the machine.
        own["VLLM_API_KEY"] = api_key
    servers: list[tuple[Command, Callable[[], bool]]] = []
    for number, launch in enumerate(launches):
        name = "engine" if len(launches) == 1 else f"engine {number + 1} of {len(launches)}"
        command = Command(
            name=name,
            argv=[program, *launch.argv[1:]],
            cwd=folder / "work",
            env={**own, **launch.environment},
            log=folder / f"{profile.name}{'' if number == 0 else f'-{number}'}.log",
        )
        # A machine that only computes for another's server has no address: it runs, or it has ended.
        url = launch.base_url
        servers.append((command, partial(answers, url) if url is not None else lambda: True))
    urls = [launch.base_url or "" for launch in launches]
    with _kept(profile, servers, urls=urls, cache=home.cache, rule=rule, notify=notify) as keeper:
        yield keeper


@contextmanager
def kept_local(
    profile: Profile,
    home: Home,
    *,
    rule: KeepRule,
    notify: Callable[[str], None],
) -> Iterator[Keeper]:
    """Start the engine of a profile with `serve`, and end it when the block is left; see `kept_launches`.

    Raises:
        PrerequisiteError: The environment is missing, the engine runs already, or it does not start.
    """
    command, base_url = local_command(
        profile,
        venv=home.venv,
        cache=home.cache.absolute(),
        environment=home.environment,
        notify=notify,
        drain_s=round(rule.drain_s),
    )
    servers = [(command, partial(is_healthy, base_url, profile.model or profile.name))]
    with _kept(
        profile, servers, urls=[base_url], cache=home.cache, rule=rule, notify=notify
    ) as keeper:
        yield keeper


@contextmanager
def _kept(
    profile: Profile,
    servers: Sequence[tuple[Command, Callable[[], bool]]],
    *,
    urls: Sequence[str],
    cache: Path,
    rule: KeepRule,
    notify: Callable[[str], None],
) -> Iterator[Keeper]:
    file = state_file(profile.name, cache.absolute())
    servers[0][0].cwd.mkdir(parents=True, exist_ok=True)

    begun: set[int] = set()

    def remember(number: int, child: ChildProcess) -> None:
        begun.add(child.pid)
        if number == 0:
            write_state(file, _state(profile, child, urls, rule))

    keeper = Keeper(servers, rule, notify, remember)
    try:
        with locked(file.with_suffix(".lock")):
            running = find_server(profile, cache)
            if running is not None:
                raise PrerequisiteError(
                    f"the engine of profile {profile.name!r} already runs at {running.base_url} (log:"
                    f" {running.log}); to end it, run: headrace engine stop {profile.name}"
                )
            keeper.wait_ready()
        yield keeper
    finally:
        if not keeper.stop():
            notify("engine: requests were still under way at the end, and were cut off")
        state = read_state(file)
        if state is not None and state.pid in begun:
            file.unlink(missing_ok=True)


def _state(
    profile: Profile, child: ChildProcess, urls: Sequence[str], rule: KeepRule
) -> ServerState:
    mark, own = child.mark, os.getpid()
    return ServerState(
        pid=mark.pid,
        started=mark.started,
        base_url=urls[0],
        model=profile.model or profile.name,
        log=str(child.command.log),
        flags=flags_of(child.command),
        keeper_pid=own,
        keeper_started=start_mark(own),
        drain_s=rule.drain_s,
        replicas=tuple(urls[1:]),
    )


def _program(venv: Path, environment: Mapping[str, str]) -> str:
    own = venv.absolute() / "bin" / "vllm"
    if own.is_file():
        return str(own)
    found = shutil.which("vllm", path=environment.get("PATH"))
    if found is None:
        raise PrerequisiteError(
            f"there is no vLLM: neither in {str(venv)!r} nor on the PATH; run `headrace engine install`"
            " on the GPU machine, or install vLLM 0.32 there"
        )
    return found
