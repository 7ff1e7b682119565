"""Source and sink at two places with two identities, as the pipeline's `storage` says."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from config.errors import ConfigError
from config.load import load_pipeline
from connectors.errors import StorageError
from connectors.storage import Access, open_storage
from flows.checks.storage import check_sink, check_source
from flows.report.build import rebuild
from flows.report_server import page_for
from flows.run.core import run_job
from flows.run.job import Options, is_inside, make_job
from flows.run.look import Query, query_records, run_status
from flows.run.resume import reopen
from tests.fakes.object_store import ARCHIVE, OPEN_DATA

HEADRACE = Path(sys.executable).with_name("headrace")

PIPELINE = f"""
name: notes
source: s3://{OPEN_DATA}/notes
sink: s3://{ARCHIVE}/notes
storage:
  s3://{OPEN_DATA}/: {{anonymous: true}}
  s3://{ARCHIVE}/: {{profile: archive}}
stages:
  - {{name: kind, prompt: What is it?, output: {{kind: a|b|c, says: line}}}}
"""


@pytest.fixture
def pipeline(object_store, bucket, tmp_path, monkeypatch):
    """A public source and a sink of a profile's; the environment's keys may read neither."""
    for number in range(3):
        open_storage(f"s3://{OPEN_DATA}/notes").put(f"{number}.txt", f"Note {number}.".encode())
    (tmp_path / "aws").write_text(
        "[profile archive]\n"
        f"aws_access_key_id = archivist\naws_secret_access_key = {object_store.keys['archivist']}\n"
        f"endpoint_url = {object_store.address}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "reader")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", object_store.keys["reader"])
    file = tmp_path / "notes.yaml"
    file.write_text(PIPELINE, encoding="utf-8")
    return file


def test_run_and_all_after_it_reach_both_places_when_they_need_different_keys(pipeline, engine):
    with pytest.raises(StorageError, match="access denied"):
        list(open_storage(f"s3://{OPEN_DATA}/notes").list())
    manifest = run_job(make_job(pipeline, Options(engine=engine.url)))
    assert manifest["verdict"] == "complete"
    run_id = manifest["run_id"]
    assert run_status(run_id, None)["state"] == "complete"
    assert len(query_records(run_id, None, None, Query()).frame) == 3
    for start in ("resume", "retry"):
        assert run_job(reopen(run_id, None, start))["verdict"] == "complete"
    rebuild(run_id, None)
    assert "Note 1." in page_for(f"/runs/{run_id}")[1]


def test_sink_is_reached_by_the_environment_when_this_machine_has_not_written_it(
    pipeline, engine, tmp_path, monkeypatch
):
    manifest = run_job(make_job(pipeline, Options(engine=engine.url)))
    monkeypatch.setenv("HEADRACE_STATE", str(tmp_path / "another-machine"))
    sink = manifest["sink"]
    with pytest.raises(StorageError, match="access denied"):
        reopen(None, sink, "resume")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "archive")
    assert run_job(reopen(None, sink, "resume"))["verdict"] == "complete"


def test_doctor_looks_at_both_places_when_given_the_pipeline(pipeline, engine):
    with pipeline.open("a", encoding="utf-8") as file:
        file.write(f"cache: s3://{ARCHIVE}/shared\n")
    result = subprocess.run(
        [HEADRACE, "doctor", str(pipeline), "--engine", engine.url],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "is listed and read; its first object is 0.txt" in result.stdout, result.stdout
    for place in ("notes", "shared"):
        told = f"s3://{ARCHIVE}/{place} takes conditional puts; the probe is removed again"
        assert told in result.stdout


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("{'gs://a/': {}}", "'gs://a/' is no place in S3"),
        ("{'s3://a/': {secret: abc}}", "known keys: anonymous, endpoint_url, profile, region"),
        ("{'s3://a/': {endpoint_url: 'http://me:abc@host'}}", "without user or password"),
        ("{'s3://a/': {anonymous: true, profile: p}}", "exclude each other"),
    ],
)
def test_place_is_refused_without_showing_its_value_when_wrong(tmp_path, storage, message):
    file = tmp_path / "notes.yaml"
    text = PIPELINE.partition("storage:")[0] + f"storage: {storage}\nstages:"
    file.write_text(text + PIPELINE.partition("stages:")[2], encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        load_pipeline(file)
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "profile"),
    [("s3://a", "outer"), ("s3://a/b", "inner"), ("s3://a/b/c", "inner"), ("s3://a/bc", "outer"),
     ("s3://ab", "rest"), ("/a/b", None)],
)  # fmt: skip
def test_longest_beginning_counts_when_several_fit(tmp_path, url, profile):
    file = tmp_path / "notes.yaml"
    places = "{s3://a/b: {profile: inner}, s3://a/: {profile: outer}, 's3://': {profile: rest}}"
    text = PIPELINE.partition("storage:")[0] + f"storage: {places}\nstages:"
    file.write_text(text + PIPELINE.partition("stages:")[2], encoding="utf-8")
    expected = None if profile is None else Access(profile=profile)
    assert load_pipeline(file).access_to(url) == expected


def test_run_reads_an_archive_when_fsspec_opens_it(tmp_path, engine):
    with zipfile.ZipFile(tmp_path / "notes.zip", "w") as archive:
        archive.writestr("2024/a.txt", "Note a.")
        archive.writestr("b.txt", "Note b.")
    file = tmp_path / "notes.yaml"
    text = PIPELINE.partition("source:")[0] + "stages:" + PIPELINE.partition("stages:")[2]
    file.write_text(text, encoding="utf-8")
    options = Options(
        source=f"zip://::{tmp_path}/notes.zip", sink=str(tmp_path / "lake"), engine=engine.url
    )
    manifest = run_job(make_job(file, options))
    assert manifest["documents"] == {"listed": 2, "read": 2}
    rows = query_records(manifest["run_id"], None, None, Query()).frame
    assert rows["path"].to_list() == ["2024/a.txt", "b.txt"]
    report = rebuild(manifest["run_id"], None)
    assert report


def test_doctor_fails_when_a_source_cannot_be_opened_or_a_sink_not_be_written():
    source, sink = (check("gs://bucket/x") for check in (check_source, check_sink))
    assert [finding.status for finding in (*source, *sink)] == ["fail", "fail"]
    assert "install gcsfs" in source[0].says
    assert "not a sink" in sink[0].says


@pytest.mark.parametrize("source", ["file:///data", "local:///data", "/data"])
def test_sink_is_refused_when_inside_the_source_however_written(source):
    assert is_inside("/data/lake", source)
    assert is_inside("file:///data/lake", source)
    assert not is_inside("/data-lake", source)
