"""The servers of `headrace up` on one machine: Prefect, a worker, the reports, the engine.

Each is a process of its own that outlives the command. What runs is remembered in the state folder,
process id with start mark, so that a second `up` leaves it alone and `down` ends it and nothing else.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from config.errors import ConfigError
from config.load import REPOSITORY, child_environment, load_profile, load_surroundings
from engine.errors import PrerequisiteError
from engine.process import ChildProcess, Command
from engine.server import find_server
from flows.automations import are_automated, automate
from flows.deployments import DEPLOYMENTS, WORK_POOL, are_deployed, call, deploy, fingerprint
from flows.pieces import (
    Notify,
    Piece,
    lock,
    own_environment,
    piece_file,
    prefect_environment,
    read_piece,
    running_pieces,
    up_folder,
    write_piece,
)
from flows.run.bench import open_engine
from flows.services import answers, is_free, prefect_command

DEFAULT_PORT = 4200
READY_LIMIT_S = 120.0
WORKER = "headrace-up"
"""Name of the worker; it is found by it on the server."""

_WORKER_GRACE_S = 6.0
"""Flow runs in work need about 3 s to save their answers, see flows.run.bench."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What `headrace up` is asked for."""

    port: int | None = None
    """Port of the Prefect server; reports are served on the next one."""
    engine: str | None = "embedded"
    """Profile or URL; None for none."""
    database_url: str | None = None
    """Where Prefect keeps its data; None for an SQLite file. May hold a password."""


def bring_up(wanted: Wanted, notify: Notify) -> dict[str, Any]:
    """Start what is not running and return what runs, once all of it is ready.

    Raises:
        ConfigError: An option does not fit what is running already.
        PrerequisiteError: A port is taken, or a server does not start; what this call has started is
            ended again.
        EngineError: The engine elsewhere does not answer.
    """
    folder = up_folder()
    with lock(folder, notify):
        start = _Start(folder, notify, wanted)
        try:
            return start.all()
        except BaseException:
            start.undo()
            raise


def bring_down(notify: Notify) -> list[str]:
    """End everything that `up` has started, and return the names of what was alive."""
    folder = up_folder()
    with lock(folder, notify):
        pieces = running_pieces()
        # The worker first: its runs tell the server how they ended.
        if "worker" in pieces:
            notify("worker: ending, runs in work save their answers")
            pieces["worker"].mark.stop(_WORKER_GRACE_S)
        rest = [piece for name, piece in pieces.items() if name != "worker"]
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda piece: piece.mark.stop(), rest))
        for file in folder.glob("*.piece.json"):
            file.unlink()
    return list(pieces)


class _Start:
    """One call of `up`: starts pieces, and can take back what it has started."""

    def __init__(self, folder: Path, notify: Notify, wanted: Wanted) -> None:
        self._folder = folder
        self._notify = notify
        self._wanted = wanted
        self._database_url = _database_url(wanted.database_url)
        self._begun: list[Piece] = []
        self._engine: subprocess.Popen[bytes] | None = None
        self._states: dict[str, str] = {}

    def all(self) -> dict[str, Any]:
        """Start everything, one after the other but for the engine, and return what runs."""
        port = self._port(self._wanted.port)
        self._check_ports(port)
        self._begin_engine(self._wanted.engine)
        prefect = self._prefect(port)
        reports = self._reports(port + 1)
        worker = self._worker(prefect.address, reports.address)
        self._deployments(f"{prefect.address}/api", reports.address)
        engine = self._await_engine(self._wanted.engine)
        pieces = {"prefect": prefect, "worker": worker, "reports": reports}
        shown: dict[str, Any] = {
            name: {
                "address": piece.address,
                "pid": piece.pid,
                "log": piece.log,
                "state": self._states[name],
            }
            for name, piece in pieces.items()
        }
        if engine is not None:
            shown["engine"] = engine
        return {**shown, "deployments": list(DEPLOYMENTS), "database": prefect.facts["database"]}

    def undo(self) -> None:
        """End what this call has started."""
        if self._engine is not None and self._engine.poll() is None:
            self._engine.terminate()
            self._engine.wait()
        for piece in reversed(self._begun):
            piece.mark.stop()
            piece_file(self._folder, piece.name).unlink(missing_ok=True)

    def _port(self, wanted: int | None) -> int:
        running = running_pieces().get("prefect")
        if running is None:
            return wanted or DEFAULT_PORT
        port = urlsplit(running.address).port or DEFAULT_PORT
        if wanted not in {None, port}:
            raise ConfigError(
                f"--port {wanted}: the Prefect server already runs on port {port}; end it first"
                " with: headrace down"
            )
        database = _kind(self._database_url)
        if self._database_url is not None and database != running.facts.get("database"):
            raise ConfigError(
                f"--database-url: the Prefect server already runs with {running.facts['database']};"
                " end it first with: headrace down"
            )
        return port

    def _check_ports(self, port: int) -> None:
        running = running_pieces()
        for name, number in (("prefect", port), ("reports", port + 1)):
            if name not in running and not is_free(number):
                raise PrerequisiteError(
                    f"port {number} is taken by another program; `headrace up` needs {port} and"
                    f" {port + 1}; give another one: headrace up --port {port + 100}"
                )

    def _prefect(self, port: int) -> Piece:
        database = _kind(self._database_url)
        before = read_piece(piece_file(self._folder, "prefect"))
        if before is not None and self._database_url is None:
            database = before.facts.get("database", database)
            if database != "SQLite" and not before.mark.is_alive:
                raise ConfigError(
                    f"the Prefect server ran with {database} and must be started again; give the"
                    " same --database-url, or run `headrace down` first to go on with SQLite"
                )
        environment = own_environment(child_environment())
        if self._database_url is not None:
            environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = self._database_url
        address = f"http://127.0.0.1:{port}"
        return self._ensure(
            prefect_command(self._folder, port, environment),
            address,
            lambda: answers(f"{address}/api/health"),
            {"database": database},
        )

    def _reports(self, port: int) -> Piece:
        command = Command(
            name="reports",
            argv=[sys.executable, "-m", "flows.report_server", f"--port={port}"],
            cwd=REPOSITORY,
            env=own_environment(child_environment()),
            log=self._folder / "reports.log",
        )
        address = f"http://127.0.0.1:{port}"
        return self._ensure(command, address, lambda: answers(f"{address}/health"))

    def _worker(self, prefect: str, reports: str) -> Piece:
        command = Command(
            name="worker",
            argv=[
                sys.executable, "-m", "prefect", "--no-prompt", "worker", "start",
                f"--pool={WORK_POOL}", "--type=process", f"--name={WORKER}",
            ],
            cwd=REPOSITORY,
            env={
                **own_environment(child_environment()),
                **prefect_environment(self._folder, prefect),
                "HEADRACE_REPORTS_URL": reports,
                # A run begins about that long after it was asked for; the default is 10.
                "PREFECT_WORKER_QUERY_SECONDS": "3",
                "NO_COLOR": "1",
            },
            log=self._folder / "worker.log",
        )  # fmt: skip
        return self._ensure(command, prefect, lambda: _has_worker(f"{prefect}/api"))

    def _deployments(self, api_url: str, reports: str) -> None:
        file, now = self._folder / "deployments.sha256", fingerprint()
        known = file.read_text(encoding="utf-8") if file.exists() else ""
        if known == f"{api_url} {now}" and are_deployed(api_url) and are_automated(api_url):
            return
        self._notify("deployments: putting them onto the server")
        environment = own_environment(child_environment()) | prefect_environment(
            self._folder, api_url.removesuffix("/api")
        )
        deploy(
            api_url,
            {**environment, "HEADRACE_REPORTS_URL": reports, "NO_COLOR": "1"},
            self._folder / "deployments.log",
        )
        automate(api_url)
        file.write_text(f"{api_url} {now}", encoding="utf-8")

    def _ensure(
        self,
        command: Command,
        address: str,
        is_ready: Callable[[], bool],
        facts: Mapping[str, str] | None = None,
    ) -> Piece:
        """Return the piece, left alone where it is alive and answers, started where it is not.

        Raises:
            PrerequisiteError: It does not start.
        """
        name = command.name
        before = read_piece(piece_file(self._folder, name))
        if before is not None and before.mark.is_alive and before.address == address:
            if _within(is_ready, limit_s=10.0):
                self._states[name] = "running already"
                return before
            self._notify(f"{name}: does not answer, starting it anew")
            before.mark.stop()
        self._notify(f"{name}: starting (log: {command.log})")
        child = ChildProcess(command, detached=True)
        piece = Piece(
            name=name,
            pid=child.mark.pid,
            started=child.mark.started,
            address=address,
            log=str(command.log),
            facts=facts or {},
        )
        self._begun.append(piece)
        write_piece(self._folder, piece)
        try:
            seconds = child.wait_ready(is_ready, limit_s=READY_LIMIT_S, notify=self._notify)
        except PrerequisiteError as exc:
            raise PrerequisiteError(_without(self._database_url, str(exc))) from None
        self._notify(f"{name}: ready after {seconds:.0f} s at {address}")
        self._states[name] = "started"
        return piece

    def _begin_engine(self, engine: str | None) -> None:
        """Start the embedded engine beside the rest: it takes longest. Others are only asked."""
        if engine is None:
            return
        profile, surroundings = load_profile(engine), load_surroundings()
        if profile.serve is None:
            open_engine(engine, self._notify).close()
            return
        if find_server(profile, surroundings.cache) is None:
            argv = [str(Path(sys.executable).with_name("headrace")), "engine", "serve"]
            self._engine = subprocess.Popen(
                [*argv, engine, "--detach", "--json"],
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )

    def _await_engine(self, engine: str | None) -> dict[str, Any] | None:
        if engine is None:
            return None
        profile = load_profile(engine)
        if profile.serve is None:
            return {"address": profile.base_url, "state": "answers"}
        if self._engine is not None and self._engine.wait() != 0:
            raise PrerequisiteError(
                "the engine did not start, see above; `headrace up --no-engine` leaves it out"
            )
        found = find_server(profile, load_surroundings().cache)
        if found is None:
            raise PrerequisiteError("the engine has ended again; see: headrace engine status")
        if self._engine is not None:
            piece = Piece(
                name="engine",
                pid=found.pid,
                started=found.started,
                address=found.base_url,
                log=found.log,
                facts={},
            )
            self._begun.append(piece)
            write_piece(self._folder, piece)
        return {
            "address": found.base_url,
            "pid": found.pid,
            "log": found.log,
            "state": "running already" if self._engine is None else "started",
        }


def _has_worker(api_url: str) -> bool:
    """Tell whether the worker has told the server lately that it is there."""
    try:
        workers = call(api_url, f"work_pools/{WORK_POOL}/workers/filter", {"limit": 200})
    except PrerequisiteError:
        return False
    return any(one["name"] == WORKER and one["status"] == "ONLINE" for one in workers)


def _database_url(url: str | None) -> str | None:
    """Return the URL with the driver that Prefect needs.

    Raises:
        ConfigError: It is no URL of a database that Prefect works with.
    """
    if url is None:
        return None
    found = re.sub(r"^postgres(ql)?://", "postgresql+asyncpg://", url)
    if not found.startswith(("postgresql+asyncpg://", "sqlite+aiosqlite://")):
        raise ConfigError(
            f"--database-url: scheme {url.split(':')[0]!r}; expected"
            " postgresql+asyncpg://user:password@host:5432/name"
        )
    return found


def _kind(url: str | None) -> str:
    return "PostgreSQL" if (url or "").startswith("postgresql") else "SQLite"


def _without(url: str | None, text: str) -> str:
    """Return the text without the database's URL and password."""
    secrets = [url, urlsplit(url).password] if url else []
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return text


def _within(is_true: Callable[[], bool], *, limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
