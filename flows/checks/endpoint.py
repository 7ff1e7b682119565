"""Checks whether the engine answers: the embedded one, a profile's host, or a URL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from config.load import Surroundings, load_secret
from engine.endpoint import open_endpoint
from engine.errors import EngineMisconfigured, EngineUnavailable
from engine.process import ProcessMark
from engine.profile import Profile
from engine.server import find_server
from flows.checks.finding import Finding, fail, ok, warn

ELSEWHERE = "headrace doctor --engine http://HOST:PORT/v1"


def check_engine(engine: str, profile: Profile, surroundings: Surroundings) -> Sequence[Finding]:
    """Return whether the profile's engine, given as `engine`, answers; nothing is started and no prompt is sent."""
    if profile.serve is not None:
        return [_embedded(profile, surroundings.cache)]
    return [*_key(profile), _remote(engine, profile, surroundings)]


def _embedded(profile: Profile, cache: Path) -> Finding:
    """Return whether the engine that this machine started is alive and answers."""
    running = find_server(profile, cache)
    if running is not None:
        return ok("engine", f"{running.model} at {running.base_url}, process {running.pid}")
    state_file = cache / "engine" / f"{profile.name}.json"
    if state_file.exists():
        state = json.loads(state_file.read_text(encoding="utf-8"))
        mark = ProcessMark(pid=int(state["pid"]), started=str(state.get("started", "")))
        if mark.is_alive:
            says = f"process {mark.pid} runs, but does not answer at {state['base_url']}"
            mend = "headrace engine stop"
            return warn("engine", f"{says}; its log: {state['log']}", mend)
    return ok("engine", "not running; it starts with the first run, in about 50 s")


def _key(profile: Profile) -> Sequence[Finding]:
    """Return whether the key's variable is set; what it holds is not looked at."""
    name = profile.api_key_env
    if name is None or load_secret(name):
        return [ok("engine key", f"{name} is set" if name else "the profile names none")]
    if profile.needs_key:
        says = f"{name} is not set, and {profile.name} answers nobody without a key"
        return [fail("engine key", says, f"export {name}=<your key>")]
    return [ok("engine key", f"{name} is not set; fine where the host asks for no key")]


def _remote(engine: str, profile: Profile, surroundings: Surroundings) -> Finding:
    name = profile.api_key_env
    key = load_secret(name)
    try:
        endpoint = open_endpoint(
            profile,
            venv=surroundings.engine_venv,
            cache=surroundings.cache,
            environment={},
            api_key=key,
            notify=lambda _: None,
        )
    except EngineUnavailable as exc:
        return fail("engine", str(exc), f"curl {profile.base_url}/models")
    except EngineMisconfigured as exc:
        return fail("engine", str(exc), f"export {name}=..." if name else ELSEWHERE)
    if not profile.listed:
        says = (
            f"{endpoint.base_url} answers; that it has {endpoint.model} is not confirmed, since its list of models"
            " need not name it (`listed: false`)"
        )
        return warn("engine", says, f"headrace engine check {engine}")
    says = f"{endpoint.model} at {endpoint.base_url}, context of {endpoint.context_tokens:,} tokens"
    return ok("engine", says)
