"""A run whose agent is killed again and again: no turn that was answered is paid for twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import polars as pl

from flows.run.core import run_job
from flows.run.resume import reopen
from tests.fakes.agent_script import ScriptedCall, ScriptedReply, Transcript
from tests.fakes.agent_server import AgentServer
from tests.flows.test_agents import job

NUM_LINES = 60
NUM_KILLS = 6
STAGE = """\
  - name: review
    over: corpus
    mode: agent
    tools: [read]
    prompt: Read every line, one after the other. How many are there?
    output: {lines: integer}
"""
GO_ON = """\
import sys
from flows.run.core import run_job
from flows.run.job import Options
from flows.run.resume import reopen
run_job(reopen(None, sys.argv[1], "resume", Options(budget_tokens=10**7)))
"""


class Reader:
    """Reads line after line, each in a turn of its own, and answers with how many it has read."""

    def reply(self, body):
        sent = Transcript(body)
        number = len(sent.answered)
        if sent.tools and number < NUM_LINES:
            arguments = {"document": "D1", "from_line": number + 1, "num_lines": 1}
            return ScriptedReply(calls=[ScriptedCall("read", arguments)])
        said = sum("sentence number" in result for result in sent.results)
        return ScriptedReply(content=json.dumps({"lines": said}), reasoning="Done.")


def test_killed_agent_goes_on_at_its_last_step_each_time(tmp_path):
    (tmp_path / "in").mkdir()
    text = "\n\n".join(f"This is sentence number {number}." for number in range(NUM_LINES))
    (tmp_path / "in" / "text.txt").write_text(text, encoding="utf-8")
    sink = str(tmp_path / "lake")
    with AgentServer(Reader(), latency=0.15) as server:
        made = job(tmp_path, server, STAGE, budget_tokens=3_000)
        run_job(made)
        go_on = [sys.executable, "-c", GO_ON, sink]
        for _ in range(NUM_KILLS):
            before = server.counts["answered"]
            with subprocess.Popen(go_on, start_new_session=True) as process:
                limit = time.monotonic() + 40
                while server.counts["answered"] < before + 4 and time.monotonic() < limit:
                    time.sleep(0.02)
                os.killpg(process.pid, signal.SIGKILL)
        done = run_job(reopen(None, sink, "resume"))
        num_answered = server.counts["answered"]
    assert done["verdict"] == "complete"
    (row,) = pl.read_parquet(f"{sink}/records/stage=review/*.parquet").to_dicts()
    assert row["lines"] == NUM_LINES
    turns = pl.read_parquet(f"{sink}/runs/{done['run_id']}/transcripts/*.parquet")
    assert turns.filter(kind="turn").height == NUM_LINES + 1
    # What was under way at a kill may have been paid, and is asked again; nothing else is.
    assert num_answered <= NUM_LINES + 1 + NUM_KILLS
