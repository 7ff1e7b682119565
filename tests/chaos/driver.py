"""Starts a run as its own process group, kills it at moments of its work, and has it go on."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from connectors.storage import open_storage
from tests.chaos.world import HEADRACE, ROOT, World, environment

_POLL_S = 0.02
_HANGS_S = 240.0
EARLY = 1 / 6
"""Share of kills that come before the work begins."""
_TAIL = 0.25
"""Share of a run's work that comes even if all answers are there: reading, commit, report."""


class Pace(NamedTuple):
    """How long an undisturbed run takes."""

    start_s: float
    """Until it begins its work."""
    work_s: float
    num_paid: int


class Ended(NamedTuple):
    """How an attempt ended; the code of a killed one is negative."""

    code: int
    out: str
    told: str
    began_s: float | None
    seconds: float

    @property
    def says_begin_anew(self) -> bool:
        """Tell whether the run was killed before there was a plan to go on with."""
        told = " ".join(self.told.split())
        advice = ("run the same command again", "start a new run")
        return self.code == 2 and any(words in told for words in advice)

    @property
    def manifest(self) -> dict[str, Any]:
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


Kill = Callable[[float, float | None], bool]
"""Tells whether an attempt is killed now, from the seconds since its start and since it began its work."""


class Moment(NamedTuple):
    """So long after its start, or after it has begun its work."""

    early: bool
    delay_s: float

    def __call__(self, since_start_s: float, since_began_s: float | None) -> bool:
        since_s = since_start_s if self.early else since_began_s
        return since_s is not None and since_s >= self.delay_s


def attempt(
    command: Sequence[str],
    env: Mapping[str, str],
    kill: Kill | None = None,
    *,
    poll_s: float = _POLL_S,
) -> Ended:
    """Start a command and return how it ended, by itself or by SIGKILL to all its processes."""
    state = Path(env["HEADRACE_STATE"])
    before, started = _touched(state), time.monotonic()
    began = None
    with _output() as out, _output() as told:
        process = subprocess.Popen(
            command, cwd=ROOT, env=dict(env), stdout=out, stderr=told, start_new_session=True
        )
        while process.poll() is None:
            now = time.monotonic()
            if began is None and _touched(state) != before:
                began = now
            if kill is not None and kill(now - started, None if began is None else now - began):
                break
            if now - started > _HANGS_S:
                break
            time.sleep(poll_s)
        seconds = time.monotonic() - started
        # Its children too, also those of a process that has just ended by itself.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        out.seek(0)
        told.seek(0)
        ended = Ended(code, out.read(), told.read(), began and began - started, seconds)
    if seconds > _HANGS_S:
        raise AssertionError(f"the run hangs: {ended}")
    return ended


def _output() -> IO[str]:
    """Return a file for what a process says, however much that is."""
    return tempfile.TemporaryFile("w+", encoding="utf-8")


def _touched(state: Path) -> int:
    """Return when something in a state folder was last changed: a run that begins does so."""
    times = [0]
    for folder, _, names in os.walk(state):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                times.append(Path(folder, name).stat().st_mtime_ns)
    return max(times)


def undisturbed(world: World, sink: str, state: Path) -> tuple[dict[str, Any], Pace]:
    """Run once without a disturbance; return the manifest and how long things took."""
    mark = world.engine.mark()
    ended = attempt(world.start(sink), environment(state))
    assert ended.code == 0, ended.told
    assert ended.began_s is not None
    paid = world.engine.paid(mark).total()
    return ended.manifest, Pace(ended.began_s, ended.seconds - ended.began_s, paid)


@dataclass(slots=True, kw_only=True)
class Driver:
    """One sink and the attempts made on it until its run is complete."""

    world: World
    sink: str
    pace: Pace
    state: Path
    random: random.Random
    elsewhere: bool = False
    """Every attempt is on another machine, which has only the sink."""
    may_fail: bool = False
    """An attempt may end with exit code 1, as when the store fails."""
    more: Mapping[str, str] = field(default_factory=dict)
    """What its environment has beside."""
    kills: int = 0
    failures: int = 0
    attempts: list[str] = field(default_factory=list)
    """What became of each, for messages."""

    def finish(self, max_kills: int) -> dict[str, Any]:
        """Have the run killed at most so many times, then complete; return its manifest."""
        mark = self.world.engine.mark()
        shares = [(number + self.random.random()) / max_kills for number in range(max_kills)]
        self.random.shuffle(shares)
        anew, num_failed = False, 0
        while num_failed < 12:
            command = self._command(anew=anew)
            moment = self._moment(shares[self.kills], mark) if self.kills < max_kills else None
            ended = attempt(command, environment(self._state(), **self.more), moment)
            self.attempts.append(f"{command[2:4]} {moment}: {ended.code} {ended.told[-600:]}")
            if ended.code == 0:
                return ended.manifest
            anew = False
            if ended.code == -signal.SIGKILL:
                self.kills += 1
                continue
            num_failed += 1
            self.failures += 1
            assert "Traceback" not in ended.told, ended.told
            anew = ended.says_begin_anew
            assert anew or (self.may_fail and ended.code == 1), f"{ended}\n{self.report()}"
        raise AssertionError(f"not complete after {num_failed} failed attempts: {self.report()}")

    def report(self) -> str:
        """Return what was tried, one attempt per line."""
        return "\n".join([f"sink {self.sink}", *self.attempts])

    def _state(self) -> Path:
        return self.state / str(len(self.attempts)) if self.elsewhere else self.state

    def _command(self, *, anew: bool) -> list[str]:
        return self.world.start(self.sink) if anew else go_on(self.world, self.sink)

    def _moment(self, share: float, mark: int) -> Moment:
        """Return a moment in what is left of the run, `share` of its way."""
        if self.random.random() < EARLY:
            return Moment(early=True, delay_s=self.pace.start_s * self.random.random())
        answered = len(self.world.engine.paid(mark)) / self.pace.num_paid
        left = _TAIL + (1 - _TAIL) * max(0.0, 1 - answered)
        return Moment(early=False, delay_s=self.pace.work_s * left * share)


def go_on(world: World, sink: str) -> list[str]:
    """Return the command that goes on with the sink's latest run, or starts one where there is none."""
    run = latest_run(sink)
    if run is None:
        return world.start(sink)
    return [str(HEADRACE), "run", f"--resume={run}", f"--sink={sink}", "--json"]


def latest_run(sink: str) -> str | None:
    """Return the id of the latest run that left something in a sink; None where there is none."""
    storage = open_storage(sink)
    if "://" not in sink and not Path(sink, "runs").is_dir():
        return None
    ids = {item.path.split("/")[1] for item in storage.list("runs")}
    return max(ids, default=None)
