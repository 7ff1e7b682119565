"""The pipelines that come along, run as the docs show them, on the embedded engine."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
HEADRACE = str(Path(sys.executable).with_name("headrace"))

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


def run(pipeline, sink, cwd):
    result = subprocess.run(
        [HEADRACE, "run", pipeline, "--sink", str(sink), "--json"],
        cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


def test_messages_are_answered_from_the_list_when_faq_is_run(embedded_engine, tmp_path):
    manifest = run("faq", tmp_path / "answers", tmp_path)
    stage = manifest["stages"]["answer"]
    assert stage["outcomes"] == {"succeeded": 8}
    assert stage["modes_observed"] == {"instant": 8}
    # The list of questions is read once: whole blocks of it come from the cache from then on.
    assert stage["cached_tokens"] >= 7 * 256
    records = pl.read_parquet(f"{tmp_path}/answers/records/stage=answer/*.parquet")
    samples = ROOT / "config" / "samples" / "faq"
    for row in records.to_dicts():
        words = (samples / row["path"]).read_text(encoding="utf-8").split()
        assert row["asked"] in " ".join(words)
        assert row["entry"] in {
            "refund", "rebooking", "bicycles", "dogs", "delays", "lost_property", "other",
        }  # fmt: skip


def test_causes_are_lines_and_thoughts_are_kept_when_log_tracing_is_run(embedded_engine, tmp_path):
    manifest = run("log_tracing", tmp_path / "causes", tmp_path)
    stage = manifest["stages"]["trace"]
    assert stage["outcomes"] == {"succeeded": 2}
    assert stage["modes_observed"] == {"thinking": 2}
    records = pl.read_parquet(f"{tmp_path}/causes/records/stage=trace/*.parquet")
    samples = ROOT / "config" / "samples" / "logs"
    for row in records.to_dicts():
        lines = (samples / row["path"]).read_text(encoding="utf-8").splitlines()
        assert row["cause"] in lines
        assert row["effect"] in lines
        assert row["thought"].strip()
