"""Keeps Clarifai's local runner on this machine: `clarifai model serve`, and whether the model answers through it.

The runner has no address of its own. It connects to Clarifai, which hands requests for the model's URL on to it, so
that only a request tells whether it is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx

from engine.errors import EngineUnavailable, RequestRejected
from engine.process import ChildProcess, Command
from engine.profile import Profile
from engine.serving.keeper import Keeper, KeepRule
from engine.status import authorization, map_errors, raise_for_status

RunnerMode = Literal["none", "env", "container"]
"""`--mode` of `clarifai model serve`: packages of its own environment, of a new one, or of an image."""

ASK_EVERY_S = 10.0
"""Seconds between two requests to a runner that does not answer yet."""

_ASK_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerSetUp:
    """What a local runner is started with."""

    program: str
    """Path of `clarifai`."""
    model: Path
    """Folder with config.yaml, requirements.txt and 1/model.py."""
    mode: RunnerMode
    concurrency: int
    """Most requests under way at the same time."""
    log: Path
    environment: Mapping[str, str]
    """Environment variables of the runner."""


def runner_command(wanted: RunnerSetUp) -> Command:
    """Return what starts the runner; it reads the account from `clarifai login` or the environment."""
    return Command(
        name="local runner",
        argv=[
            wanted.program, "model", "serve", str(wanted.model),
            "--mode", wanted.mode, "--concurrency", str(wanted.concurrency),
        ],
        cwd=wanted.model,
        env=wanted.environment,
        log=wanted.log,
    )  # fmt: skip


class ModelProbe:
    """Asks a hosted model for one token until it has answered once; each question may cost that token.

    Afterwards it says yes without asking, until `forget`: the runner's process tells whether it still runs.
    """

    def __init__(
        self,
        profile: Profile,
        api_key: str | None,
        notify: Callable[[str], None],
        *,
        every_s: float = ASK_EVERY_S,
    ) -> None:
        """Ask for a profile's model, at most every `every_s` seconds; `notify` is told why it does not answer."""
        self._profile = profile
        self._key = api_key
        self._notify = notify
        self._every_s = every_s
        self._next = 0.0
        self._has_answered = False
        self._said = ""

    def forget(self) -> None:
        """Ask anew, since the model is being started again."""
        self._has_answered, self._next = False, time.monotonic() + self._every_s

    def __call__(self) -> bool:
        """Tell whether the model has answered.

        Raises:
            EngineMisconfigured: The host refuses the key, or knows no such address.
        """
        if not self._has_answered and time.monotonic() >= self._next:
            self._has_answered = self._ask()
            self._next = time.monotonic() + self._every_s
        return self._has_answered

    def _ask(self) -> bool:
        base_url = self._profile.base_url or ""
        instant = self._profile.modes.get("instant")
        body = {
            "model": self._profile.model,
            "messages": [{"role": "user", "content": "Say yes."}],
            "max_tokens": 1,
            **(instant.wire if instant is not None else {}),
        }
        try:
            with map_errors(base_url):
                answer = httpx.post(
                    f"{base_url}/chat/completions",
                    json=body,
                    headers=authorization(self._key),
                    timeout=_ASK_LIMIT_S,
                )
            # A model that nobody serves yet may well be unknown there.
            if answer.status_code == httpx.codes.NOT_FOUND:
                return self._not_yet(f"{base_url} knows no model {self._profile.model!r} yet")
            raise_for_status(answer, base_url, key=self._profile.key_in_words)
        except (EngineUnavailable, RequestRejected) as exc:
            return self._not_yet(str(exc))
        return True

    def _not_yet(self, why: str) -> bool:
        if why != self._said:
            self._said = why
            self._notify(f"local runner: {why}")
        return False


@contextmanager
def kept_runner(
    wanted: RunnerSetUp, probe: ModelProbe, *, rule: KeepRule, notify: Callable[[str], None]
) -> Iterator[Keeper]:
    """Start the runner, wait until its model answers through Clarifai, and end it when the block is left.

    Raises:
        PrerequisiteError: It ended, or its model did not answer in time.
        EngineMisconfigured: Clarifai refuses the key.
    """

    def begun(_number: int, _child: ChildProcess) -> None:
        probe.forget()

    keeper = Keeper([(runner_command(wanted), probe)], rule, notify, begun)
    try:
        keeper.wait_ready()
        yield keeper
    finally:
        keeper.stop()
