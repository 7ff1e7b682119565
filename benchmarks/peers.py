"""Headrace beside its peers: the same prompts to the same endpoint, as many at a time.

`python -m benchmarks.peers [--cases three-stages,one-stage,fixed-latency] [--documents 14] [--repeats 3] [--envs
FOLDER] [--json FILE]`. The peers are Daft's `prompt`, bespoke Curator, DocETL, and asyncio with the openai client
and a semaphore; each runs in a virtual environment of its own, made once with the versions of peer_envs/.

Before anything is timed, every arm asks a server that only keeps the requests; what sets an arm's requests apart
from Headrace's is said in `requests`. Then the arms take turns on the embedded model with a KV cache of 12,000
tokens (three-stages, one-stage), each repeat with a cache salt of its own, and on a fake engine whose answers all
take the same time (fixed-latency; `to_limit` is the time to that of all places always taken). `seconds` of Headrace
are its manifest's: listing, reading, cutting chunks, asking and writing; a peer's are those after its imports, from
reading a file of the same chunks until its rows are written. `process_s` is from the start of the process to its
end, for all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import fast_engine, peer_cases
from benchmarks.machine import ROOT, machine, show
from benchmarks.peer_cases import Case
from benchmarks.peer_environments import PEERS, Peer, make_environments
from benchmarks.peer_recorder import differences, recording
from benchmarks.processes import Ran, run_measured
from benchmarks.results import write_result
from benchmarks.run_against_loop import HEADRACE, median, note, salted_profile
from config.load import child_environment, load_profile, load_surroundings
from engine.profile import Profile
from flows.run.bench import open_engine

_OWN = "headrace run"
_LATENCY_S = 0.2


def main() -> None:
    """Check what each arm asks, time the arms in turn, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default=",".join(peer_cases.CASES))
    parser.add_argument("--documents", type=int, default=14)
    parser.add_argument("--requests", type=int, default=2000, help="of fixed-latency")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arms", default=",".join(PEERS))
    parser.add_argument("--envs", type=Path, default=load_surroundings().cache / "peers")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    measured_on = machine()
    peers = [PEERS[name] for name in asked.arms.split(",") if name]
    versions = make_environments(asked.envs, peers, note)
    rows: list[dict[str, object]] = []
    facts: dict[str, object] = {"versions": versions}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        for case in asked.cases.split(","):
            num = asked.requests if case == "fixed-latency" else asked.documents
            bench = Bench(Path(name) / case, peer_cases.CASES[case], peers, asked.envs)
            found, more = bench.compare(num, asked.repeats)
            rows += found
            facts |= {f"{case}: {key}": value for key, value in more.items()}
            if asked.json:
                # After each case, so that an hour is not lost with the last one.
                write_result(asked.json, "peers", measured_on, facts=facts, rows=rows)
    show("peers", measured_on, facts, rows)


class Bench:
    """One case: its documents, its arms, and the folder that all is written to."""

    def __init__(self, folder: Path, case: Case, peers: Sequence[Peer], envs: Path) -> None:
        folder.mkdir()
        self._folder, self._case, self._peers, self._envs = folder, case, peers, envs
        self._in_flight = case.in_flight or load_profile("embedded").max_in_flight
        (folder / "bench.yaml").write_text(case.pipeline(), encoding="utf-8")

    def compare(self, num: int, repeats: int) -> tuple[list[dict[str, object]], dict[str, object]]:
        """Return a row per arm, and what holds for all."""
        self._case.write_documents(self._folder / "source", num)
        said = self._check()
        found: dict[str, list[Mapping[str, float]]] = {}
        with self._engine() as url:
            arms = [_OWN, *(peer.arm for peer in self._peers)]
            for number in range(repeats):
                # Each repeat begins with another arm, so that none is always first.
                for arm in arms[number % len(arms) :] + arms[: number % len(arms)]:
                    figures = self._measure(arm, url, f"{arm} {number}")
                    found.setdefault(arm, []).append(figures)
                    note(f"{self._case.name}, {number + 1} of {repeats}, {arm}: {figures}")
        rows: list[dict[str, Any]] = [
            {"arm": arm, "case": self._case.name, **_without_arm(median(arm, found[arm]))}
            | {"requests": said[arm]}
            for arm in arms
        ]
        if self._case.fixed_latency:
            limit_s = num / self._in_flight * _LATENCY_S
            rows = [row | {"to_limit": row["seconds"] / limit_s} for row in rows]
        return rows, self._facts(found)

    def _facts(self, found: Mapping[str, list[Mapping[str, float]]]) -> dict[str, object]:
        middle = {
            arm: statistics.median(one["seconds"] for one in figures)
            for arm, figures in found.items()
            if arm != _OWN
        }
        facts: dict[str, object] = {"in flight": self._in_flight}
        if middle:
            best = min(middle, key=lambda arm: middle[arm])
            facts["best peer"] = best
            for key in ("seconds", "process_s"):
                pairs = zip(found[_OWN], found[best], strict=True)
                facts[f"{key} of headrace / best peer"] = statistics.median(
                    own[key] / peer[key] for own, peer in pairs
                )
        return facts

    def _check(self) -> dict[str, str]:
        """Return what sets each arm's requests apart, after writing the peers' rows from Headrace's.

        Raises:
            SystemExit: Headrace's own requests are not what the case says.
        """
        with recording(*peer_cases.embedded_model()) as recorder:
            self._run(_OWN, recorder.url, "check")
            wanted, most = recorder.take()
            peer_cases.write_rows(self._folder, self._case, wanted)
            said = {_OWN: f"{len(wanted)}, at most {most} at once"}
            for peer in self._peers:
                self._run(peer.arm, recorder.url, f"check {peer.arm}")
                found, most = recorder.take()
                apart = "; ".join(differences(wanted, found)) or "the same"
                said[peer.arm] = f"{apart}, at most {most} at once"
                note(f"{self._case.name}, {peer.arm}: {said[peer.arm]}")
        return said

    @contextmanager
    def _engine(self) -> Iterator[str]:
        """Serve what the case is timed on, and yield its base URL."""
        if self._case.fixed_latency:
            with fast_engine.serving(_LATENCY_S) as url:
                yield url
        else:
            profile = peer_cases.small_cache_profile(self._folder)
            with open_engine(str(profile), notify=note) as endpoint:
                yield endpoint.base_url

    def _measure(self, arm: str, url: str, salt: str) -> Mapping[str, float]:
        before = {} if self._case.fixed_latency else _prompt_tokens(url)
        ran, found = self._run(arm, url, salt)
        after = {} if self._case.fixed_latency else _prompt_tokens(url)
        tokens = {key: value - before[key] for key, value in after.items()}
        return {
            "seconds": found["seconds"], "process_s": ran.seconds, **tokens,
            "peak_mb": ran.peak_mb, "rows": found["rows"], "failed": found["failed"],
        }  # fmt: skip

    def _run(self, arm: str, url: str, salt: str) -> tuple[Ran, Mapping[str, float]]:
        """Run an arm once and return what it took and found."""
        folder = self._folder / salt.replace(" ", "-")
        folder.mkdir()
        if arm == _OWN:
            return self._run_own(folder, url, salt)
        peer = next(peer for peer in self._peers if peer.arm == arm)
        job = {
            **peer_cases.job(self._folder, self._case), "url": url, "salt": salt,
            "model": _model(url), "in_flight": self._in_flight, "folder": str(folder / "out"),
        }  # fmt: skip
        (folder / "out").mkdir()
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        python = str(self._envs / peer.environment / "bin" / "python")
        ran = run_measured(
            [python, str(ROOT / "benchmarks" / "peer_arm.py"), arm, str(folder / "job.json")],
            environment=child_environment(**_quiet(folder)),
            folder=folder,
        )
        lines = [line for line in ran.stdout.splitlines() if line.startswith('{"rows"')]
        return ran, json.loads(lines[-1])

    def _run_own(self, folder: Path, url: str, salt: str) -> tuple[Ran, Mapping[str, float]]:
        profile = salted_profile(folder, url, salt)
        if self._case.fixed_latency:
            profile = _fast_profile(folder, url, self._in_flight)
        ran = run_measured(
            [
                HEADRACE, "run", str(self._folder / "bench.yaml"), "--json", f"--engine={profile}",
                f"--source={self._folder / 'source'}", f"--sink={folder / 'lake'}",
            ],
            # Without a Prefect server, whatever this machine has set.
            environment=child_environment(PREFECT_API_URL="", PREFECT_PROFILES_PATH="/dev/null"),
            folder=folder,
        )  # fmt: skip
        manifest = json.loads(ran.stdout)
        outcomes = manifest["stages"][self._case.stages[-1].name]["outcomes"]
        succeeded = outcomes.get("succeeded", 0)
        rows = sum(outcomes.values())
        return ran, {"rows": rows, "failed": rows - succeeded, "seconds": manifest["seconds"]}


def _fast_profile(folder: Path, url: str, in_flight: int) -> Path:
    profile = {
        "name": "fast",
        "base_url": url,
        "max_in_flight": in_flight,
        "capabilities": {"structured_output": True, "stream": True},
        "modes": {"instant": {"sampling": {"temperature": 0.0}}},
    }
    Profile.model_validate(profile)
    file = folder / "fast.yaml"
    file.write_text(json.dumps(profile), encoding="utf-8")
    return file


def _quiet(folder: Path) -> dict[str, str]:
    """Return variables that keep a peer from calling home and its caches in a folder of this run."""
    return {
        "HOME": str(folder), "PYTHONSAFEPATH": "1", "PYTHONPATH": "", "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1", "SCARF_NO_ANALYTICS": "1", "DAFT_ANALYTICS_ENABLED": "0",
        "TELEMETRY_ENABLED": "0", "CURATOR_DISABLE_CACHE": "1", "DOCETL_HOME_DIR": str(folder),
        "HF_HOME": str(folder / "hub"), "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }  # fmt: skip


def _model(url: str) -> str:
    with urllib.request.urlopen(f"{url}/models", timeout=10) as answer:
        return str(json.load(answer)["data"][0]["id"])


def _prompt_tokens(url: str) -> dict[str, float]:
    """Return the prompt tokens that a vLLM server has taken so far, and those that it computed."""
    address = f"{url.removesuffix('/v1')}/metrics"
    with urllib.request.urlopen(address, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    by_source = [line for line in lines if line.startswith("vllm:prompt_tokens_by_source_total{")]
    counts = {
        line.split('source="')[1].split('"')[0]: float(line.split()[-1]) for line in by_source
    }
    return {"prefilled_tokens": counts["local_compute"], "prompt_tokens": sum(counts.values())}


def _without_arm(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "arm"}


if __name__ == "__main__":
    main()
