"""Agents with a real model and real tools: whether anything but the model goes wrong.

`python -m benchmarks.agent_runs_real [--samples 10] [--engine embedded] [--sink FOLDER]`. Five questions about the demo's corpus, each
asked so many times, by agents that may call `search` and `table_query`. The first two turns of each must call a
tool, under the host's grammar; the answer is under one too. A model of 135 million parameters calls what it likes
and answers what it likes; both are counted as its own. The machinery fails where a run has no end, a tool broke
down, or a call that the model was allowed to finish does not follow its tool's schema. The exit code is 1 then. Turns
that had to be sent again, since the engine did not answer in time, are told beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from benchmarks.machine import ROOT, machine, show
from flows.run.core import run_job
from flows.run.job import Options, make_job

_QUESTIONS: Mapping[str, str] = {
    "harbour": "Does the harbour log say that a ship was late? Search for it.",
    "library": "Did the library board agree on longer opening hours? Search the minutes.",
    "incident": "Was anybody hurt in the incident of 2031? Search for it.",
    "accounts": "Are the harbour's accounts in balance? Search them, or query their table.",
    "airports": "Are there airports in Alaska? Search for them, or query their table.",
}
_STAGE = """\
  - name: {name}
    over: corpus
    mode: agent
    tools: [search, table_query]
    samples: {samples}
    temperature: 0.7
    limits: {{steps: 4, opening_calls: 2, result_chars: 1500}}
    prompt: {prompt}
    output: {{found: yes|partly|no}}
    max_output_tokens: 160
"""
_MODEL_ERRORS = frozenset({"tool_error", "closed"})
"""Failures of calls that were whole: no such table, no such label, and a tool that was closed after several."""


def main() -> None:
    """Run the agents, and print what they did and what failed.

    Raises:
        SystemExit: The machinery has failed.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10, help="runs of each of five questions")
    parser.add_argument("--engine", default="embedded")
    parser.add_argument("--sink", help="where to keep what was done; dropped unless given")
    asked = parser.parse_args()
    measured_on = machine()
    with tempfile.TemporaryDirectory() as folder:
        sink = asked.sink or f"{folder}/sink"
        file = write_pipeline(Path(folder), asked.samples)
        manifest = run_job(make_job(file, Options(sink=sink, engine=asked.engine)), notify=_say)
        found = count(sink)
    rows = [{"arm": "agents", **found}]
    facts = {"seconds": manifest["seconds"], "verdict": manifest["verdict"]}
    show("agent_runs_real", measured_on, facts, rows)
    if found["machinery failures"] or found["runs"] != asked.samples * len(_QUESTIONS):
        raise SystemExit(1)


def write_pipeline(
    folder: Path,
    samples: int,
    names: Sequence[str] = tuple(_QUESTIONS),
    include: Sequence[str] = ("**/*",),
) -> Path:
    """Return the file of a pipeline that asks some of the questions, each `samples` times, of some of the files."""
    stages = (_STAGE.format(name=name, samples=samples, prompt=_QUESTIONS[name]) for name in names)
    file = folder / "agent_runs_real.yaml"
    head = (
        f"name: agent_runs_real\nsource: {ROOT / 'config' / 'demo_corpus'}\n"
        f"include: {json.dumps(list(include))}\nstages:\n"
    )
    file.write_text(head + "".join(stages), encoding="utf-8")
    return file


def count(sink: str) -> dict[str, int]:
    """Return how many runs, turns and calls a sink has, and how many of them went wrong, by whose doing."""
    usage = pl.read_parquet(f"{sink}/runs/*/usage/*.parquet")
    events = pl.read_parquet(f"{sink}/runs/*/transcripts/*.parquet").sort("request_key", "seq")
    outcomes = pl.read_parquet(f"{sink}/records/*/*.parquet")["outcome"]
    turns, calls = events.filter(kind="turn"), events.filter(kind="call")
    cut = _calls_that_were_cut(events)
    failures = Counter(
        "cut" if call_id in cut else failure
        for call_id, failure in calls.select(
            pl.concat_str("request_key", "call_id"), "failure"
        ).iter_rows()
        if failure is not None
    )
    machinery = {
        name: number for name, number in failures.items() if name not in {"cut", *_MODEL_ERRORS}
    }
    machinery["without an end"] = len(usage.filter(pl.col("finish_reason").is_null()))
    sent = len(turns) + len(events.filter(kind="compacted"))
    return {
        "runs": len(usage),
        "turns": len(turns),
        "calls": len(calls),
        **{f"of {name}": number for name, number in sorted(Counter(calls["tool"]).items())},
        "gave a result": len(calls) - failures.total(),
        "refused by the tool": sum(failures[name] for name in _MODEL_ERRORS),
        "cut by the model's own length": failures["cut"],
        "calls sent again": int(usage["attempts"].sum()) - sent,
        "records without an answer": int((outcomes != "succeeded").sum()),
        **{f"machinery: {name}": number for name, number in sorted(machinery.items()) if number},
        "machinery failures": sum(machinery.values()),
    }


def _calls_that_were_cut(events: pl.DataFrame) -> set[str]:
    """Return the calls of turns that had no room to end."""
    found, was_cut = set(), False
    for request_key, kind, finish, call_id in events.select(
        "request_key", "kind", "finish_reason", "call_id"
    ).iter_rows():
        if kind == "turn":
            was_cut = finish == "length"
        elif kind == "call" and was_cut:
            found.add(f"{request_key}{call_id}")
    return found


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    main()
