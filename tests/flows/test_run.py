"""Whole runs of the Prefect-free core, on real files with a fake engine over a socket."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import polars as pl
import pyarrow.dataset as ds
import pytest

from config.errors import ConfigError
from connectors.errors import StorageError
from flows.run.core import run_job
from flows.run.job import Options, make_job
from flows.run.progress import Progress
from tests.fakes.engine_server import FakeEngine, Fault

ROOT = Path(__file__).resolve().parent.parent.parent
DEMO = ROOT / "config" / "pipelines" / "demo.yaml"
HEADRACE = Path(sys.executable).with_name("headrace")

TEXTS = {
    "logs/a.md": "# Tide log\n\nThe pilot boat left at dawn. The harbour was calm all day.\n",
    "logs/b.txt": "The crane stopped at noon. A fuse had blown in the second motor.\n",
    "sheets/c.csv": "name,amount\nrope,12\nanchor,99\n",
    "bad/empty.pdf": "",
    "bad/broken.pdf": "%PDF-1.7\nthis is no PDF\n",
    "bad/strange.bin": "\x00\x01\x02\x03 strange",
}


@pytest.fixture
def source(tmp_path):
    for path, text in TEXTS.items():
        file = tmp_path / "source" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return tmp_path / "source"


def run(source, sink, engine, progress=None, **options):
    asked = Options(source=str(source), sink=str(sink), engine=engine.url, **options)
    return run_job(make_job(DEMO, asked), progress=progress)


def properties(body):
    """Return the fields of the answer that a call asks for."""
    return body["response_format"]["json_schema"]["schema"]["properties"]


def table(sink, name):
    return pl.read_parquet(f"{sink}/{name}/*.parquet")


def parts(sink):
    """Return the bytes of every part and medium, without what belongs to one run."""
    return {
        path.relative_to(sink): path.read_bytes()
        for path in sorted(Path(sink).rglob("*"))
        if path.is_file()
        and path.relative_to(sink).parts[0] not in {"runs", "reports", "_headrace"}
    }


def check_adds_up(sink, manifest, paths):
    documents = table(sink, "documents")
    assert sorted(documents["path"]) == sorted(paths)
    chunks = table(sink, "chunks")
    assert len(chunks) == manifest["chunks"] == documents["num_chunks"].sum()
    readable = set(documents.filter(pl.col("status") != "rejected")["path"])
    for name, stage in manifest["stages"].items():
        records = table(sink, f"records/stage={name}")
        assert records["row_key"].n_unique() == len(records) == stage["inputs"]
        counts = dict(records.group_by("outcome").len().iter_rows())
        assert counts == stage["outcomes"]
        if name == "merge":
            assert set(records["path"]) == readable
        else:
            assert set(records["chunk_key"]) == set(chunks["chunk_key"])


def test_every_object_and_chunk_has_its_row_when_files_are_mixed(source, tmp_path, engine):
    manifest = run(source, tmp_path / "lake", engine)
    check_adds_up(tmp_path / "lake", manifest, TEXTS)
    assert manifest["verdict"] == "complete"
    assert manifest["documents"] == {"listed": 6, "read": 3, "rejected": 3}
    documents = table(tmp_path / "lake", "documents")
    reasons = dict(documents.filter(status="rejected").select("path", "error_class").iter_rows())
    assert reasons == {
        "bad/empty.pdf": "empty",
        "bad/broken.pdf": "damaged",
        "bad/strange.bin": "unknown_type",
    }


def test_answers_are_verbatim_with_their_place_when_fields_are_labels(source, tmp_path, engine):
    run(source, tmp_path / "lake", engine)
    for stage in ("digest", "merge"):
        for record in table(tmp_path / "lake", f"records/stage={stage}").to_dicts():
            text = TEXTS[record["path"]]
            for citation in record["citations"]:
                assert record[citation["field"]] == citation["quote"]
                if record["path"].startswith("logs/"):
                    span = citation["span"]
                    quoted = text[span["char_start"] : span["char_end"]]
                    assert citation["quote"] in quoted.replace("# ", "")
                else:
                    assert citation["span"]["cells"]


def test_tables_are_read_by_glob_when_other_tools_open_them(source, tmp_path, engine):
    manifest = run(source, tmp_path / "lake", engine)
    count = manifest["stages"]["digest"]["inputs"]
    folder = tmp_path / "lake" / "records" / "stage=digest"
    assert len(pl.scan_parquet(f"{folder}/*.parquet").collect()) == count
    query = f"select count(*), count(distinct row_key) from '{folder}/*.parquet'"
    assert duckdb.sql(query).fetchall() == [(count, count)]
    assert ds.dataset(folder, format="parquet").count_rows() == count
    records = f"{tmp_path}/lake/records/*/*.parquet"
    stages = duckdb.sql(
        f"select distinct stage from read_parquet('{records}', hive_partitioning=true, union_by_name=true)"
    )
    assert {row[0] for row in stages.fetchall()} == {"digest", "topic", "merge"}


def test_tables_of_sheets_can_be_queried_when_a_run_has_read_them(source, tmp_path, engine):
    run(source, tmp_path / "lake", engine)
    documents = table(tmp_path / "lake", "documents")
    found = documents.explode("tables").drop_nulls("tables")
    rows = found.select("document_key", pl.col("tables").struct.unnest()).to_dicts()
    assert [(row["cells"], row["columns"][0]) for row in rows] == [("A1:B3", "row")]
    file = tmp_path / "lake" / "media" / rows[0]["document_key"] / rows[0]["name"]
    assert len(pl.read_parquet(file)) == rows[0]["num_rows"]


def test_parts_have_the_same_bytes_when_a_run_is_repeated(source, tmp_path, engine):
    run(source, tmp_path / "lake", engine)
    before = parts(tmp_path / "lake")
    run(source, tmp_path / "lake", engine)
    assert parts(tmp_path / "lake") == before
    shutil.copytree(source, tmp_path / "moved")
    run(tmp_path / "moved", tmp_path / "lake2", engine)
    columns = pl.exclude("uri", "model")
    for name in ("digest", "topic", "merge"):
        first, second = (
            table(tmp_path / lake, f"records/stage={name}") for lake in ("lake", "lake2")
        )
        assert first.select(columns).equals(second.select(columns))


def test_rows_follow_the_source_when_documents_come_and_go(source, tmp_path, engine):
    run(source, tmp_path / "lake", engine)
    (source / "logs" / "b.txt").unlink()
    (source / "logs" / "new.txt").write_text("A new line was written today.")
    manifest = run(source, tmp_path / "lake", engine)
    check_adds_up(tmp_path / "lake", manifest, {*TEXTS, "logs/new.txt"} - {"logs/b.txt"})


def test_copies_are_asked_once_and_have_their_own_rows_when_a_file_is_there_twice(
    source, tmp_path, engine
):
    shutil.copy(source / "logs" / "a.md", source / "logs" / "a-copy.md")
    manifest = run(source, tmp_path / "lake", engine)
    records = table(tmp_path / "lake", "records/stage=digest").filter(
        pl.col("path").str.starts_with("logs/a")
    )
    assert records["row_key"].n_unique() == 2
    assert records["request_key"].n_unique() == 1
    usage = pl.read_parquet(f"{tmp_path}/lake/runs/{manifest['run_id']}/usage/*.parquet")
    assert usage["request_key"].n_unique() == len(usage) == len(engine.calls)


def test_progress_ends_at_the_number_of_records_when_questions_repeat(source, tmp_path, engine):
    shutil.copy(source / "logs" / "a.md", source / "logs" / "a-copy.md")
    progress = Progress()
    manifest = run(source, tmp_path / "lake", engine, progress=progress)
    asked = manifest["requests"]["asked"]
    usage = pl.read_parquet(f"{tmp_path}/lake/runs/{manifest['run_id']}/usage/*.parquet")
    shown = progress.snapshot()
    assert shown.num_results == shown.num_requests == asked > len(usage)
    assert shown.completion_tokens == usage["completion_tokens"].sum()


def test_requests_about_a_chunk_are_neighbours_when_sent(tmp_path, engine):
    (tmp_path / "source").mkdir()
    for number in range(60):
        (tmp_path / "source" / f"{number:02d}.txt").write_text(f"Line {number} of the long log.")
    # One shard: asked stage by stage, the two questions about a chunk would be 60 places apart.
    settings = ("documents_per_shard=60",)
    run(tmp_path / "source", tmp_path / "lake", engine, settings=settings)
    places = {}
    for place, call in enumerate(engine.calls):
        material = call["messages"][1]["content"].split("\n\nQuestion")[0]
        if "summary" not in properties(call):
            places.setdefault(material, []).append(place)
    assert len(places) == 60
    # Connections run side by side, so a neighbour may be a few places away; one that was slow, more.
    assert statistics.median(abs(first - second) for first, second in places.values()) <= 16


def test_measured_cache_is_shown_beside_the_plan_when_the_endpoint_reports_it(
    source, tmp_path, engine
):
    topic = run(source, tmp_path / "lake", engine)["stages"]["topic"]
    assert 0 < topic["cached_tokens"] <= topic["prompt_tokens"]
    assert 0 < topic["planned_cached_tokens"] <= topic["prompt_tokens"]


def test_failed_requests_are_rows_when_the_endpoint_refuses_some(source, tmp_path):
    def refuse_topics(_number, body):
        asked = "topic" in properties(body)
        return Fault(status=422, body=b'{"error": {"message": "no"}}') if asked else None

    with FakeEngine(script=refuse_topics) as engine:
        manifest = run(source, tmp_path / "lake", engine)
    assert manifest["verdict"] == "over_failure_limit"
    records = table(tmp_path / "lake", "records/stage=topic")
    assert set(records["outcome"]) == {"failed"}
    assert set(records["error_class"]) == {"request_rejected"}
    assert manifest["stages"]["merge"]["outcomes"] == {"succeeded": 3}
    check_adds_up(tmp_path / "lake", manifest, TEXTS)


def test_sink_is_refused_when_it_belongs_to_another_source(source, tmp_path, engine):
    run(source, tmp_path / "lake", engine)
    shutil.copytree(source, tmp_path / "other")
    with pytest.raises(ConfigError, match="belongs to source .*; choose another --sink"):
        run(tmp_path / "other", tmp_path / "lake", engine)


def test_sink_stays_free_when_the_source_was_misspelt(source, tmp_path, engine):
    with pytest.raises(StorageError, match="does not exist"):
        run(tmp_path / "misspelt", tmp_path / "lake", engine)
    assert run(source, tmp_path / "lake", engine)["verdict"] == "complete"


def test_source_is_refused_when_nothing_matches(tmp_path, engine):
    (tmp_path / "void").mkdir()
    with pytest.raises(ConfigError, match="has no object that matches include"):
        run(tmp_path / "void", tmp_path / "lake", engine)


def test_sink_is_refused_when_it_lies_in_the_source(source, engine):
    with pytest.raises(ConfigError, match="lies inside source"):
        run(source, source / "lake", engine)


def test_chunk_budget_is_refused_when_it_exceeds_the_context(source, tmp_path, engine):
    engine.max_model_len = 800
    with pytest.raises(ConfigError, match=r"chunk\.max_tokens 700 does not fit: .* context of 800"):
        run(source, tmp_path / "lake", engine)


def command(*arguments, **environment):
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return subprocess.run(
        [HEADRACE, "run", *map(str, arguments)],
        capture_output=True, text=True, check=False, env=env | environment, cwd=ROOT,
    )  # fmt: skip


def test_one_json_object_is_printed_and_nothing_else_when_asked_for(source, tmp_path, engine):
    result = command(
        DEMO, "--source", source, "--sink", tmp_path / "lake", "--engine", engine.url, "--json"
    )
    assert result.returncode == 0, result.stderr
    manifest = json.loads(result.stdout)
    assert manifest["verdict"] == "complete"
    assert Path(manifest["report"]["html"].removeprefix("file://")).exists()


def test_limit_bounds_the_documents_when_given(source, tmp_path, engine):
    result = command(
        DEMO, "--source", source, "--sink", tmp_path / "lake", "--engine", engine.url,
        "--limit", 2, "--json",
    )  # fmt: skip
    assert json.loads(result.stdout)["documents"]["listed"] == 2


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"pipeline": "gone.yaml"}, 2, "gone.yaml: cannot be read"),
        ({"source": "/no/such/folder"}, 2, "'/no/such/folder' does not exist; check the path"),
        ({"source": "gs://x/y"}, 2, "needs a package that is not installed"),
        ({"source": "nope://x/y"}, 2, "cannot be opened: Protocol not known: nope"),
        ({"sink": "gs://x/y"}, 2, "can be a source, not a sink"),
        ({"engine": "kimi"}, 2, "'kimi' is no profile; profiles:"),
        ({"engine": "http://127.0.0.1:9"}, 1, "http://127.0.0.1:9/v1 cannot be reached"),
        ({"sink": "/proc/nowhere"}, 2, "/proc/nowhere"),
    ],
)
def test_one_message_and_no_traceback_is_printed_when_something_is_wrong(
    source, tmp_path, engine, change, code, message
):
    options = {"pipeline": DEMO, "source": source, "sink": tmp_path / "lake", "engine": engine.url}
    options |= change
    result = command(
        options["pipeline"], "--source", options["source"], "--sink", options["sink"],
        "--engine", options["engine"],
    )  # fmt: skip
    assert result.returncode == code
    assert message in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_exit_code_is_3_when_too_many_requests_fail(source, tmp_path):
    with FakeEngine(script=lambda *_: Fault(status=422)) as engine:
        result = command(
            DEMO, "--source", source, "--sink", tmp_path / "lake", "--engine", engine.url
        )
    assert result.returncode == 3
    assert "over failure limit" in result.stdout


def test_run_ends_soon_without_leftovers_when_interrupted(source, tmp_path):
    with FakeEngine(script=lambda *_: Fault(hang_s=30, status=503)) as engine:
        process = subprocess.Popen(
            [HEADRACE, "run", DEMO, "--source", source, "--sink", tmp_path / "lake", "--engine", engine.url],
            cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 40
        while not engine.calls and time.monotonic() < deadline:
            time.sleep(0.1)
        assert engine.calls
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted" in stderr
    group = subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, check=False)
    assert group.stdout == b""
