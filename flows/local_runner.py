"""Starts Clarifai's local runner on an emitted model: what `headrace engine runner` does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from config.errors import ConfigError
from config.load import child_environment, load_profile, load_secret, load_surroundings
from engine.errors import PrerequisiteError
from engine.profile import Profile
from engine.serving.clarifai import NO_USER
from engine.serving.keeper import KeepRule
from engine.serving.runner import ASK_EVERY_S, ModelProbe, RunnerMode, RunnerSetUp, kept_runner

_RULE = KeepRule(ready_s=14_400.0, drain_s=10.0)
"""Four hours until it answers, since the weights may have to be fetched first. It ends in 10 s; what it has made
at Clarifai stays there for the next start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A local runner that is to be started."""

    folder: Path
    """What `engine plan --emit` has written."""
    mode: RunnerMode = "none"
    concurrency: int | None = None
    """Most requests under way at the same time; None: as the profile says."""
    ask_every_s: float = ASK_EVERY_S


def find_profile(folder: Path) -> tuple[Path, Profile]:
    """Return the profile that lies in an emitted folder, and its file.

    Raises:
        ConfigError: There is none, or more than one, or it lacks the account.
    """
    files = sorted(folder.glob("clarifai-*.yaml"))
    if len(files) != 1 or not (folder / "model" / "config.yaml").is_file():
        raise ConfigError(
            f"{folder}: expected one clarifai-*.yaml and model/config.yaml, as `headrace engine plan clarifai --emit"
            f" {folder}` writes them; found {', '.join(file.name for file in files) or 'no such profile'}"
        )
    profile = load_profile(str(files[0]))
    if profile.model is None or NO_USER in profile.model:
        raise ConfigError(
            f"{files[0]}: model: {profile.model!r} lacks your user id; put it for {NO_USER} there, or emit the"
            " files again with --user-id and --overwrite"
        )
    return files[0], profile


def run_local(running: Running, notify: Callable[[str], None], show: Callable[[str], None]) -> None:
    """Start the runner, show the profile's file once its model answers, and watch over it until interrupted.

    Raises:
        ConfigError: The folder is none that was emitted.
        PrerequisiteError: The clarifai package or the key is missing, or the runner does not start.
        EngineMisconfigured: Clarifai refuses the key.
    """
    file, profile = find_profile(running.folder)
    key = load_secret(profile.api_key_env)
    if not key:
        raise PrerequisiteError(
            f"{profile.api_key_env} is not set; it holds your personal access token, with which the runner is asked"
        )
    program = shutil.which("clarifai")
    if program is None:
        raise PrerequisiteError(
            "there is no `clarifai` on the PATH; in an environment of its own: pip install clarifai==12.5.0, then"
            " clarifai login, and put its bin folder on the PATH"
        )
    wanted = RunnerSetUp(
        program=program,
        model=(running.folder / "model").absolute(),
        mode=running.mode,
        concurrency=running.concurrency or profile.max_in_flight,
        log=load_surroundings().cache.absolute() / "engine" / f"{profile.name}.runner.log",
        environment=child_environment(),
    )
    probe = ModelProbe(profile, key, notify, every_s=running.ask_every_s)
    with kept_runner(wanted, probe, rule=_RULE, notify=notify) as keeper:
        show(str(file))
        keeper.keep()
