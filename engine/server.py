"""The vLLM process of an engine that this machine starts: found running, or started and supervised.

vLLM lives in an environment of its own and runs in a working directory of its own, so that none of
this project's package names shadows its imports.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import platform
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from engine.errors import PrerequisiteError
from engine.local_models import LOCAL_MODELS
from engine.process import ChildProcess, Command, ProcessMark
from engine.profile import Profile

READY_LIMIT_S = 600.0
"""Most seconds until the engine answers; 40-70 s on two idle cores."""

_CACHE_METRIC = "vllm:cache_config_info"

KV_CACHE_GIB = 1
"""Memory for the KV cache: 46,000 tokens of SmolLM2 at 22.5 KiB, 233,000 of the tiny K2.5 at 4.5 KiB.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """What the state file says of a running server."""

    pid: int
    started: str
    """Start mark of the process, so that a reused number is not taken for it."""
    base_url: str
    model: str
    log: str
    flags: str = ""
    """Hash of its command line but for the port, which tells whether it is what a profile asks for."""

    @property
    def mark(self) -> ProcessMark:
        """Return its process."""
        return ProcessMark(pid=self.pid, started=self.started)


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
    state_file = _state_file(profile, cache)
    state_file.parent.mkdir(parents=True, exist_ok=True)
    with _lock(state_file.with_suffix(".lock")):
        running = _running(state_file)
        command, base_url = _command(
            profile, venv=venv, cache=cache, environment=environment, notify=notify
        )
        if running is not None:
            if running.flags != _flags_of(command):
                raise PrerequisiteError(
                    f"engine {profile.name!r} runs at {running.base_url} with other flags than its"
                    f" profile has now; run: headrace engine stop --profile {profile.name}"
                )
            notify(f"engine: already running at {running.base_url} (log: {running.log})")
            return Server(running.base_url, None)
        state, child = _start(profile, command, base_url, detached=detached, notify=notify)
        state_file.write_text(json.dumps(asdict(state)), encoding="utf-8")
        return Server(base_url, None if detached else child)


def find_server(profile: Profile, cache: Path) -> ServerState | None:
    """Return the profile's engine, if it runs on this machine and answers."""
    return _running(_state_file(profile, cache.absolute()))


def end_server(profile: Profile, cache: Path) -> bool:
    """End the profile's engine, whoever started it, and return whether one was running."""
    state_file = _state_file(profile, cache.absolute())
    state = _read_state(state_file)
    state_file.unlink(missing_ok=True)
    return state is not None and state.mark.stop()


def cache_tokens(base_url: str) -> int | None:
    """Return how many tokens the KV cache of a vLLM server holds; None where it does not tell."""
    facts = _cache_facts(base_url)
    try:
        return int(facts["num_gpu_blocks"]) * int(facts["block_size"])
    except (KeyError, ValueError):
        return None


def cache_block_tokens(base_url: str) -> int | None:
    """Return how many tokens a block of the KV cache of a vLLM server holds; None where it does not tell."""
    try:
        return int(_cache_facts(base_url)["block_size"])
    except (KeyError, ValueError):
        return None


def _cache_facts(base_url: str) -> dict[str, str]:
    try:
        text = httpx.get(f"{base_url.removesuffix('/v1')}/metrics", timeout=5.0).text
    except httpx.HTTPError:
        return {}
    line = next((row for row in text.splitlines() if row.startswith(_CACHE_METRIC)), "")
    return dict(re.findall(r'(\w+)="([^"]*)"', line))


def _state_file(profile: Profile, cache: Path) -> Path:
    return cache / "engine" / f"{profile.name}.json"


def _command(
    profile: Profile,
    *,
    venv: Path,
    cache: Path,
    environment: Mapping[str, str],
    notify: Callable[[str], None],
) -> tuple[Command, str]:
    """Return what starts the engine, and the address it will have.

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
            lambda: _is_healthy(base_url), limit_s=READY_LIMIT_S, notify=notify
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
        flags=_flags_of(command),
    ), child


def _flags_of(command: Command) -> str:
    told = [word for word in command.argv[1:] if not word.startswith("--port=")]
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


def _running(state_file: Path) -> ServerState | None:
    """Return the server that the state file tells of, if it is alive and answers."""
    state = _read_state(state_file)
    if state is None or not state.mark.is_alive:
        return None
    return state if _is_healthy(state.base_url, state.model) else None


def _read_state(state_file: Path) -> ServerState | None:
    try:
        return ServerState(**json.loads(state_file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _is_healthy(base_url: str, model: str | None = None) -> bool:
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


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock, so that of two starters at once only one starts an engine."""
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
