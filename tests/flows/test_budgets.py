"""Budgets of a run and of its stages: they end what they are for, and a larger one goes on."""

import json

import polars as pl
import pytest

from config.errors import ConfigError
from flows.artifacts import describe
from flows.run.core import run_job
from flows.run.job import Options, make_job
from flows.run.progress import Progress
from flows.run.resume import reopen, with_pipeline
from flows.terminal import _counts, summary_lines
from tests.fakes.engine_server import FakeEngine
from tests.flows.notes import write_notes

NUM_FILES = 24

PIPELINE = """
name: notes
documents_per_shard: 4
stages:
  - {name: kind, prompt: What is it?, output: {kind: a|b|c, says: line}}
  - {name: weight, needs: [kind], prompt: How heavy is it?, output: {weight: light|heavy}}
  - {name: title, over: document, needs: [kind, weight], prompt: Which line?, output: {title: string}}
  - {name: all, over: corpus, needs: [title], prompt: What is it all about?, output: {about: string}}
"""

PROFILE = """
name: timed
base_url: {url}
prices: {{input_usd: 1.0, cached_input_usd: 0.1, output_usd: 10.0}}
gpus: 4
throughput: {{prompt_tokens_per_s: 1000, output_tokens_per_s: 100}}
capabilities: {{structured_output: true}}
modes: {{instant: {{}}}}
"""

STAGES = ("kind", "weight", "title", "all")
NUM_ASKED = 3 * NUM_FILES + 1


@pytest.fixture
def corpus(tmp_path):
    return write_notes(tmp_path, PIPELINE, NUM_FILES)


def job(corpus, engine, *settings, **options):
    asked = Options(
        source=str(corpus / "in"),
        sink=str(corpus / "lake"),
        engine=options.pop("profile", engine.url),
        settings=settings,
        **options,
    )
    return make_job(corpus / "notes.yaml", asked)


def prompts(engine):
    return [json.dumps(call["messages"]) for call in engine.calls]


def outcomes(manifest):
    return {name: dict(stage["outcomes"]) for name, stage in manifest["stages"].items()}


def paid(manifest):
    """Return the tokens of a run's answers, by stage."""
    return {
        name: stage["prompt_tokens"] + stage["completion_tokens"]
        for name, stage in manifest["stages"].items()
    }


def check_complete(corpus, manifest, engine):
    """Check that every question was asked once, over all attempts, and paid for once."""
    assert manifest["verdict"] == "complete"
    assert manifest["failures"] == []
    assert len(set(prompts(engine))) == len(engine.calls) == NUM_ASKED
    assert {n: one["tokens"] for n, one in manifest["spent"]["stages"].items()} == paid(manifest)
    assert manifest["spent"]["tokens"] == sum(paid(manifest).values())
    for stage in STAGES:
        rows = pl.read_parquet(f"{corpus}/lake/records/stage={stage}/*.parquet")
        assert set(rows["outcome"]) == {"succeeded"}
        assert rows["row_key"].n_unique() == len(rows) == (1 if stage == "all" else NUM_FILES)


@pytest.mark.parametrize("budget", [3_000, 6_000, 9_000])
def test_only_what_is_missing_is_asked_when_a_run_goes_on_with_a_larger_budget(corpus, budget):
    with FakeEngine() as engine:
        first = run_job(job(corpus, engine, budget_tokens=budget))
        assert first["verdict"] == "budget_reached"
        assert first["spent"]["tokens"] <= budget
        assert first["spent"]["reached"] == ["budget.tokens"]
        again = summary_lines(first)["go on"]
        assert again == f"headrace run --resume {first['run_id']} --budget-tokens <more>"
        assert 0 < len(engine.calls) < NUM_ASKED
        second = run_job(reopen(None, None, "resume", Options(budget_tokens=budget + 2_000)))
        assert second["verdict"] == "budget_reached"
        assert first["spent"]["tokens"] < second["spent"]["tokens"] <= budget + 2_000
        last = run_job(reopen(None, None, "resume", Options(budget_tokens=10**6)))
        check_complete(corpus, last, engine)


def test_other_stages_go_on_when_one_has_reached_its_budget(corpus):
    with FakeEngine() as engine:
        first = run_job(job(corpus, engine, "stages.weight.budget.tokens=1500"))
        assert first["verdict"] == "budget_reached"
        assert first["spent"]["stages"]["weight"]["tokens"] <= 1500
        assert first["spent"]["reached"] == ["stages.weight.budget.tokens"]
        found = outcomes(first)
        assert found["kind"] == {"succeeded": NUM_FILES}
        assert found["weight"]["succeeded"] > 0
        assert found["weight"]["over_budget"] == NUM_FILES - found["weight"]["succeeded"] > 0
        # What builds on missing answers waits for them, so that it is not paid for twice.
        waiting = {"skipped": found["weight"]["over_budget"]}
        assert found["title"] == {"succeeded": found["weight"]["succeeded"]} | waiting
        assert found["all"] == {"skipped": 1}
        assert first["stages"]["title"]["skipped"] == {"upstream_over_budget": waiting["skipped"]}
        failure = first["failures"][0]
        assert failure["error_class"] == "budget_reached"
        assert "the budget of stage 'weight' is reached: " in failure["example"]
        assert " of 1,500 tokens are spent, and a call of up to " in failure["example"]
        assert summary_lines(first)["go on"].endswith(" --set stages.weight.budget.tokens=<more>")

        # What a stage has spent is remembered: the same limit lets nothing through.
        asked = len(engine.calls)
        second = run_job(reopen(None, None, "resume"))
        assert outcomes(second) == found
        assert len(engine.calls) == asked
        assert second["spent"]["tokens"] == first["spent"]["tokens"]

        more = Options(settings=("stages.weight.budget.tokens=100000",))
        last = run_job(reopen(None, None, "resume", more))
        check_complete(corpus, last, engine)


def test_pipeline_has_not_changed_when_only_the_budget_of_a_stage_has(corpus):
    with FakeEngine() as engine:
        run_job(job(corpus, engine, "stages.weight.budget.tokens=1500"))
        more = Options(settings=("stages.*.budget.tokens=100000",))
        going_on = reopen(None, None, "resume", more)
        same = with_pipeline(going_on, str(corpus / "notes.yaml"), accept_changes=False)
        assert same.pipeline.stages[1].budget.tokens == 100_000
        check_complete(corpus, run_job(same), engine)


@pytest.mark.parametrize("setting", ["stages.weight.prompt=x", "budget=1", "stages.a.budgets.b=1"])
def test_other_settings_are_refused_when_a_run_goes_on(corpus, setting):
    with FakeEngine() as engine:
        run_job(job(corpus, engine, budget_tokens=4_000))
    with pytest.raises(ConfigError, match="--set: cannot change when a run goes on"):
        reopen(None, None, "resume", Options(settings=(setting,)))


@pytest.mark.parametrize("limit", [{"budget_tokens": 1}, {"budget_tokens": 150}])
def test_everything_is_left_when_the_budget_is_smaller_than_the_first_request(corpus, limit):
    with FakeEngine() as engine:
        first = run_job(job(corpus, engine, **limit))
        assert first["verdict"] == "budget_reached"
        assert engine.calls == []
        assert first["spent"]["tokens"] == 0
        read = first["documents"].get("read", 0)
        assert read + first["documents"]["left"] == NUM_FILES
        assert outcomes(first)["kind"] == ({"over_budget": read} if read else {})
        assert outcomes(first)["title"] == ({"skipped": read} if read else {})
        assert "0 of " in first["failures"][0]["example"]
        last = run_job(reopen(None, None, "resume", Options(budget_tokens=10**6)))
        check_complete(corpus, last, engine)


def test_gpu_time_is_kept_to_when_the_profile_tells_it(corpus):
    with FakeEngine() as engine:
        profile = corpus / "timed.yaml"
        profile.write_text(PROFILE.format(url=engine.url), encoding="utf-8")
        limits = {"profile": str(profile), "budget_gpu_seconds": 40.0}
        progress = Progress()
        asked = job(corpus, engine, "stages.kind.budget.usd=0.02", **limits)
        first = run_job(asked, progress=progress)
        assert first["verdict"] == "budget_reached"
        assert first["spent"]["gpu_seconds"] <= 40
        tokens = first["stages"].values()
        computed = sum(s["prompt_tokens"] - (s["cached_tokens"] or 0) for s in tokens)
        generated = sum(s["completion_tokens"] for s in tokens)
        told = first["spent"]["gpu_seconds"]
        assert told == pytest.approx(4 * (computed / 1000 + generated / 100))
        assert summary_lines(first)["GPU time"] == f"{told:,.1f} GPU-seconds"
        assert f" {told:,.1f} GPU-s" in _counts(progress.snapshot())
        assert f"| GPU time | {told:,.1f} GPU-seconds |" in describe("run", progress.snapshot())
        more = Options(budget_gpu_seconds=10**6, settings=("stages.kind.budget.usd=9",))
        check_complete(corpus, run_job(reopen(None, None, "resume", more)), engine)


@pytest.mark.parametrize(
    ("missing", "setting", "message"),
    [
        (
            "gpus",
            "budget.gpu_seconds=5",
            "^budget.gpu_seconds is set, but engine 'timed' has no gpus",
        ),
        (
            "throughput",
            "stages.all.budget.gpu_seconds=5",
            "^stages.all.budget.gpu.* `throughput` to",
        ),
        ("prices", "stages.kind.budget.usd=5", "^stages.kind.budget.usd .* has no prices"),
    ],
)
def test_limit_is_refused_when_the_profile_does_not_know_its_unit(
    corpus, engine, missing, setting, message
):
    lines = PROFILE.format(url=engine.url).splitlines()
    profile = corpus / "timed.yaml"
    profile.write_text("\n".join(line for line in lines if not line.startswith(missing)))
    with pytest.raises(ConfigError, match=message):
        run_job(job(corpus, engine, setting, profile=str(profile)))
    assert engine.calls == []
    assert not (corpus / "lake").exists()


def test_run_is_not_hopeless_when_only_the_budget_of_a_stage_is_reached(corpus):
    for number in range(NUM_FILES, 150):
        (corpus / "in" / f"{number:02d}.txt").write_text(f"Note {number} says this.")
    with FakeEngine() as engine:
        found = run_job(job(corpus, engine, "stages.kind.budget.tokens=1000"))
    assert found["verdict"] == "budget_reached"
    assert found["documents"] == {"listed": 150, "read": 150}
