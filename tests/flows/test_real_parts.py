"""The whole channel on real parts: SeaweedFS, a Prefect server, vLLM with the embedded model."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import duckdb
import polars as pl
import pytest

from connectors.sinks.lake import Lake
from connectors.storage import LocalStorage, open_storage

ROOT = Path(__file__).resolve().parent.parent.parent
HEADRACE = Path(sys.executable).with_name("headrace")

FILES = {
    "config/demo_corpus/films/autumn-walk.mp4": "read",
    "config/demo_corpus/films/big-buck-bunny.mp4": "read",
    "config/demo_corpus/notes/harbour-log.md": "read",
    "config/demo_corpus/notes/incident-2031.txt": "read",
    "config/demo_corpus/notes/minutes-library-board.md": "read",
    "config/demo_corpus/reports/example-form.pdf": "read",
    "config/demo_corpus/reports/geometrie-und-topologie.pdf": "read",
    "config/demo_corpus/reports/locked.pdf": "rejected",
    "config/demo_corpus/reports/sequencer-brochure-scan.pdf": "read",
    "config/demo_corpus/reports/torn-download.pdf": "rejected",
    "config/demo_corpus/tables/airports.csv": "read",
    "config/demo_corpus/tables/harbour-accounts.xlsx": "read",
    "config/demo_corpus/tables/newark-weather.csv": "read",
    "CHANGELOG.md": "read",
    "NOTICE": "read",
    "prefect.yaml": "read",
    "docs/decisions/0001-two-environments.md": "read",
    "docs/decisions/0002-headless-opencv-and-bundled-ocr.md": "read",
    "docs/decisions/0003-chunks-are-counted-as-sent.md": "read",
    "docs/decisions/0004-shards-own-documents.md": "read",
    "config/prompts/house_rules.md": "read",
    "config/schemas/topic.json": "read",
}


def api(server, path, body):
    request = urllib.request.Request(
        f"{server.address}/api/{path}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def finished_run(object_store, prefect, embedded_engine, tmp_path_factory):
    """One run of `headrace run` from bucket to bucket; its manifest and environment."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "PREFECT_"))
    }
    environment |= object_store.environment | prefect.environment
    before = dict(os.environ)
    os.environ.update(object_store.environment)
    try:
        local, bucket = LocalStorage(ROOT), open_storage(f"s3://{object_store.bucket}/real/in")
        for path in FILES:
            bucket.put(path, local.get(path))
        result = subprocess.run(
            [
                HEADRACE, "run", "config/pipelines/demo.yaml", "--json",
                f"--source=s3://{object_store.bucket}/real/in",
                f"--sink=s3://{object_store.bucket}/real/out",
            ],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-3000:]
        manifest = json.loads(result.stdout)
        # What the other tools read: the same parts in a folder.
        lake, copy = Lake(manifest["sink"]), LocalStorage(tmp_path_factory.mktemp("lake"))
        for item in lake.storage.list():
            copy.put(item.path, lake.storage.get(item.path))
        yield manifest, lake, copy.root
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.vllm
@pytest.mark.timeout(400)
def test_every_object_has_its_row_when_files_are_real(finished_run):
    manifest, lake, _ = finished_run
    documents = lake.read_table("documents")
    found = dict(documents.select("path", "status").iter_rows())
    assert found == FILES
    assert manifest["documents"] == {"listed": 22, "read": 20, "rejected": 2}
    chunks = lake.read_table("chunks")
    for name in ("digest", "topic"):
        records = lake.read_table(f"records/stage={name}")
        assert sorted(records["chunk_key"]) == sorted(chunks["chunk_key"])
        stage = manifest["stages"][name]
        assert sum(stage["outcomes"].values()) == stage["inputs"] == len(chunks)


@pytest.mark.vllm
def test_answers_are_lines_of_their_chunk_when_the_model_chose_them(finished_run):
    _, lake, _ = finished_run
    lines = {
        row["chunk_key"]: {segment["text"] for segment in row["segments"]}
        for row in lake.read_table("chunks").to_dicts()
    }
    answered = lake.read_table("records/stage=digest").filter(outcome="succeeded").to_dicts()
    assert len(answered) > 20
    for row in answered:
        assert row["title"] in lines[row["chunk_key"]]
        assert row["key_sentence"] in lines[row["chunk_key"]]
        assert row["mode_observed"] == "instant"
        assert row["model"] == "smollm2-135m-instruct"


@pytest.mark.vllm
def test_text_tier_is_told_when_scans_and_films_are_read(finished_run):
    _, lake, _ = finished_run
    rows = lake.read_table("records/stage=digest").to_dicts()
    tiers = {}
    for row in rows:
        for citation in row["citations"]:
            tiers.setdefault(row["path"].rsplit("/", 1)[-1], set()).add(citation["tier"])
    assert tiers["sequencer-brochure-scan.pdf"] == {"ocr"}
    assert tiers["big-buck-bunny.mp4"] == {"subtitle"}
    mute = [row for row in rows if row["error_class"] == "no_modality"]
    assert [(row["outcome"], row["saw"]) for row in mute] == [("skipped", "nothing")]
    assert {row["saw"] for row in rows if row["outcome"] == "succeeded"} == {"text"}


@pytest.mark.vllm
def test_cache_serves_the_second_question_when_a_chunk_is_asked_twice(finished_run):
    manifest, _, _ = finished_run
    topic = manifest["stages"]["topic"]
    assert topic["cached_tokens"] > 0.5 * topic["prompt_tokens"]


@pytest.mark.vllm
def test_run_is_shown_in_prefect_when_an_api_is_configured(finished_run, prefect):
    manifest, _, _ = finished_run
    runs = api(prefect, "flow_runs/filter", {"sort": "START_TIME_DESC"})
    (run,) = [run for run in runs if run["parameters"].get("run_id") == manifest["run_id"]]
    assert run["state"]["name"] == "Completed"
    mine = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    artifacts = api(prefect, "artifacts/filter", mine)
    # Two documents were rejected, so there is a table of failures.
    assert {artifact["key"] for artifact in artifacts} == {
        "progress", "summary", "outcomes", "took", "failures", "report",
    }  # fmt: skip
    tasks = api(prefect, "task_runs/filter", mine)
    assert len(tasks) == manifest["shards"]


@pytest.mark.vllm
def test_lake_is_read_by_glob_when_it_was_written_to_s3(finished_run):
    manifest, lake, copy = finished_run
    count = manifest["stages"]["merge"]["inputs"]
    assert len(lake.read_table("records/stage=merge")) == count
    assert len(pl.read_parquet(f"{copy}/records/stage=merge/*.parquet")) == count
    query = f"select count(*) from '{copy}/records/stage=merge/*.parquet'"
    assert duckdb.sql(query).fetchall() == [(count,)]


@pytest.mark.vllm
def test_secrets_are_nowhere_in_the_lake_when_the_run_is_done(finished_run, object_store):
    _, _, copy = finished_run
    secret = object_store.environment["AWS_SECRET_ACCESS_KEY"].encode()
    files = [path for path in copy.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if secret in path.read_bytes()]


@pytest.mark.vllm
def test_report_is_self_contained_when_it_is_opened(finished_run):
    manifest, _, copy = finished_run
    page = next((copy / "reports" / manifest["run_id"]).glob("*.html")).read_text(encoding="utf-8")
    assert "<script" not in page
    assert 'src="http' not in page
    assert "data:image/jpeg;base64," in page
    assert "locked.pdf" in page
