"""The vLLM process of an engine that this machine starts: found running, or started and supervised.

vLLM lives in an environment of its own and runs in a working directory of its own, so that none of
this project's package names shadows its imports.
"""

from __future__ import annotations

import hashlib
import platform
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from engine.errors import PrerequisiteError
from engine.local_models import LOCAL_MODELS
from engine.process import ChildProcess, Command
from engine.profile import Profile
from engine.server_state import ServerState, locked, read_state, state_file, write_state

READY_LIMIT_S = 600.0
"""Most seconds until the engine answers; 40-70 s on two idle cores."""

_DRAIN_MARGIN_S = 30.0
"""Seconds that a server's processes get to end once its requests are finished."""

_CACHE_METRIC = "vllm:cache_config_info"

KV_CACHE_GIB = 1
"""Memory for the KV cache: 46,000 tokens of SmolLM2 at 22.5 KiB, 233,000 of the tiny K2.5 at 4.5 KiB.
"""


class Server:
    """A running engine; `stop` ends it only where this process started it."""

    def __init__(self, base_url: str, child: ChildProcess | None) -> None:
        self.base_url = base_url
        self._child = child

    @property
    def started_here(self) -> bool:
        """Tell whether this process started it."""
        return self._child is not None

    def wait(self) -> int | None:
        """Wait until the engine ends and return its exit code; None where it was not started here."""
        return self._child.wait() if self._child is not None else None

    def stop(self) -> None:
        """End the engine, if it was started here."""
        if self._child is not None:
            self._child.stop()


def ensure_server(
    profile: Profile,
    *,
    venv: Path,
    cache: Path,
    environment: Mapping[str, str],
    notify: Callable[[str], None],
    detached: bool = False,
) -> Server:
    """Return the profile's running engine; start it where there is none.

    Args:
        profile: A profile with `serve`.
        venv: The engine's environment.
        cache: Folder of model weights, compile caches and state files.
        environment: Environment variables for the child.
        notify: Called with lines about the start.
        detached: Whether an engine that is started outlives this process; see `end_server`.

    Raises:
        PrerequisiteError: The environment is missing, the engine does not start, or it runs with
            other flags than the profile's.
    """
    cache = cache.absolute()
    file = state_file(profile.name, cache)
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file.with_suffix(".lock")):
        running = _running(file)
        command, base_url = local_command(
            profile, venv=venv, cache=cache, environment=environment, notify=notify
        )
        if running is not None:
            if running.flags != flags_of(command):
                raise PrerequisiteError(
                    f"engine {profile.name!r} runs at {running.base_url} with other flags than its"
                    f" profile has now; run: headrace engine stop {profile.name}"
                )
            notify(f"engine: already running at {running.base_url} (log: {running.log})")
            return Server(running.base_url, None)
        state, child = _start(profile, command, base_url, detached=detached, notify=notify)
        write_state(file, state)
        return Server(base_url, None if detached else child)


def find_server(profile: Profile, cache: Path) -> ServerState | None:
    """Return the profile's engine, if it runs on this machine and answers."""
    return _running(state_file(profile.name, cache.absolute()))


def end_server(profile: Profile, cache: Path) -> bool:
    """End the profile's engine, whoever started it, and return whether one was running."""
    file = state_file(profile.name, cache.absolute())
    state = read_state(file)
    file.unlink(missing_ok=True)
    if state is None:
        return False
    # Whoever watches over it would start it again: it is asked, and ends it in its own time.
    asked = state.keeper is not None and state.keeper.ask_to_end(state.drain_s + _DRAIN_MARGIN_S)
    return state.mark.stop() or asked


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFacts:
    """The KV cache of a vLLM server."""

    num_tokens: int
    """What it holds."""
    block_tokens: int
    """What it keeps or drops as one."""


def cache_facts(base_url: str) -> CacheFacts | None:
    """Return what a vLLM server says of its KV cache; None where it does not tell."""
    try:
        text = httpx.get(f"{base_url.removesuffix('/v1')}/metrics", timeout=5.0).text
    except httpx.HTTPError:
        return None
    line = next((row for row in text.splitlines() if row.startswith(_CACHE_METRIC)), "")
    facts = dict(re.findall(r'(\w+)="([^"]*)"', line))
    try:
        block = int(facts["block_size"])
        return CacheFacts(num_tokens=int(facts["num_gpu_blocks"]) * block, block_tokens=block)
    except (KeyError, ValueError):
        return None


def cache_tokens(base_url: str) -> int | None:
    """Return how many tokens the KV cache of a vLLM server holds; None where it does not tell."""
    facts = cache_facts(base_url)
    return facts.num_tokens if facts is not None else None


def local_command(
    profile: Profile,
    *,
    venv: Path,
    cache: Path,
    environment: Mapping[str, str],
    notify: Callable[[str], None],
    drain_s: int = 0,
) -> tuple[Command, str]:
    """Return what starts an engine that this project makes itself, and the address it will have.

    Args:
        profile: A profile with `serve`.
        venv: The engine's environment.
        cache: Folder of model weights, compile caches and state files.
        environment: Environment variables for the child.
        notify: Called with lines about the model's files.
        drain_s: Seconds that requests under way get when it is asked to end.

    Raises:
        PrerequisiteError: The engine's environment is missing.
    """
    python = venv.absolute() / "bin" / "python"
    if not python.exists():
        raise PrerequisiteError(
            f"the engine's environment {str(venv)!r} is missing; run `headrace engine install`,"
            " or give the URL of an engine that runs elsewhere with --engine"
        )
    assert profile.serve is not None
    model = LOCAL_MODELS[profile.serve]
    folder = model.prepare(python, cache, environment, notify)
    port = _free_port()
    work = cache / "engine" / "work"
    work.mkdir(parents=True, exist_ok=True)
    name = profile.model or profile.name
    command = Command(
        name="engine",
        argv=[
            str(python), "-m", "vllm.entrypoints.openai.api_server",
            f"--model={folder}", f"--served-model-name={name}",
            f"--dtype={model.dtype()}", f"--max-model-len={profile.context_tokens}",
            "--host=127.0.0.1", f"--port={port}", *profile.server_flags,
            *([f"--shutdown-timeout={drain_s}"] if drain_s else []),
        ],
        cwd=work,
        env={**environment, **_variables(cache)},
        log=cache / "engine" / f"{profile.name}.log",
    )  # fmt: skip
    return command, f"http://127.0.0.1:{port}/v1"


def _start(
    profile: Profile,
    command: Command,
    base_url: str,
    *,
    detached: bool,
    notify: Callable[[str], None],
) -> tuple[ServerState, ChildProcess]:
    notify(f"engine: starting vLLM at {base_url} (log: {command.log})")
    child = ChildProcess(command, detached=detached)
    try:
        seconds = child.wait_ready(
            lambda: is_healthy(base_url), limit_s=READY_LIMIT_S, notify=notify
        )
    except BaseException:
        child.stop()
        raise
    notify(f"engine: ready after {seconds:.0f} s")
    mark, model = child.mark, profile.model or profile.name
    return ServerState(
        pid=mark.pid,
        started=mark.started,
        base_url=base_url,
        model=model,
        log=str(command.log),
        flags=flags_of(command),
    ), child


def flags_of(command: Command) -> str:
    """Return a hash of what a command asks for, but for its port and how it ends."""
    ways = ("--port=", "--shutdown-timeout=")
    told = [word for word in command.argv[1:] if not word.startswith(ways)]
    return hashlib.sha256("\0".join(told).encode()).hexdigest()[:16]


def _variables(cache: Path) -> dict[str, str]:
    """Return what vLLM's process needs to know, beyond its flags."""
    caches = cache / "engine" / f"caches-{platform.machine()}"
    return {
        "PYTHONSAFEPATH": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
        "VLLM_CACHE_ROOT": str(caches / "vllm"),
        "NUMBA_CACHE_DIR": str(caches / "numba"),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_COLOR": "0",
    }


def _running(file: Path) -> ServerState | None:
    """Return the server that the state file tells of, if it is alive and answers."""
    state = read_state(file)
    if state is None or not state.mark.is_alive:
        return None
    if state.keeper is not None:
        return state if answers(state.base_url) else None
    return state if is_healthy(state.base_url, state.model) else None


def answers(base_url: str) -> bool:
    """Tell whether a vLLM server says that it is well; that takes no key."""
    try:
        return httpx.get(f"{base_url.removesuffix('/v1')}/health", timeout=5.0).is_success
    except httpx.HTTPError:
        return False


def is_healthy(base_url: str, model: str | None = None) -> bool:
    """Tell whether a server lists its models, and that one among them."""
    try:
        answer = httpx.get(f"{base_url}/models", timeout=2.0)
        models = [item["id"] for item in answer.json()["data"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False
    return model is None or model in models


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port
