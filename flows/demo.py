"""`make demo`: from installed environments to a report, on real servers.

Starts the engine, an S3 server and a Prefect server, puts the sample corpus into a bucket, runs
`headrace run` against them as a user would, and copies the report to where a browser finds it.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from rich.console import Console

from config.errors import ConfigError
from config.load import (
    REPOSITORY,
    child_environment,
    set_environment,
)
from connectors.errors import ConnectorError
from connectors.storage import LocalStorage, open_storage
from engine.errors import EngineError
from flows.run.bench import open_engine
from flows.services import ObjectStore, PrefectServer

WORK = REPOSITORY / ".headrace" / "demo"
CORPUS = REPOSITORY / "config" / "demo_corpus"
PIPELINE = REPOSITORY / "config" / "pipelines" / "demo.yaml"

Notify = Callable[[str], None]


def main() -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(prog="make demo")
    parser.add_argument("--engine", default="embedded", help="profile or URL")
    parser.add_argument("--port", type=int, default=None, help="port of the Prefect server")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    started = time.monotonic()

    def notify(line: str) -> None:
        console.print(f"[{time.monotonic() - started:5.0f} s] {line}", markup=False, soft_wrap=True)

    # A terminated demo ends its servers as an interrupted one does.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _demo(arguments.engine, arguments.port, notify)
    except (ConfigError, ConnectorError, EngineError) as exc:
        console.print(f"error: {exc}", style="red", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        notify("interrupted; servers ended")
        return 130


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _demo(engine: str, port: int | None, notify: Notify) -> int:
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    if engine != "embedded":
        notify(f"engine: using {engine}; the embedded engine is skipped")
    store = ObjectStore(WORK / "s3", notify)
    prefect = PrefectServer(WORK / "prefect", notify, port)
    with ExitStack() as stack:
        # Ends servers that are still starting too, so that Ctrl-C never waits for them.
        stack.callback(store.stop)
        stack.callback(prefect.stop)
        threads = ThreadPoolExecutor(3)
        stack.callback(threads.shutdown, wait=False, cancel_futures=True)
        starting = threads.submit(
            _start_run, engine, store, prefect, threads=threads, notify=notify
        )
        endpoint = stack.enter_context(open_engine(engine, notify))
        opened = time.monotonic()
        run = starting.result()
        stack.callback(run.terminate)
        code = run.wait()
        notify(
            f"run: {time.monotonic() - opened:.0f} s after the engine was ready, exit code {code}"
        )
        if code in {0, 3}:
            set_environment(store.environment)
            _copy_output(store.bucket, notify)
        if endpoint.server is not None and endpoint.server.started_here:
            notify("ending the servers")
    return code


def _start_run(
    engine: str,
    store: ObjectStore,
    prefect: PrefectServer,
    *,
    threads: ThreadPoolExecutor,
    notify: Notify,
) -> subprocess.Popen[bytes]:
    """Start the servers, put the corpus into the bucket and start the run.

    The run waits for the engine by itself, so its own start goes on beside the engine's.
    """
    prefect_ready = threads.submit(prefect.start)
    store.start()
    set_environment(store.environment)
    count, size = _upload(store.bucket)
    notify(f"corpus: {count} files, {size / 1e6:.1f} MB, put into s3://{store.bucket}/corpus")
    prefect_ready.result()
    notify(f"prefect: the run is shown at {prefect.address}/runs while it lasts")
    return _run(engine, store, prefect, notify)


def _upload(bucket: str) -> tuple[int, int]:
    """Put the sample corpus into the bucket; return the number of files and bytes."""
    corpus, target = LocalStorage(CORPUS), open_storage(f"s3://{bucket}/corpus")
    count = size = 0
    for item in corpus.list():
        if item.path == "NOTICE.md":
            continue
        target.put(item.path, corpus.get(item.path))
        count, size = count + 1, size + item.size_bytes
    return count, size


def _run(
    engine: str, store: ObjectStore, prefect: PrefectServer, notify: Notify
) -> subprocess.Popen[bytes]:
    """Start the pipeline as a user would."""
    command = [
        str(Path(sys.executable).with_name("headrace")),
        "run",
        str(PIPELINE.relative_to(REPOSITORY)),
        f"--source=s3://{store.bucket}/corpus",
        f"--sink=s3://{store.bucket}/output",
        f"--engine={engine}",
    ]
    notify("run: headrace " + " ".join(command[1:]))
    environment = child_environment(**store.environment, **prefect.environment)
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment)


def _copy_output(bucket: str, notify: Notify) -> None:
    """Copy tables and report out of the bucket, which ends with the demo."""
    output, local = open_storage(f"s3://{bucket}/output"), LocalStorage(WORK / "lake")
    for item in output.list():
        local.put(item.path, output.get(item.path))
    pages = sorted((WORK / "lake" / "reports").glob("*/index.html"))
    shutil.copytree(pages[-1].parent, WORK / "report")
    lake = (WORK / "lake").relative_to(REPOSITORY)
    notify(f"report: {WORK / 'report' / 'index.html'}")
    notify(f"tables: {lake}/documents, {lake}/chunks, {lake}/records/stage=*")
    notify(
        "next:   .venv/bin/headrace run config/pipelines/demo.yaml --source <folder> --sink ./lake"
    )


if __name__ == "__main__":
    sys.exit(main())
