"""The next shard is read while others are asked about, and asked about when one of them has ended."""

from flows.run.bench import NUM_SHARDS_AT_ONCE
from flows.run.core import run_job
from flows.run.job import Options, make_job
from flows.run.progress import Progress
from tests.fakes.engine_server import FakeEngine

PIPELINE = """
name: notes
documents_per_shard: 1
stages:
  - {name: kind, prompt: What is it?, output: {kind: a|b|c}}
"""


def test_next_shard_is_read_and_not_asked_about_while_others_wait_for_answers(tmp_path):
    (tmp_path / "notes.yaml").write_text(PIPELINE, encoding="utf-8")
    (tmp_path / "in").mkdir()
    for number in range(NUM_SHARDS_AT_ONCE + 2):
        (tmp_path / "in" / f"{number}.txt").write_text(f"Note {number} says this.")
    told = []
    progress = Progress(told.append, interval_s=0)
    with FakeEngine(latency_s=2.0) as engine:
        options = Options(
            source=str(tmp_path / "in"), sink=str(tmp_path / "lake"), engine=engine.url
        )
        manifest = run_job(make_job(tmp_path / "notes.yaml", options), progress=progress)
    assert manifest["verdict"] == "complete"
    before = [snapshot for snapshot in told if not snapshot.num_results]
    assert max(snapshot.num_documents_read for snapshot in before) == NUM_SHARDS_AT_ONCE + 1
    assert max(snapshot.num_requests for snapshot in before) == NUM_SHARDS_AT_ONCE
