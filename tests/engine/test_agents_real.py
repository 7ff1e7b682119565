"""Agents with a real model: the embedded engine under vLLM, real tools over the demo's corpus."""

import pytest

from benchmarks.agent_runs_real import count, write_pipeline
from flows.run.core import run_job
from flows.run.job import Options, make_job

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


def test_nothing_but_the_model_goes_wrong_when_its_calls_are_forced(embedded_engine, tmp_path):
    file = write_pipeline(tmp_path, samples=2, names=["harbour"], include=["notes/*", "tables/*"])
    sink = str(tmp_path / "sink")
    manifest = run_job(make_job(file, Options(sink=sink)))
    assert manifest["verdict"] == "complete"
    found = count(sink)
    assert (found["runs"], found["turns"] // found["runs"]) == (2, 3)
    # Two opening turns each, of which every one has called.
    assert found["calls"] >= 4
    assert found["machinery failures"] == 0
    assert found["records without an answer"] == 0
