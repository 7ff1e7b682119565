"""A run killed between submitting batches and collecting them sends no line twice and loses no row."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Self
from urllib.request import Request, urlopen

import polars as pl
import pytest

from tests.chaos.batch_process import Ended, attempt
from tests.chaos.checks import check_counts
from tests.chaos.driver import latest_run
from tests.chaos.world import ROOT, environment
from tests.flows.batch_runs import PIPELINE, write_world

NUM_FILES = 4

POINTS = [
    ("upload", "before"), ("upload", "after"), ("list", "before"), ("list", "after"),
    ("remove", "after"), ("begin", "before"), ("list", "after"), ("begin", "after"),
    ("list", "before"), ("look", "before"), ("look", "after"), ("content", "before"),
    ("content", "after"), ("remove", "before"), ("remove", "after"),
]  # fmt: skip
"""Calls to the host in the order in which a run comes to them, those of taking up what a kill has left among
them: each attempt is killed at one, before the host does it or after. In between lie all that is put into
the sink."""


class HostProcess:
    """A fake host in its own process, which outlives those that are killed."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.fakes.batch_host"]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        self.url = str(json.loads(self._process.stdout.readline())["url"])
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def tell(self, **rules: Any) -> dict[str, Any]:
        """Change the rules, if any are given, and return what the host knows."""
        data = json.dumps(rules).encode() if rules else b""
        with urlopen(Request(f"{self.url}/control", data=data, method="POST")) as answer:
            value = json.load(answer)
        assert isinstance(value, dict)
        return value


class Life:
    """One sink, from its first attempt until its run is complete."""

    def __init__(self, folder: Path, host: HostProcess, documents_per_shard: int) -> None:
        self.folder, self.host = folder, host
        shards = f"documents_per_shard: {documents_per_shard}"
        pipeline = PIPELINE.replace("documents_per_shard: 4", shards)
        write_world(folder, host.url, pipeline=pipeline, num_files=NUM_FILES, name=folder.name)
        self.sink = str(folder / "lake")
        self.kills: list[str] = []

    def attempt(self, **halt: Any) -> Ended:
        """Go on with the run, killed at the call to the host that the rules name; without one, to its end."""
        num_halted = self.host.tell(**{"halt": ""} | halt)["halted"]
        run = latest_run(self.sink)
        going_on = run is not None and (self.folder / "lake/runs" / run / "run.json").exists()
        command = (
            ["run", f"--resume={run}", f"--sink={self.sink}", "--json"]
            if going_on
            else [
                "run", str(self.folder / "waits.yaml"), f"--source={self.folder / 'in'}",
                f"--sink={self.sink}", f"--engine={self.folder / 'host.yaml'}", "--json",
            ]
        )  # fmt: skip
        env = environment(self.folder / "state")
        return attempt(command, env, self.folder, lambda: self.host.tell()["halted"] > num_halted)

    def check(self, ended: Ended) -> None:
        """Check that the run is complete, with each row once."""
        manifest = json.loads(ended.out)
        check_counts(manifest)
        for stage, num_rows in (("kind", NUM_FILES), ("title", NUM_FILES), ("all", 1)):
            rows = pl.read_parquet(f"{self.sink}/records/stage={stage}/*.parquet")
            assert set(rows["outcome"]) == {"succeeded"}, self.kills
            assert rows["row_key"].n_unique() == len(rows) == num_rows, self.kills
        for name, stage in manifest["stages"].items():
            taken = stage["prompt_tokens"] + stage["completion_tokens"]
            assert manifest["spent"]["stages"][name]["tokens"] == taken, self.kills

    def kill(self, halt: str, *, before: bool, after: int = 0) -> Ended:
        """Go on with the run, to be killed before such a call is done or after it; so many pass first."""
        ended = self.attempt(halt=halt, halt_before=before, halt_after=after)
        when = "before" if before else "after"
        self.kills.append(f"{when} {halt}: {ended.code} {self.host.tell()['calls']} {ended.told}")
        return ended

    def check_host(self) -> int:
        """Check that no line was sent twice and that nothing is left at the host; return how many were sent."""
        known = self.host.tell()
        sent = Counter(line for batch in known["submitted"] for line in batch)
        assert set(sent.values()) == {1}, "\n".join(self.kills)
        assert len(sent) == 2 * NUM_FILES
        assert known["files"] == 0, "\n".join(self.kills)
        return len(sent)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("keeps_metadata", [True, False])
def test_no_line_is_sent_twice_and_no_row_is_lost_when_a_run_is_killed(tmp_path, keeps_metadata):
    with HostProcess() as host:
        host.tell(keeps_metadata=keeps_metadata)
        # One shard: with several, how far the others are at a kill is a matter of luck.
        life = Life(tmp_path / "life", host, documents_per_shard=NUM_FILES)
        for call, when in POINTS:
            ended = life.kill(call, before=when == "before")
            assert ended.code == -9, "\n".join(life.kills)
        ended = life.attempt()
        assert ended.code == 0, "\n".join(life.kills)
        life.check(ended)
        num_lines = life.check_host()
    print(f"{len(POINTS)} kills, {num_lines} lines, none of them sent twice")  # noqa: T201


@pytest.mark.timeout(300)
def test_shards_killed_wherever_they_are_send_no_line_twice(tmp_path):
    with HostProcess() as host:
        life = Life(tmp_path / "life", host, documents_per_shard=1)
        ended, passed = life.kill("any", before=False, after=2), 2
        while ended.code == -9:
            # More pass each time, so that each attempt comes further than the last.
            passed += 1
            ended = life.kill("any", before=passed % 2 == 0, after=passed)
        assert ended.code == 0, "\n".join(life.kills)
        life.check(ended)
        life.check_host()
    assert len(life.kills) > 3, "\n".join(life.kills)
