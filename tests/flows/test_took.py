"""What a run took, beside what was planned: one table for the page, the terminal and Prefect."""

import polars as pl
import pytest

from connectors.sinks.lake import Lake
from engine.batch.amount import cost_usd
from engine.profile import Prices
from engine.request import Result, Usage
from flows.artifacts import describe
from flows.report.took import took
from flows.run.counts import report_from_json, saved_usd_of
from flows.run.progress import Progress
from tests.flows.report_sink import Sample, written


def stage(**changes):
    return {
        "requests": 10, "prompt_tokens": 1_000, "cached_tokens": 400, "planned_cached_tokens": 500,
        "completion_tokens": 80, "reasoning_tokens": None, "cost_usd": None, "saved_usd": None,
        "mode": "instant",
    } | changes  # fmt: skip


def manifest(*, estimate=None, documents=None, **stages):
    return {
        "stages": stages, "estimate": estimate, "seconds": 30.0, "documents": documents or {},
    }  # fmt: skip


def planned(**stages):
    return {
        "made": "2031-05-03T10:00:00+00:00", "basis": "expected", "pilot": None, "seconds": 60.0,
        "stages": stages,
    }  # fmt: skip


PLAN = {
    "requests": 12, "prompt_tokens": 1_200, "cached_tokens": 600, "output_tokens": 90,
    "cost_usd": 0.5,
}  # fmt: skip


def test_measured_cached_share_stands_beside_the_planned_one():
    (row,) = took(manifest(kind=stage())).as_rows()
    assert row == {
        "stage": "kind",
        "requests": "10",
        "prompt tokens": "1,000",
        "from the cache": "40% (planned 50%)",
        "output tokens": "80",
    }


def test_cached_tokens_are_not_nought_when_the_endpoint_reports_none():
    (row,) = took(manifest(kind=stage(cached_tokens=None))).as_rows()
    assert row["from the cache"] == "not reported (planned 50%)"
    progress = Progress()
    progress.add_result(
        Result(
            request_key="k", stage="kind", outcome="succeeded", mode="instant",
            usage=Usage(prompt_tokens=100, completion_tokens=5),
        )
    )  # fmt: skip
    assert progress.snapshot().cached_tokens is None
    assert "100, cached not reported" in describe("r1", progress.snapshot())


def test_ratio_of_all_is_that_of_the_stages_that_tell():
    rows = took(manifest(a=stage(), b=stage(cached_tokens=None))).as_rows()
    assert rows[-1]["stage"] == "all"
    assert rows[-1]["from the cache"].startswith("40% ")
    assert rows[-1]["prompt tokens"] == "2,000"


def test_thinking_and_what_the_cache_saved_are_shown_when_they_are_known():
    rows = took(
        manifest(a=stage(reasoning_tokens=30, cost_usd=0.25, saved_usd=0.05), b=stage(cost_usd=0.5))
    ).as_rows()
    assert rows[0]["thinking"] == "30"
    assert rows[1]["thinking"] == rows[1]["USD without the cache"] == ""
    assert rows[0]["USD without the cache"] == "0.3000 (saved 0.0500)"
    assert rows[2]["USD"] == "0.7500"


def test_plan_stands_beside_each_figure_when_there_was_one():
    plan = {**PLAN, "cached_tokens": 900}
    told = took(manifest(kind=stage(cost_usd=0.4), estimate=planned(kind=plan)))
    (row,) = told.as_rows()
    assert row["from the cache"] == "40% (planned 75%)"
    assert row["requests"] == "10 (planned 12)"
    assert row["prompt tokens"] == "1,000 (planned 1,200)"
    assert row["output tokens"] == "80 (planned 90)"
    assert row["USD"] == "0.4000 (planned 0.5000)"
    assert told.note == (
        "Planned on 2031-05-03 10:00 UTC: expected; planned to take 1 min 0 s, it took 30.0 s."
    )


def test_what_the_pilot_asked_is_taken_off_the_plan():
    before = {**PLAN, "requests": 3, "prompt_tokens": 300, "output_tokens": 20, "cost_usd": None}
    estimate = planned(kind=PLAN, sum=PLAN) | {"pilot": "p", "already": {"kind": before}}
    told = took(manifest(kind=stage(), sum=stage(), estimate=estimate, documents={"unchanged": 3}))
    rows = told.as_rows()
    assert rows[0]["requests"] == "10 (planned 9)"
    assert rows[1]["requests"] == "10 (planned 12)"
    assert rows[2]["prompt tokens"] == "2,000 (planned 2,100)"
    assert "less what the pilot had asked" in told.note
    assert "of 3 unchanged documents" in told.note
    # 21 of 24 requests were left.
    assert "planned to take 52.5 s" in told.note


def test_nothing_is_said_of_a_plan_when_there_was_none():
    told = took(manifest(kind=stage()))
    assert told.note == ""
    assert "planned 1" not in str(told.as_rows())


def test_computed_stage_takes_nothing():
    assert [row["stage"] for row in took(manifest(a=stage(), b=stage(mode="sql"))).as_rows()] == [
        "a"
    ]


PRICES = Prices(input_usd=1.0, cached_input_usd=0.25, output_usd=4.0)


@pytest.mark.parametrize("cached", [0, 400, None])
def test_saved_dollars_are_the_difference_to_the_price_without_a_cache(cached):
    usage = Usage(prompt_tokens=1_000, cached_tokens=cached, completion_tokens=10)
    result = Result(
        request_key="k", stage="s", outcome="succeeded", mode="instant", engine="p", usage=usage
    )
    saved = saved_usd_of(result, {"p": PRICES})
    if cached is None:
        assert saved is None
    else:
        whole = Usage(prompt_tokens=1_000, cached_tokens=0, completion_tokens=10)
        assert saved == pytest.approx(cost_usd(whole, PRICES) - cost_usd(usage, PRICES))
    assert saved_usd_of(result, {"p": None}) is None


def test_report_of_a_shard_is_read_when_an_earlier_version_wrote_it():
    counts = {"num_inputs": 1, "failures": []}
    value = {
        "shard": "s00000", "num_documents": 1, "documents": {}, "rejected": {}, "num_chunks": 1,
        "stages": {"kind": counts}, "paid": {}, "claims": [],
    }  # fmt: skip
    assert report_from_json(value).stages["kind"].reasoning_tokens is None


def test_optional_columns_are_null_when_a_part_has_them_not(tmp_path):
    (tmp_path / "usage").mkdir()
    pl.DataFrame({"stage": ["a"], "seconds": [1.0]}).write_parquet(tmp_path / "usage" / "0.parquet")
    new = pl.DataFrame({"stage": ["b"], "seconds": [2.0], "queued_s": [0.5]})
    new.write_parquet(tmp_path / "usage" / "1.parquet")
    (frame,) = Lake(str(tmp_path)).iter_table("usage", ["stage", "seconds"], optional=["queued_s"])
    assert frame.to_dict(as_series=False) == {
        "stage": ["a", "b"], "seconds": [1.0, 2.0], "queued_s": [None, 0.5],
    }  # fmt: skip


def test_waits_are_in_the_report_as_far_as_the_usage_table_has_them(tmp_path):
    sample = Sample(tmp_path, stages=("pick", "briefing"))
    usage = tmp_path / "sink" / "runs" / sample.job.run_id / "usage"
    usage.mkdir(parents=True)
    waits = [float(number) for number in range(1, 101)]
    frame = pl.DataFrame({"stage": ["pick"] * 100, "seconds": waits, "first_token_s": waits})
    frame.write_parquet(usage / "s00000.parquet")
    sample.shard_records("pick", "letters/a.png", "s00000", output={"point": "Dear all"})
    page, text = written(sample.finish())
    assert "to first token, s" in text
    assert "50.00 (95 %: 95.00)" in text
    assert "queued" not in text
    assert "What it took" in page
    frame.with_columns(queued_s=0.25, decoding_s=2.0).write_parquet(usage / "s00001.parquet")
    _, text = written(sample)
    assert "0.25 (95 %: 0.25)" in text
    assert text.index("queued, s") < text.index("to first token, s") < text.index("decoding, s")
