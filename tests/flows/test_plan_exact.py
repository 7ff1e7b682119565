"""Prompt tokens of a plan are those that the engine counts, held against a run on the embedded engine."""

import pytest

from flows.estimate import estimate
from flows.run.core import run_job
from flows.run.job import make_job

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


def quiet(_line):
    """Take a line and drop it."""


def test_prompt_tokens_are_exact_within_a_hundredth_when_all_is_sampled(
    embedded_engine, demo_corpus, tmp_path
):
    (tmp_path / "demo.yaml").write_text(
        PIPELINE.format(source=demo_corpus / "notes", sink=tmp_path / "lake"), encoding="utf-8"
    )
    job = make_job(tmp_path / "demo.yaml")
    before = estimate(job, sample=None, notify=quiet)
    actual = run_job(make_job(tmp_path / "demo.yaml"))["stages"]
    for stage in before["stages"]:
        if stage["over"] == "chunk" and stage["stage"] not in {"why", "deep"}:
            told = actual[stage["stage"]]["prompt_tokens"]
            assert stage["prompt_tokens"] == pytest.approx(told, rel=0.01), stage["stage"]
    # Once there are answers, what is asked about them is known as well, and how often is asked.
    for stage in estimate(job, sample=None, notify=quiet)["stages"]:
        told = actual[stage["stage"]]
        assert stage["prompt_tokens_expected"] == pytest.approx(told["prompt_tokens"], rel=0.01)
        assert stage["output_tokens_expected"] == pytest.approx(told["completion_tokens"], abs=1)


PIPELINE = """
name: exact
source: {source}
sink: {sink}
engine: embedded
chunk: {{max_tokens: 700}}
stages:
  - {{name: kind, prompt: "What is it?", output: {{kind: log|report}}, max_output_tokens: 24}}
  - {{name: says, prompt: "Which line counts most?", output: {{says: line}}, max_output_tokens: 24}}
  - {{name: why, needs: [kind], prompt: "Why is it a {{{{ upstream.kind.kind }}}}?", output: {{why: line}},
     max_output_tokens: 24}}
  - {{name: best, over: document, needs: [says], prompt: "Which line?", output: {{line: line}},
     max_output_tokens: 24}}
  - {{name: deep, mode: thinking, reasoning: summary, prompt: "What went wrong?", output: {{wrong: line}},
     max_output_tokens: 24, max_reasoning_tokens: 40}}
"""
