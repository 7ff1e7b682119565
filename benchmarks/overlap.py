"""A whole run beside the longer of its two halves: reading alone, and what the engine needs at least.

`python -m benchmarks.overlap [--documents 60] [--pages 12] [--repeats 3]` reads PDFs and cuts them into chunks
as a run does, without asking anything: that is the time of reading. The engine answers each call after a fixed
time, chosen so that all calls together take a third of the reading, as long, or three times as long; that
is the time of generating. A run has to do both, and lists, plans, keeps its answers and writes
tables besides. `first_call_s` is when the first call reached the engine, from the start of the run.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.fast_engine import serving
from benchmarks.machine import machine, show
from benchmarks.pdf_writing import pdf
from benchmarks.planning import WORDS
from benchmarks.run_against_loop import HEADRACE, watched
from config.load import child_environment, set_environment
from flows.run.ask import Asker
from flows.run.bench import NUM_READERS, open_engine, open_room
from flows.run.chunk_size import chunk_rule
from flows.run.core import run_job
from flows.run.job import Job, Options, make_job
from flows.run.plan import list_sources
from flows.run.reading import read_chunks

_IN_FLIGHT = 64
_LINES = 45
"""Of a page; it has about 1,000 tokens."""
_CHUNK_TOKENS = 2_000
_SHARES = (1 / 3, 1.0, 3.0)
"""Time of generating, as a share of that of reading."""
_PROFILE = f"""\
name: fast
base_url: {{url}}
max_in_flight: {_IN_FLIGHT}
capabilities: {{{{structured_output: true}}}}
modes: {{{{instant: {{{{sampling: {{{{temperature: 0.6}}}}}}}}}}}}
"""
_PIPELINE = f"""\
name: bench
chunk: {{max_tokens: {_CHUNK_TOKENS}}}
reader: {{ocr: "off"}}
stages:
  - {{name: kind, prompt: What is this about?, output: {{topic: a|b}}}}
  - {{name: more, needs: [kind], prompt: What else is it about?, output: {{topic: a|b}}}}
"""


def main() -> None:
    """Read alone, then run with engines of three speeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--pages", type=int, default=12)
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    measured_on = machine()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        set_environment({"HEADRACE_STATE": str(folder / "state")})
        _write(folder / "in", asked.documents, asked.pages)
        (folder / "bench.yaml").write_text(_PIPELINE, encoding="utf-8")
        reads = [_read(folder) for _ in range(asked.repeats)]
        read_s = statistics.median(seconds for seconds, _ in reads)
        num_requests = 2 * reads[0][1]
        for share in _SHARES:
            generate_s = share * read_s
            runs = [
                _run(folder, generate_s * _IN_FLIGHT / num_requests, f"{share:.1f}-{number}")
                for number in range(asked.repeats)
            ]
            seconds = statistics.median(run["seconds"] for run in runs)
            rows.append({
                "arm": f"generate / read {share:.2f}",
                "requests": num_requests,
                "read_s": read_s,
                "generate_s": generate_s,
                "run_s": seconds,
                "run / longer": seconds / max(read_s, generate_s),
                "run / sum": seconds / (read_s + generate_s),
                "first_call_s": statistics.median(run["first_call_s"] for run in runs),
            })
        firsts = {
            f"seconds to the first call, {number:,} objects": _first_call_of(folder, number)
            for number in (asked.objects // 100, asked.objects)
        }
    show("overlap", measured_on, {"documents": asked.documents, **firsts}, rows)


def _write(folder: Path, documents: int, pages: int) -> None:
    folder.mkdir()
    chance = random.Random(1)
    for number in range(documents):
        text = [
            [
                f"{number}.{page}.{line} {' '.join(chance.choices(WORDS, k=12))}"
                for line in range(_LINES)
            ]
            for page in range(pages)
        ]
        (folder / f"{number:05d}.pdf").write_bytes(pdf(text))


def _job(folder: Path, url: str, sink: str) -> Job:
    (folder / "fast.yaml").write_text(_PROFILE.format(url=url), encoding="utf-8")
    options = Options(
        source=str(folder / "in"), sink=str(folder / sink), engine=str(folder / "fast.yaml")
    )
    return make_job(folder / "bench.yaml", options)


def _read(folder: Path) -> tuple[float, int]:
    """Return the seconds that reading takes, and the chunks."""
    with serving() as url, tempfile.TemporaryDirectory(dir=folder) as sink:
        job = _job(folder, url, sink)
        started = time.monotonic()
        with (
            open_room(job) as room,
            open_engine(job.pipeline.engine, lambda _: None) as endpoint,
            ThreadPoolExecutor(NUM_READERS) as threads,
        ):
            rule = chunk_rule(job, endpoint, Asker(job.pipeline, endpoint), room.lake)
            refs = list_sources(room.source, job.pipeline.include)
            read = list(threads.map(lambda ref: read_chunks(room, "read", ref, rule)[1], refs))
        return time.monotonic() - started, sum(map(len, read))


def _run(folder: Path, delay_s: float, name: str) -> Mapping[str, float]:
    with serving(delay_s) as url:
        job = _job(folder, url, f"lake-{name}")
        started = time.monotonic()
        calls: list[float] = []
        with watched(lambda _: calls.append(time.monotonic())):
            manifest = run_job(job)
        assert manifest["verdict"] == "complete", manifest["verdict"]
        return {"seconds": manifest["seconds"], "first_call_s": calls[0] - started}


def _first_call_of(folder: Path, objects: int) -> float:
    """Return the seconds from the start of a process that runs over so many objects to its first call."""
    source = folder / f"objects-{objects}"
    for number in range(objects):
        if number % 1000 == 0:
            (source / f"{number:09d}").mkdir(parents=True)
        (source / f"{number // 1000 * 1000:09d}" / f"{number:09d}.txt").write_text(str(number))
    called = threading.Event()

    class Engine(BaseHTTPRequestHandler):
        """Lists its model, and answers no call."""

        def do_GET(self) -> None:
            data = json.dumps({"data": [{"id": "m", "max_model_len": 32_768}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            called.set()
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    argv = [HEADRACE, "run", str(folder / "bench.yaml"), f"--source={source}", f"--engine={url}"]
    started = time.monotonic()
    process = subprocess.Popen(
        [*argv, f"--sink={folder / f'first-{objects}'}"],
        env=child_environment(
            PREFECT_API_URL="", PREFECT_PROFILES_PATH="/dev/null", HEADRACE_STATE=f"{folder}/state"
        ),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        assert called.wait(300), "no call was made"
        return time.monotonic() - started
    finally:
        process.kill()
        process.wait()
        server.shutdown()


if __name__ == "__main__":
    main()
