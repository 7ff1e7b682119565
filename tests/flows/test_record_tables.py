"""Runs whose stages change their output columns, on one sink."""

import json
from pathlib import Path

import duckdb
import polars as pl
import pytest

from config.load import load_pipeline
from connectors.sinks.lake import Lake
from flows.report.build import rebuild
from flows.run.core import run_job
from flows.run.job import Options, make_job
from flows.run.look import Query, query_records
from flows.run.record_tables import claim_record_tables, find_record_tables
from flows.terminal import summary_lines
from tests.fakes.engine_server import FakeEngine, Fault

FIRST = "{kind: a|b|c, words: string}"
WIDER = "{kind: a|b|c, words: string, due: date?}"
OTHER_TYPE = "{kind: a|b|c, words: integer}"
OTHER_ORDER = "{words: string, kind: a|b|c}"
SAME_COLUMNS = "{kind: x|y, words: {type: string, maxLength: 9, description: In a few.}}"
NUM_FILES = 5


def write_pipeline(folder, output, prompt="What is it about?"):
    file = folder / "pipeline.yaml"
    stages = f"""\
  - name: kind
    prompt: {prompt}
    output: {output}
  - name: why
    prompt: Why?
    output: {{reason: string}}
"""
    text = f"name: evolving\ndocuments_per_shard: 2\nstages:\n{stages}"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(NUM_FILES):
        (folder / f"{number}.txt").write_text(f"Note {number} is about the harbour.\n")
    return folder


@pytest.fixture(params=["local", "s3"])
def sink(request, tmp_path):
    return str(tmp_path / "sink") if request.param == "local" else request.getfixturevalue("bucket")


def run(source, sink, engine, output, **changes):
    asked = Options(source=str(source), sink=str(sink), engine=engine.url)
    return run_job(make_job(write_pipeline(source.parent, output, **changes), asked))


def parts(sink, table):
    """Return the bytes of a table's parts, by path."""
    storage = Lake(str(sink)).storage
    return {item.path: storage.get(item.path) for item in storage.list(table)}


def columns(frame):
    names = frame.columns
    return names[names.index("error") + 1 : names.index("citations")]


def test_old_records_stay_and_new_ones_have_their_folder_when_columns_change(source, sink, engine):
    first = run(source, sink, engine, FIRST)
    old = parts(sink, "records/stage=kind")
    assert len(old) == 3
    assert first["stages"]["kind"]["table"] == "records/stage=kind"

    second = run(source, sink, engine, WIDER)
    assert second["verdict"] == "complete"
    assert second["stages"]["kind"]["table"] == "records/stage=kind@2"
    assert second["stages"]["why"]["table"] == "records/stage=why"
    assert parts(sink, "records/stage=kind") == old
    assert len(parts(sink, "records/stage=kind@2")) == len(old)

    lake = Lake(str(sink))
    before, after = lake.read_table("records/stage=kind"), lake.read_table("records/stage=kind@2")
    assert columns(before) == ["kind", "words"]
    assert columns(after) == ["kind", "words", "due"]
    assert sorted(after["row_key"]) == sorted(before["row_key"])
    assert len(after) == NUM_FILES == second["stages"]["kind"]["outcomes"]["succeeded"]


def test_each_folder_is_a_table_for_other_tools_when_columns_have_changed(source, tmp_path, engine):
    sink = tmp_path / "sink"
    for output in (FIRST, OTHER_TYPE):
        run(source, sink, engine, output)
    for folder, dtype, type_name in (
        ("stage=kind", pl.String, "VARCHAR"),
        ("stage=kind@2", pl.Int64, "BIGINT"),
    ):
        glob = f"{sink}/records/{folder}/*.parquet"
        assert pl.read_parquet(glob).schema["words"] == dtype
        assert len(pl.scan_parquet(glob).collect()) == NUM_FILES
        query = f"select stage, typeof(words), count(*) from '{glob}' group by all"
        assert duckdb.sql(query).fetchall() == [(folder[6:], type_name, NUM_FILES)]


def test_readers_show_the_folder_of_their_run_when_columns_have_changed(source, tmp_path, engine):
    sink = tmp_path / "sink"
    first = run(source, sink, engine, FIRST)
    second = run(source, sink, engine, WIDER)
    for manifest, own in ((first, ["kind", "words"]), (second, ["kind", "words", "due"])):
        shown = query_records(manifest["run_id"], "kind", str(sink), Query())
        assert [name for name in shown.frame.columns if name in {"kind", "words", "due"}] == own
        assert len(shown.frame) == NUM_FILES
    assert "due" in query_records(None, "kind", str(sink), Query()).frame.columns
    assert "records/stage=kind@2/*.parquet" in summary_lines(second)["tables"]
    assert summary_lines(first)["tables"].endswith("/records/stage=*/*.parquet")


def test_report_shows_the_folder_of_its_run_when_columns_have_changed(source, tmp_path, engine):
    sink = tmp_path / "sink"
    first = run(source, sink, engine, "{kind: a|b, oldfield: string}")
    second = run(source, sink, engine, "{kind: a|b, newfield: string}")
    for manifest, has, lacks in (
        (first, "oldfield", "newfield"),
        (second, "newfield", "oldfield"),
    ):
        addresses = rebuild(manifest["run_id"], str(sink))
        page = Path(addresses["html"].removeprefix("file://")).read_text(encoding="utf-8")
        assert has in page
        assert lacks not in page


def test_stage_goes_back_to_its_folder_when_it_has_earlier_columns_again(source, tmp_path, engine):
    sink = tmp_path / "sink"
    run(source, sink, engine, FIRST)
    run(source, sink, engine, WIDER)
    wider = parts(sink, "records/stage=kind@2")
    (source / "0.txt").write_text("Another note, about the crane.\n")
    third = run(source, sink, engine, FIRST)
    assert third["stages"]["kind"]["table"] == "records/stage=kind"
    assert parts(sink, "records/stage=kind@2") == wider
    rows = query_records(third["run_id"], "kind", str(sink), Query(columns=("request_key",)))
    asked = set(rows.frame["request_key"])
    assert len(asked) == NUM_FILES
    assert asked == set(Lake(str(sink)).read_table("records/stage=kind")["request_key"])
    assert run(source, sink, engine, OTHER_ORDER)["stages"]["kind"]["table"].endswith("kind@3")
    assert run(source, sink, engine, WIDER)["stages"]["kind"]["table"].endswith("kind@2")


def test_folder_is_kept_when_the_columns_are_the_same(source, tmp_path, engine):
    sink = tmp_path / "sink"
    for output, prompt in ((FIRST, "What?"), (SAME_COLUMNS, "What?"), (FIRST, "What is it?")):
        manifest = run(source, sink, engine, output, prompt=prompt)
        assert manifest["stages"]["kind"]["table"] == "records/stage=kind"
    assert [path.name for path in (sink / "_headrace/schemas/kind").iterdir()] == ["1.json"]
    assert sorted(path.name for path in (sink / "records").iterdir()) == ["stage=kind", "stage=why"]


def test_columns_are_in_the_sink_as_plain_json(source, tmp_path, engine):
    run(source, tmp_path / "sink", engine, WIDER)
    file = tmp_path / "sink" / "_headrace" / "schemas" / "kind" / "1.json"
    assert json.loads(file.read_text(encoding="utf-8")) == {
        "columns": [
            {"name": "kind", "type": "string"},
            {"name": "words", "type": "string"},
            {"name": "due", "type": "date"},
        ]
    }


def stages_of(tmp_path, output):
    return load_pipeline(write_pipeline(tmp_path, output)).stages


def test_records_of_a_run_that_has_not_ended_are_found_by_their_columns(tmp_path):
    lake = Lake(str(tmp_path / "sink"))
    claimed = [claim_record_tables(lake, stages_of(tmp_path, o)) for o in (FIRST, WIDER)]
    assert [find_record_tables(lake, stages_of(tmp_path, o)) for o in (FIRST, WIDER)] == claimed
    new = find_record_tables(lake, stages_of(tmp_path, OTHER_TYPE))
    assert new == {"kind": "records/stage=kind@3", "why": "records/stage=why"}
    assert not (tmp_path / "sink" / "_headrace" / "schemas" / "kind" / "3.json").exists()


class Overtaken(Lake):
    """A sink where another run is a moment faster with the first claim."""

    def __init__(self, url, other):
        super().__init__(url)
        self._other = other

    def claim(self, path, value):
        other, self._other = self._other, None
        if other is not None:
            claim_record_tables(Lake(self.url), other)
        return super().claim(path, value)


@pytest.mark.parametrize(("other", "table"), [(FIRST, "kind"), (WIDER, "kind@2")])
def test_runs_agree_on_the_folder_when_they_begin_at_once(tmp_path, sink, other, table):
    lake = Overtaken(sink, stages_of(tmp_path, other))
    mine = claim_record_tables(lake, stages_of(tmp_path, FIRST))
    assert mine["kind"] == f"records/stage={table}"
    assert find_record_tables(lake, stages_of(tmp_path, FIRST)) == mine
    assert find_record_tables(lake, stages_of(tmp_path, other))["kind"] == "records/stage=kind"


def test_number_behind_the_largest_is_taken_when_there_are_more_than_nine(tmp_path):
    lake = Lake(str(tmp_path / "sink"))
    for number in range(1, 13):
        stages = stages_of(tmp_path, f"{{f{number}: string}}")
        suffix = f"@{number}" if number > 1 else ""
        assert claim_record_tables(lake, stages)["kind"] == f"records/stage=kind{suffix}"


def test_value_that_no_column_holds_is_one_record_with_its_reason(source, tmp_path):
    answers = {
        0: {"sum": "12.3456789012"},
        1: {"sum": "123456789012345678901234567890"},
        2: {"sum": "-0.000000001"},
    }

    def script(_, body):
        text = json.dumps(body["messages"])
        note = next((number for number in answers if f"Note {number} " in text), 2)
        return Fault(content=json.dumps({**answers[note], "reason": "x"}))

    with FakeEngine(script=script) as engine:
        output = "{sum: {type: string, format: decimal}, reason: string}"
        run(source, tmp_path / "sink", engine, output)
    rows = pl.read_parquet(f"{tmp_path}/sink/records/stage=kind/*.parquet").sort("path")
    assert rows["outcome"].to_list() == ["invalid_output"] * 2 + ["succeeded"] * 3
    assert rows["error_class"].to_list()[:2] == ["bad_value"] * 2
    assert rows["error"][0].startswith("field 'sum': '12.3456789012' has 10 digits behind")
    assert rows["error"][1].startswith("field 'sum': '123456789012345678901234567890' has 30")
    assert [str(value) for value in rows["sum"].to_list()[2:]] == ["-1E-9"] * 3
