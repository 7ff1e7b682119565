"""Later runs on the same sink: only what changed is read, asked and written."""

import os
from dataclasses import replace

import polars as pl
import pytest

from config.errors import ConfigError
from flows.run.core import run_job
from flows.run.job import Options, make_job
from flows.run.resume import reopen, with_pipeline
from tests.fakes.engine_server import FakeEngine, Fault

PIPELINE = """
name: notes
documents_per_shard: 4
stages:
  - {name: kind, prompt: What is it?, output: {kind: a|b|c, says: line}}
  - {name: title, over: document, needs: [kind], prompt: Which line?, output: {title: line}}
"""
NUM_FILES = 12


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "notes.yaml").write_text(PIPELINE, encoding="utf-8")
    (tmp_path / "in").mkdir()
    for number in range(NUM_FILES):
        write(tmp_path, number, f"Note {number} says this.\nA second line of note {number}.")
    return tmp_path


def write(corpus, number, text):
    (corpus / "in" / f"{number:02d}.txt").write_text(text, encoding="utf-8")


def job(corpus, engine, **options):
    asked = Options(
        source=str(corpus / "in"), sink=str(corpus / "lake"), engine=engine.url, **options
    )
    return make_job(corpus / "notes.yaml", asked)


def run(corpus, engine, **options):
    """Run once more; return the manifest and how many calls it made."""
    before = len(engine.calls)
    return run_job(job(corpus, engine, **options)), len(engine.calls) - before


def parts(corpus):
    lake = corpus / "lake"
    tables = [lake / name for name in ("documents", "chunks", "records")]
    return {
        str(file.relative_to(lake)): (file.read_bytes(), file.stat().st_mtime_ns)
        for table in tables
        for file in table.rglob("*.parquet")
    }


def records(corpus, stage="kind"):
    return pl.read_parquet(f"{corpus}/lake/records/stage={stage}/*.parquet")


def test_nothing_is_asked_or_written_when_nothing_changed(corpus):
    with FakeEngine() as engine:
        run(corpus, engine)
        before = parts(corpus)
        manifest, calls = run(corpus, engine)
    assert calls == 0
    assert manifest["verdict"] == "complete"
    assert manifest["documents"] == {"listed": NUM_FILES, "unchanged": NUM_FILES}
    assert parts(corpus) == before


def test_only_the_changed_document_is_read_and_asked_about(corpus):
    with FakeEngine() as engine:
        run(corpus, engine)
        before = parts(corpus)
        write(corpus, 5, "Another note.\nWith other lines.")
        # The others of its shard could not be read again.
        for number in (4, 6, 7):
            found = (corpus / "in" / f"{number:02d}.txt").stat()
            file = corpus / "in" / f"{number:02d}.txt"
            file.write_bytes(b"\0" * found.st_size)
            os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
        manifest, calls = run(corpus, engine)
    assert calls == 2
    assert manifest["documents"] == {"listed": NUM_FILES, "read": 4, "unchanged": 8}
    changed = {path for path, held in parts(corpus).items() if before[path] != held}
    assert {path.rpartition("/")[2] for path in changed} == {"s00001.parquet"}
    assert records(corpus)["row_key"].n_unique() == NUM_FILES
    superseded = corpus / "lake" / "runs" / manifest["run_id"] / "superseded"
    assert len([*superseded.rglob("*.parquet")]) == len(changed)


def test_touched_file_is_read_and_not_asked_about(corpus):
    with FakeEngine() as engine:
        run(corpus, engine)
        os.utime(corpus / "in" / "03.txt")
        manifest, calls = run(corpus, engine)
    assert calls == 0
    assert manifest["documents"]["read"] == 4


def test_deleted_document_leaves_and_a_new_one_gets_a_new_shard(corpus):
    with FakeEngine() as engine:
        run(corpus, engine)
        (corpus / "in" / "02.txt").unlink()
        write(corpus, 99, "A new note.\nWith two lines.")
        manifest, calls = run(corpus, engine)
    assert calls == 2
    assert manifest["verdict"] == "complete"
    found = pl.read_parquet(f"{corpus}/lake/documents/*.parquet")
    assert "02.txt" not in found["path"].to_list()
    assert found.filter(path="99.txt")["shard"].to_list() == ["s00003"]
    assert records(corpus)["path"].to_list().count("02.txt") == 0
    answers = (corpus / "lake" / "_headrace" / "answers" / "s00000.jsonl").read_text()
    assert len(answers.splitlines()) == 2 * 3


def test_edited_prompt_asks_its_stage_again_and_what_depends_on_it_without_reading(corpus):
    with FakeEngine() as engine:
        run(corpus, engine)
        for file in (corpus / "in").iterdir():
            found = file.stat()
            file.write_bytes(b"\0" * found.st_size)
            os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
        edited = PIPELINE.replace("Which line?", "Which line is it?")
        (corpus / "notes.yaml").write_text(edited, encoding="utf-8")
        _, calls = run(corpus, engine)
        assert calls == NUM_FILES
        (corpus / "notes.yaml").write_text(PIPELINE, encoding="utf-8")
        _, calls = run(corpus, engine)
    # The answers of the former prompt are still there.
    assert calls == 0
    assert set(records(corpus, "title")["outcome"]) == {"succeeded"}


def test_copies_are_asked_about_once_and_have_rows_of_their_own(corpus):
    for number in (1, 6, 11):
        write(corpus, number, "The same note.\nIn three files.")
    with FakeEngine() as engine:
        _, calls = run(corpus, engine)
        assert calls == 2 * (NUM_FILES - 2)
        write(corpus, 50, "The same note.\nIn three files.")
        _, calls = run(corpus, engine)
    assert calls == 0
    rows = records(corpus).filter(pl.col("path").is_in(["01.txt", "06.txt", "11.txt", "50.txt"]))
    assert rows["request_key"].n_unique() == 1
    assert rows["row_key"].n_unique() == 4


def test_failed_requests_are_asked_again_by_the_next_run(corpus):
    def refuse(_number, body):
        bad = engine.broken and "Note 7 says" in str(body["messages"])
        return Fault(status=422, body=b'{"error": {"message": "no"}}') if bad else None

    with FakeEngine(script=refuse) as engine:
        engine.broken = True
        run(corpus, engine)
        engine.broken = False
        manifest, calls = run(corpus, engine)
    assert calls == 2
    assert manifest["documents"]["unchanged"] == 8
    assert set(records(corpus)["outcome"]) == {"succeeded"}


def test_retry_leaves_the_source_alone_when_the_run_had_ended(corpus):
    def refuse(_number, body):
        bad = engine.broken and "Note 7 says" in str(body["messages"])
        return Fault(status=422, body=b'{"error": {"message": "no"}}') if bad else None

    with FakeEngine(script=refuse) as engine:
        engine.broken = True
        first, _ = run(corpus, engine)
        engine.broken = False
        for file in (corpus / "in").iterdir():
            file.unlink()
        write(corpus, 77, "A new note.")
        before = len(engine.calls)
        again = run_job(reopen(first["run_id"], None, "retry"))
        assert len(engine.calls) - before == 2
    assert again["documents"]["listed"] == NUM_FILES
    assert "77.txt" not in records(corpus)["path"].to_list()


@pytest.mark.parametrize("harm", ["edited", "deleted", "cut"])
@pytest.mark.parametrize("table", ["records/stage=kind", "documents", "chunks"])
def test_harmed_part_is_named_and_rebuilt_from_the_answers(corpus, table, harm):
    with FakeEngine() as engine:
        run(corpus, engine)
        before = {path: data for path, (data, _) in parts(corpus).items()}
        part = corpus / "lake" / table / "s00001.parquet"
        if harm == "deleted":
            part.unlink()
        else:
            part.write_bytes(part.read_bytes()[:-9] + (b"" if harm == "cut" else b"012345678"))
        with pytest.raises(ConfigError, match=f"{table}/s00001.parquet (has been|is miss)"):
            run(corpus, engine)
        calls = len(engine.calls)
        manifest = run_job(replace(job(corpus, engine), rebuild=True))
        assert len(engine.calls) == calls
    assert manifest["verdict"] == "complete"
    assert {path: data for path, (data, _) in parts(corpus).items()} == before


def test_file_that_is_no_part_is_named(corpus):
    with FakeEngine() as engine:
        run(corpus, engine)
        part = corpus / "lake" / "documents" / "s00001.parquet"
        part.with_name("copy of s00001.parquet").write_bytes(part.read_bytes())
        with pytest.raises(ConfigError, match="copy of s00001.parquet is no part of this sink"):
            run(corpus, engine)


def test_copied_sink_goes_on_although_its_files_have_other_times(corpus):
    with FakeEngine() as engine:
        run(corpus, engine)
        for file in (corpus / "lake").rglob("*.parquet"):
            os.utime(file)
        _, calls = run(corpus, engine)
    assert calls == 0


def test_changed_pipeline_is_refused_and_named_when_a_run_goes_on(corpus):
    with FakeEngine() as engine:
        first, _ = run(corpus, engine, budget_tokens=1500)
        assert first["verdict"] == "budget_reached"
        edited = PIPELINE.replace("What is it?", "What kind is it?")
        (corpus / "notes.yaml").write_text(edited, encoding="utf-8")
        again = reopen(first["run_id"], None, "resume", Options(budget_tokens=10**6))
        file = str(corpus / "notes.yaml")
        with pytest.raises(ConfigError, match=r"changed since .*: stages.kind.prompt\."):
            with_pipeline(again, file, accept_changes=False)
        last = run_job(with_pipeline(again, file, accept_changes=True))
    assert last["verdict"] == "complete"
    assert records(corpus)["fingerprint"].n_unique() == 1


def test_hopeless_run_ends_early_with_what_it_has(corpus):
    for number in range(200):
        write(corpus, number, f"Note {number} says this.\nA second line of note {number}.")

    def refuse(_number, _body):
        return Fault(status=422, body=b'{"error": {"message": "no"}}')

    with FakeEngine(script=refuse) as engine:
        manifest, calls = run(corpus, engine)
    assert manifest["verdict"] == "over_failure_limit"
    assert manifest["documents"]["left"] > 0
    assert calls < 200
    assert manifest["documents"]["read"] + manifest["documents"]["left"] == 200
