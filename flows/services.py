"""The servers of a demo on one machine: a real S3 server and a real Prefect server.

Each is a context manager that starts the server, waits until it does its work, and ends it.
"""

from __future__ import annotations

import json
import secrets
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from config.load import child_environment
from connectors.bucket import bucket_takes_writes
from engine.errors import PrerequisiteError
from engine.process import ChildProcess, Command
from flows.run.log import LOGGERS
from flows.web import fetch

READY_LIMIT_S = 90.0

_LEASES = "prefect.server.concurrency.lease_storage.filesystem"

Notify = Callable[[str], None]


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nothing listens on, below the range of outgoing connections."""
    ports: list[int] = []
    while len(ports) < count:
        port = 10_000 + secrets.randbelow(15_000)
        # SeaweedFS opens a gRPC port 10,000 above each port of its own.
        if port not in ports and all(map(is_free, (port, port + 10_000))):
            ports.append(port)
    return ports


def is_free(port: int) -> bool:
    """Tell whether a server can listen on this port of 127.0.0.1."""
    with socket.socket() as probe:
        # As servers do: a port whose last connections are fading away is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


class _Service:
    """A server with a log, started on entry and ended on exit."""

    def __init__(self, folder: Path, notify: Notify) -> None:
        self.folder = folder.absolute()
        self._notify = notify
        self._child: ChildProcess | None = None

    def start(self) -> Self:
        """Start the server and wait until it does its work.

        Raises:
            PrerequisiteError: It ended, or was not ready in time.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        child = self._child = ChildProcess(self.command())
        seconds = child.wait_ready(self.is_ready, limit_s=READY_LIMIT_S, notify=self._notify)
        self._notify(f"{child.command.name}: ready after {seconds:.0f} s at {self.address}")
        return self

    def stop(self) -> None:
        """End the server, also one that is still starting."""
        if self._child is not None:
            self._child.stop(grace_s=self.grace_s)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    grace_s = 5.0
    """Seconds a server gets to end by itself."""
    address: str
    """Where it answers."""

    def command(self) -> Command:
        """Return what to start."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Tell whether it does its work."""
        raise NotImplementedError


class ObjectStore(_Service):
    """SeaweedFS as an S3 server with one bucket, and credentials made up for it."""

    # It takes half a minute to end by request, and its data is thrown away.
    grace_s = 0.5

    def __init__(self, folder: Path, notify: Notify, bucket: str = "lake") -> None:
        super().__init__(folder, notify)
        self.bucket = bucket
        self._ports = dict(zip(("s3", "master", "volume", "filer"), free_ports(4), strict=True))
        self.address = f"http://127.0.0.1:{self._ports['s3']}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": "headrace",
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
            "AWS_REGION": "us-east-1",
        }
        """What a client's environment must hold."""

    def command(self) -> Command:
        """Return SeaweedFS with all its parts in one process.

        Raises:
            PrerequisiteError: It is not installed.
        """
        weed = Path(sys.executable).with_name("weed")
        if not weed.exists():
            raise PrerequisiteError("SeaweedFS is not installed; run `make install`")
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        identities = self.folder / "identities.json"
        key = {
            "accessKey": self.environment["AWS_ACCESS_KEY_ID"],
            "secretKey": self.environment["AWS_SECRET_ACCESS_KEY"],
        }
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "headrace", "credentials": [key], "actions": actions}
        identities.write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
        identities.chmod(0o600)
        ports = self._ports
        return Command(
            name="object store",
            # Each bucket claims 7 volumes; the default of 8 holds one bucket. The catalogs, unused
            # here, have fixed ports: two stores on one machine would not start.
            argv=[
                str(weed), "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                f"-master.port={ports['master']}", f"-volume.port={ports['volume']}",
                f"-filer.port={ports['filer']}", "-master.volumeSizeLimitMB=64",
                "-volume.max=100", "-s3", f"-s3.port={ports['s3']}", f"-s3.config={identities}",
                "-s3.port.iceberg=0", "-s3.port.lance=0",
            ],
            cwd=self.folder,
            env=child_environment(),
            log=self.folder / "object-store.log",
        )  # fmt: skip

    def is_ready(self) -> bool:
        """Tell whether a write succeeds; the port answers long before that."""
        return bucket_takes_writes(
            self.bucket,
            endpoint_url=self.address,
            access_key=self.environment["AWS_ACCESS_KEY_ID"],
            secret_key=self.environment["AWS_SECRET_ACCESS_KEY"],
        )


class PrefectServer(_Service):
    """A Prefect server with its own database; never the ephemeral one, which loses task records."""

    def __init__(self, folder: Path, notify: Notify, port: int | None = None) -> None:
        super().__init__(folder, notify)
        self._port = port or free_ports(1)[0]
        self.address = f"http://127.0.0.1:{self._port}"
        self.environment = {
            "PREFECT_API_URL": f"{self.address}/api",
            "PREFECT_HOME": str(self.folder / "home"),
            "PREFECT_LOGGING_EXTRA_LOGGERS": ",".join(LOGGERS),
        }
        """What a client's environment must hold."""

    def command(self) -> Command:
        """Return the server on its port.

        Raises:
            PrerequisiteError: The port is taken.
        """
        if not is_free(self._port):
            raise PrerequisiteError(f"port {self._port} is taken; give another one with --port")
        return prefect_command(self.folder, self._port, child_environment())

    def is_ready(self) -> bool:
        """Tell whether the API answers."""
        return answers(f"{self.address}/api/health")


def prefect_command(folder: Path, port: int, environment: Mapping[str, str]) -> Command:
    """Return what starts a Prefect server on this port, its home and log below `folder`."""
    return Command(
        name="prefect",
        argv=[
            sys.executable, "-m", "prefect", "server", "start",
            "--host", "127.0.0.1", "--port", str(port),
        ],
        cwd=folder,
        env={
            **environment,
            "PREFECT_HOME": str(folder / "home"),
            # The UI asks this port, whatever --port says.
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # Fewer, larger writes: 7-9 ms of CPU per task run in place of 28-44, fewer 503s.
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "50",
            # In memory, the slot of a run that was killed stays held after a restart, for good.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": _LEASES,
            "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
            # A schedule that is switched on takes effect within ten seconds, not a minute.
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "10",
            "NO_COLOR": "1",
        },
        log=folder / "prefect.log",
    )  # fmt: skip


def answers(url: str) -> bool:
    """Tell whether a server of this machine answers at `url`, and not with an error."""
    try:
        fetch(url, timeout_s=2)
    except OSError:
        return False
    return True
