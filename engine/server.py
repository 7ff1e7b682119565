"""The vLLM process of an engine that this machine starts: found running, or started and supervised.

vLLM lives in an environment of its own and runs in a working directory of its own, so that none of
this project's package names shadows its imports.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from engine import embedded
from engine.errors import PrerequisiteError
from engine.process import ChildProcess, Command
from engine.profile import Profile

READY_LIMIT_S = 600.0
"""Most seconds until the engine answers; 40-70 s on two idle cores."""

KV_CACHE_GIB = 1
"""Memory for the KV cache: SmolLM2 needs 22.5 KiB a token, so 1 GiB holds 46,000 tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What the state file says of a running server."""

    pid: int
    base_url: str
    model: str
    log: str


class Server:
    """A running engine; `stop` ends it only where this process started it."""

    def __init__(self, base_url: str, child: ChildProcess | None) -> None:
        self.base_url = base_url
        self._child = child

    @property
    def started_here(self) -> bool:
        """Tell whether this process started it."""
        return self._child is not None

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
) -> Server:
    """Return the profile's running engine; start it where there is none.

    Args:
        profile: A profile with `serve`.
        venv: The engine's environment.
        cache: Folder of model weights, compile caches and state files.
        environment: Environment variables for the child.
        notify: Called with lines about the start.

    Raises:
        PrerequisiteError: The environment is missing, or the engine does not start.
    """
    cache = cache.absolute()
    state_file = cache / "engine" / f"{profile.name}.json"
    state_file.parent.mkdir(parents=True, exist_ok=True)
    with _lock(state_file.with_suffix(".lock")):
        running = _running(state_file)
        if running is not None:
            notify(f"engine: already running at {running.base_url} (log: {running.log})")
            return Server(running.base_url, None)
        return _start(
            profile, state_file, venv=venv, cache=cache, environment=environment, notify=notify
        )


def _start(
    profile: Profile,
    state_file: Path,
    *,
    venv: Path,
    cache: Path,
    environment: Mapping[str, str],
    notify: Callable[[str], None],
) -> Server:
    python = venv.absolute() / "bin" / "python"
    if not python.exists():
        raise PrerequisiteError(
            f"the engine's environment {str(venv)!r} is missing; run `make install`,"
            " or give the URL of an engine that runs elsewhere with --engine"
        )
    model = embedded.prepare(python, cache, environment, notify)
    port = _free_port()
    work = cache / "engine" / "work"
    work.mkdir(parents=True, exist_ok=True)
    name = profile.model or profile.name
    command = Command(
        name="engine",
        argv=[
            str(python), "-m", "vllm.entrypoints.openai.api_server",
            f"--model={model}", f"--served-model-name={name}",
            f"--dtype={embedded.dtype()}", f"--max-model-len={profile.context_tokens}",
            "--host=127.0.0.1", f"--port={port}", *profile.server_flags,
        ],
        cwd=work,
        env={**environment, **_variables(cache)},
        log=cache / "engine" / f"{profile.name}.log",
    )  # fmt: skip
    base_url = f"http://127.0.0.1:{port}/v1"
    notify(f"engine: starting vLLM at {base_url} (log: {command.log})")
    child = ChildProcess(command)
    try:
        seconds = child.wait_ready(
            lambda: _is_healthy(base_url), limit_s=READY_LIMIT_S, notify=notify
        )
    except BaseException:
        child.stop()
        raise
    notify(f"engine: ready after {seconds:.0f} s")
    state = _State(pid=child.pid, base_url=base_url, model=name, log=str(command.log))
    state_file.write_text(json.dumps(asdict(state)), encoding="utf-8")
    return Server(base_url, child)


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


def _running(state_file: Path) -> _State | None:
    """Return the server that the state file tells of, if it is alive and answers."""
    try:
        state = _State(**json.loads(state_file.read_text(encoding="utf-8")))
        os.kill(state.pid, 0)
    except (OSError, ValueError, TypeError):
        return None
    return state if _is_healthy(state.base_url, state.model) else None


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
