"""Listing as a stream, beside the bare calls under it: keys per second, time to the first, memory.

`python -m benchmarks.listing [--keys 1000000] [--files 200000] [--repeats 3]` lists keys of a fake object store, which
answers page by page from a process of its own, and empty files in folders of a thousand. Each arm is a
process of its own too; the bare arms are obstore.list, and os.scandir with one stat a file. Ratios are of
processor time, medians over pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from benchmarks.machine import ROOT, machine, show

_PAGE = 1000
_KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "us-east-1"}


def main() -> None:
    """Measure in turn, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arm", choices=_ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--at", help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        _serve(asked.keys)
    elif asked.arm:
        sys.stdout.write(json.dumps(_measure(_ARMS[asked.arm](asked.at), asked.keys)) + "\n")
    else:
        _compare(asked.keys, asked.files, asked.repeats)


def _compare(num_keys: int, num_files: int, repeats: int) -> None:
    measured_on = machine()
    with _store(num_keys) as url:
        bucket, bare_bucket = _pairs(("bucket", "obstore"), url, num_keys, repeats)
        marked = _run("bucket with empty objects", f"{url}/marked", num_keys // 10)
    with tempfile.TemporaryDirectory(prefix="headrace-listing-") as folder:
        _fill(Path(folder), num_files)
        # Once before, so that both find the folders in the system's cache.
        _run("scandir", folder, num_files)
        local, bare_local = _pairs(("folder", "scandir"), folder, num_files, repeats)
    facts = {
        "bucket / obstore, CPU": _ratio(bucket, bare_bucket),
        "folder / scandir, CPU": _ratio(local, bare_local),
    }
    arms = [bucket, bare_bucket, [marked], local, bare_local]
    show("listing", measured_on, facts, [_middle(runs) for runs in arms])


def _pairs(
    arms: tuple[str, str], at: str, num_keys: int, repeats: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the runs of both arms, taken in turn: what else goes on here then meets both."""
    first, second = [], []
    for _ in range(repeats):
        first.append(_run(arms[0], at, num_keys))
        second.append(_run(arms[1], at, num_keys))
    return first, second


def _ratio(runs: list[dict[str, Any]], peers: list[dict[str, Any]]) -> float:
    pairs = zip(runs, peers, strict=True)
    ratios = [float(run["cpu_us_per_key"] / peer["cpu_us_per_key"]) for run, peer in pairs]
    return statistics.median(ratios)


def _middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of each figure."""
    figures = [name for name in runs[0] if name != "arm"]
    middle = {name: statistics.median(run[name] for run in runs) for name in figures}
    return {"arm": runs[0]["arm"], **middle}


def _run(arm: str, at: str, num_keys: int) -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.listing", "--arm", arm, "--at", at, "--keys", str(num_keys)],
        cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ, **_KEYS},
    )  # fmt: skip
    return {"arm": arm, **json.loads(result.stdout)}


def _measure(paths: Iterator[str], num_keys: int) -> dict[str, object]:
    """Return what opening and listing took; peaks are the process's, after a tenth and after all.

    Raises:
        SystemExit: Keys are missing.
    """
    started, cpu = time.perf_counter(), time.process_time()
    first_s, tenth_mb, count = 0.0, 0.0, 0
    for count, _ in enumerate(paths, start=1):
        if count == 1:
            first_s = time.perf_counter() - started
        if count == num_keys // 10:
            tenth_mb = _peak_mb()
    seconds = time.perf_counter() - started
    if count != num_keys:
        raise SystemExit(f"{count} keys were listed, and there are {num_keys}")
    return {
        "keys": count,
        "keys_per_s": round(count / seconds),
        "cpu_us_per_key": round((time.process_time() - cpu) / count * 1e6, 1),
        "first_ms": round(first_s * 1000, 1),
        "peak_mb_tenth": tenth_mb,
        "peak_mb_all": _peak_mb(),
    }


def _peak_mb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def _ours(at: str) -> Iterator[str]:
    from connectors.storage import Access, open_storage

    def paths() -> Iterator[str]:
        if not at.startswith("http"):
            storage = open_storage(at)
        else:
            address, mark, _ = at.partition("/marked")
            top = "marked" if mark else "plain"
            storage = open_storage(f"s3://bucket/{top}", Access(endpoint_url=address))
        for item in storage.list():
            yield item.path

    return paths()


def _obstore(at: str) -> Iterator[str]:
    import obstore
    from obstore.store import S3Store

    def paths() -> Iterator[str]:
        store = S3Store("bucket", endpoint=at, client_options={"allow_http": True})
        for page in obstore.list(store, "plain", chunk_size=_PAGE):
            for item in page:
                yield item["path"]

    return paths()


def _scandir(at: str) -> Iterator[str]:
    folders = [at]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    entry.stat()
                    yield entry.path


_ARMS: dict[str, Callable[[str], Iterator[str]]] = {
    "bucket": _ours,
    "bucket with empty objects": _ours,
    "obstore": _obstore,
    "folder": _ours,
    "scandir": _scandir,
}


def _fill(folder: Path, num_files: int) -> None:
    for start in range(0, num_files, _PAGE):
        (folder / f"{start:09d}").mkdir()
        for number in range(start, min(start + _PAGE, num_files)):
            (folder / f"{start:09d}" / f"{number:09d}.txt").touch()


@contextmanager
def _store(num_keys: int) -> Iterator[str]:
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.listing", "--serve", "--keys", str(num_keys)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
    finally:
        server.kill()
        server.wait()


def _serve(num_keys: int) -> None:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = _page(parse_qs(urlsplit(self.path).query), num_keys)
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


def _page(query: dict[str, list[str]], num_keys: int) -> bytes:
    """Return a page of `plain/`, or of the tenth as many of `marked/`, each with one empty object."""
    prefix = query["prefix"][0]
    marked = prefix == "marked/"
    end = num_keys // 10 if marked else num_keys
    after = (query.get("continuation-token") or query.get("start-after") or [""])[0]
    start = int(after.removeprefix(prefix)[:9]) + 1 if after else 0
    stop = min(start + _PAGE, end)
    contents = "".join(
        f"<Contents><Key>{prefix}{number:09d}.txt</Key><LastModified>2026-01-01T00:00:00.000Z"
        f"</LastModified><ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag>"
        f"<Size>{0 if marked and number % _PAGE == 0 else 1024}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
        for number in range(start, stop)
    )
    more = f"<NextContinuationToken>{prefix}{stop - 1:09d}</NextContinuationToken>"
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>'
        f"<KeyCount>{stop - start}</KeyCount><MaxKeys>{_PAGE}</MaxKeys>"
        f"<IsTruncated>{str(stop < end).lower()}</IsTruncated>{more if stop < end else ''}"
        f"{contents}</ListBucketResult>"
    ).encode()


if __name__ == "__main__":
    main()
