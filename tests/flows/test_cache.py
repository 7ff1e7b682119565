"""One question, one call: shared by stages, documents, shards, and by way of a cache by sinks."""

import json
import logging
import threading

import polars as pl
import pytest

from config.errors import ConfigError
from connectors.errors import StorageError
from connectors.storage import LocalStorage, open_storage
from engine.request import Result
from flows.run.answers import Answer, as_line
from flows.run.cache import AnswerCache, merge, place_of, read_shelf
from flows.run.core import run_job
from flows.run.job import Options, make_job
from flows.run.resume import reopen
from tests.fakes.engine_server import FakeEngine, Fault

KIND = "{name: kind, prompt: What is it?, output: {kind: a|b|c, says: line}}"
TITLE = "{name: title, over: document, needs: [kind], prompt: Which line?, output: {title: line}}"
ALL = "{name: all, over: corpus, needs: [kind], prompt: What is in it?, output: {best: line}}"
NUM_FILES = 6


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(NUM_FILES):
        write(tmp_path, number, f"Note {number} says this.\nA second line of note {number}.")
    return tmp_path


def write(corpus, number, text):
    (corpus / "in" / f"{number:02d}.txt").write_text(text, encoding="utf-8")


def job(corpus, engine, stages, *, sink="lake", name="notes", **options):
    file = corpus / f"{name}.yaml"
    listed = "".join(f"  - {stage}\n" for stage in stages)
    file.write_text(f"name: {name}\ndocuments_per_shard: 2\nstages:\n{listed}", encoding="utf-8")
    asked = Options(
        source=str(corpus / "in"), sink=str(corpus / sink), engine=engine.url, **options
    )
    return make_job(file, asked)


def run(corpus, engine, stages, **options):
    """Run once; return the manifest and how many calls it made."""
    before = len(engine.calls)
    return run_job(job(corpus, engine, stages, **options)), len(engine.calls) - before


def records(corpus, stage="kind", sink="lake"):
    return pl.read_parquet(f"{corpus}/{sink}/records/stage={stage}/*.parquet")


def usage(corpus, manifest, sink="lake"):
    return pl.read_parquet(f"{corpus}/{sink}/runs/{manifest['run_id']}/usage/*.parquet")


def cache_of(corpus):
    return str(corpus / "cache")


def shelves(corpus):
    folder = corpus / "cache"
    return [file for file in folder.rglob("*.jsonl") if "_headrace" not in file.parts]


# What holds without a cache.


def test_two_stages_with_one_question_cost_one_call(corpus, engine):
    twin = KIND.replace("name: kind", "name: twin")
    manifest, calls = run(corpus, engine, [KIND, twin])
    assert calls == NUM_FILES
    kinds, twins = records(corpus), records(corpus, "twin")
    assert kinds["says"].to_list() == twins["says"].to_list()
    kind, other = (manifest["stages"][name] for name in ("kind", "twin"))
    assert (kind["replayed"], other["replayed"]) == (0, NUM_FILES)
    assert kind["prompt_tokens"] + kind["completion_tokens"] == manifest["spent"]["tokens"]
    assert other["prompt_tokens"] == other["completion_tokens"] == 0
    assert len(usage(corpus, manifest)) == NUM_FILES


def test_body_is_the_same_whatever_the_stage_is_called(corpus, engine):
    run(corpus, engine, [KIND])
    run(corpus, engine, [KIND.replace("name: kind", "name: other")], sink="lake-2")
    first, second = (
        sorted(json.dumps({**body, "priority": 0}) for body in calls)
        for calls in (engine.calls[:NUM_FILES], engine.calls[NUM_FILES:])
    )
    assert first == second


def test_stages_share_a_call_though_they_build_on_others(corpus, engine):
    other = '{name: other, prompt: "And what else?", output: {more: a|b}}'
    first = "{name: one, needs: [kind], prompt: How long?, output: {size: a|b|c}}"
    second = first.replace("name: one, needs: [kind]", "name: two, needs: [other]")
    _, calls = run(corpus, engine, [KIND, other, first, second])
    assert calls == 3 * NUM_FILES


def test_what_is_shown_of_an_earlier_answer_counts(corpus, engine):
    shows = (
        '{name: one, needs: [kind], prompt: "Why {{ upstream.kind.kind }}?", output: {why: line}}'
    )
    run(corpus, engine, [KIND, shows])
    edited = KIND.replace("What is it?", "What kind of note is it?")
    before = dict(zip(records(corpus)["path"], records(corpus)["kind"], strict=True))
    _, calls = run(corpus, engine, [edited, shows])
    after = dict(zip(records(corpus)["path"], records(corpus)["kind"], strict=True))
    changed = sum(before[path] != after[path] for path in before)
    assert 0 < changed < NUM_FILES
    assert calls == NUM_FILES + changed


def test_documents_and_shards_with_one_text_cost_one_call(corpus, engine):
    # In one shard, with other bytes around the same lines, and in another shard.
    for number, text in ((0, "Same.\nLines."), (1, "Same.\nLines.\n\n"), (4, "Same.\nLines.")):
        write(corpus, number, text)
    manifest, calls = run(corpus, engine, [KIND])
    assert calls == NUM_FILES - 2
    assert records(corpus)["request_key"].n_unique() == NUM_FILES - 2
    assert manifest["stages"]["kind"]["replayed"] + len(usage(corpus, manifest)) >= NUM_FILES - 2
    assert (
        manifest["spent"]["tokens"]
        == usage(corpus, manifest)
        .select((pl.col("prompt_tokens") + pl.col("completion_tokens")).sum())
        .item()
    )


def test_answer_stays_with_the_other_document_when_one_of_two_leaves(corpus, engine):
    write(corpus, 0, "Same.\nLines.")
    write(corpus, 1, "Same.\nLines.\n\n")
    _, calls = run(corpus, engine, [KIND])
    assert calls == NUM_FILES - 1
    (corpus / "in" / "01.txt").unlink()
    run(corpus, engine, [KIND])
    (corpus / "in" / "00.txt").touch()
    _, calls = run(corpus, engine, [KIND])
    assert calls == 0


def test_replayed_answers_cost_a_later_run_nothing(corpus, engine):
    first, _ = run(corpus, engine, [KIND, TITLE])
    (corpus / "in" / "00.txt").touch()
    again, calls = run(corpus, engine, [KIND, TITLE])
    assert calls == 0
    assert first["spent"]["tokens"] > again["spent"]["tokens"] == 0
    kind = again["stages"]["kind"]
    assert (kind["replayed"], kind["from_cache"], kind["prompt_tokens"]) == (2, 0, 0)
    assert len(usage(corpus, again)) == 0


# The cache.


def test_another_sink_and_pipeline_replay_what_was_answered(corpus, engine):
    options = {"cache": cache_of(corpus)}
    _, calls = run(corpus, engine, [KIND, TITLE, ALL], **options)
    assert calls == 2 * NUM_FILES + 1
    other = [KIND.replace("name: kind", "name: sort"), TITLE.replace("[kind]", "[sort]")]
    other.append(ALL.replace("[kind]", "[sort]"))
    manifest, calls = run(corpus, engine, other, sink="lake-2", name="others", **options)
    assert calls == 0
    assert manifest["spent"]["tokens"] == 0
    for stage, count in (("sort", NUM_FILES), ("title", NUM_FILES), ("all", 1)):
        told = manifest["stages"][stage]
        assert told["outcomes"] == {"succeeded": count}
        assert (told["replayed"], told["from_cache"], told["prompt_tokens"]) == (count, count, 0)
    assert records(corpus)["says"].to_list() == records(corpus, "sort", "lake-2")["says"].to_list()


def test_one_read_brings_all_that_is_known_of_a_document(corpus, engine):
    run(corpus, engine, [KIND, TITLE, ALL], cache=cache_of(corpus))
    assert len(shelves(corpus)) == NUM_FILES + 1
    lines = sum(len(file.read_text().splitlines()) for file in shelves(corpus))
    assert lines == 2 * NUM_FILES + 1


def test_unchanged_documents_are_not_looked_for_and_an_edited_prompt_is(corpus, engine):
    edited = KIND.replace("What is it?", "What kind is it?")
    run(corpus, engine, [edited], sink="lake-2", name="others", cache=cache_of(corpus))
    run(corpus, engine, [KIND], cache=cache_of(corpus))
    # Documents that the sink holds are not read again; the answers to the new prompt are there.
    _, calls = run(corpus, engine, [edited], cache=cache_of(corpus))
    assert calls == 0


def test_only_what_stands_is_shared(corpus, engine):
    def refuse(_number, body):
        text = str(body["messages"])
        if "Note 1 says" in text:
            return Fault(status=422, body=b'{"error": {"message": "no"}}')
        return Fault(content="no JSON") if "Note 2 says" in text else None

    with FakeEngine(script=refuse) as bad:
        run(corpus, bad, [KIND], cache=cache_of(corpus), failure_limit=1.0)
    outcomes = [
        json.loads(line)["result"]["outcome"]
        for file in shelves(corpus)
        for line in file.read_text().splitlines()
    ]
    assert sorted(outcomes) == ["invalid_output"] + ["succeeded"] * (NUM_FILES - 2)
    _, calls = run(corpus, engine, [KIND], sink="lake-2", cache=cache_of(corpus))
    assert calls == 1


def test_an_invalid_answer_gives_way_to_a_good_one(corpus, engine):
    with FakeEngine(script=lambda _n, _body: Fault(content="no JSON")) as bad:
        first, _ = run(corpus, bad, [KIND], cache=cache_of(corpus), failure_limit=1.0)
    reopened = reopen(first["run_id"], None, "retry", Options(engine=engine.url))
    assert run_job(reopened)["stages"]["kind"]["outcomes"] == {"succeeded": NUM_FILES}
    again, calls = run(corpus, engine, [KIND], sink="lake-2", cache=cache_of(corpus))
    assert calls == 0
    assert again["stages"]["kind"]["outcomes"] == {"succeeded": NUM_FILES}


def test_answers_of_a_fallback_are_not_shared(corpus, engine, tmp_path):
    def refuse(_number, _body):
        return Fault(status=422, body=b'{"error": {"message": "no"}}')

    with FakeEngine(script=refuse) as bad:
        settings = (f"fallback=['{engine.url}']",)
        manifest, _ = run(corpus, bad, [KIND], cache=cache_of(corpus), settings=settings)
    assert manifest["stages"]["kind"]["by_fallback"] == NUM_FILES
    assert not shelves(corpus)


# Fresh.


def test_fresh_stage_is_asked_in_every_run_and_once_in_each(corpus, engine):
    fresh = KIND.replace("name: kind", "name: kind, fresh: true")
    stages = [fresh, TITLE]
    first, calls = run(corpus, engine, stages, cache=cache_of(corpus))
    assert calls == 2 * NUM_FILES
    assert run_job(reopen(first["run_id"], None, "resume"))["verdict"] == "complete"
    assert len(engine.calls) == 2 * NUM_FILES
    # The fake's answers are the same, so what depends on them is not asked.
    again, calls = run(corpus, engine, stages, cache=cache_of(corpus))
    assert calls == NUM_FILES
    assert again["stages"]["kind"]["replayed"] == 0
    assert again["stages"]["title"]["replayed"] == NUM_FILES
    _, calls = run(corpus, engine, stages, sink="lake-2", cache=cache_of(corpus))
    assert calls == NUM_FILES


def test_interrupted_fresh_run_pays_only_the_rest_when_resumed(corpus, engine):
    fresh = KIND.replace("name: kind", "name: kind, fresh: true")
    run(corpus, engine, [fresh])
    first, calls = run(corpus, engine, [fresh], budget_tokens=1000)
    assert first["verdict"] == "budget_reached"
    assert 0 < calls < NUM_FILES
    before = len(engine.calls)
    last = run_job(reopen(first["run_id"], None, "resume", Options(budget_tokens=10**6)))
    assert last["verdict"] == "complete"
    assert calls + len(engine.calls) - before == NUM_FILES


def test_gathered_stage_is_asked_afresh_though_nothing_it_needs_has_changed(corpus, engine):
    fresh = ALL.replace("name: all", "name: all, fresh: true")
    run(corpus, engine, [KIND, fresh])
    _, calls = run(corpus, engine, [KIND, fresh])
    assert calls == 1


def test_fresh_run_leaves_its_answers_to_later_ones(corpus):
    answers = iter("abc")

    def say(_number, _body):
        return Fault(content=json.dumps({"kind": engine.says, "says": "L1"}))

    with FakeEngine(script=say) as engine:
        engine.says = next(answers)
        run(corpus, engine, [KIND], cache=cache_of(corpus))
        engine.says = next(answers)
        _, calls = run(corpus, engine, [KIND], cache=cache_of(corpus), fresh=True)
        assert calls == NUM_FILES
        assert set(records(corpus)["kind"]) == {"b"}
        engine.says = next(answers)
        _, calls = run(corpus, engine, [KIND], cache=cache_of(corpus))
        assert (calls, set(records(corpus)["kind"])) == (0, {"b"})
        _, calls = run(corpus, engine, [KIND], sink="lake-2", cache=cache_of(corpus))
        assert (calls, set(records(corpus, sink="lake-2")["kind"])) == (0, {"b"})


# What goes wrong.


@pytest.mark.parametrize(
    "harm", ["file", "layout", "not json", "scheme", "in the source", "in the sink"]
)
def test_unusable_cache_is_told_before_the_first_call(corpus, engine, harm):
    url = cache_of(corpus)
    folder = corpus / "cache"
    if harm == "file":
        folder.write_text("no folder")
    elif harm in {"layout", "not json"}:
        folder.mkdir()
        (folder / "cache.json").write_text('{"layout": 9}' if harm == "layout" else "{")
    elif harm == "scheme":
        url = "gs://bucket/cache"
    else:
        url = str(corpus / ("in" if harm == "in the source" else "lake") / "cache")
    with pytest.raises((ConfigError, StorageError), match="cache"):
        run(corpus, engine, [KIND], cache=url)
    assert not engine.calls
    assert not (corpus / "lake").exists()


@pytest.mark.parametrize(
    "harm",
    ["cut", "binary", "foreign", "wrong document", "wrong schema", "wrong outcome", "wrong type"],
)
def test_harmed_shelf_is_a_warning_and_a_miss(corpus, engine, caplog, harm):
    run(corpus, engine, [KIND], cache=cache_of(corpus))
    shelf = next(file for file in shelves(corpus) if "Note" not in file.name)
    line = json.loads(shelf.read_text())
    if harm == "cut":
        data = shelf.read_bytes()[:-30]
    elif harm == "binary":
        data = bytes(range(256))
    elif harm == "foreign":
        data = b'{"some": "thing"}\n[]\nnull\n'
    else:
        if harm == "wrong document":
            line["document_key"] = "0" * 64
        elif harm == "wrong schema":
            line["result"]["output"] = {"kind": "z", "says": "L1"}
        elif harm == "wrong outcome":
            line["result"]["outcome"] = "failed"
        else:
            line["result"]["usage"]["prompt_tokens"] = "many"
        data = json.dumps(line).encode() + b"\n"
    shelf.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        manifest, calls = run(corpus, engine, [KIND], sink="lake-2", cache=cache_of(corpus))
    assert calls == 1
    assert manifest["stages"]["kind"]["outcomes"] == {"succeeded": NUM_FILES}
    assert "passed over" in caplog.text
    # What was paid has taken the place of what could not be read.
    _, calls = run(corpus, engine, [KIND], sink="lake-3", cache=cache_of(corpus))
    assert calls == 0


def test_run_goes_on_and_pays_when_the_cache_fails_in_the_middle(corpus, engine, caplog):
    run(corpus, engine, [KIND], cache=cache_of(corpus))
    for file in shelves(corpus):
        file.unlink()
        # A folder in its place can neither be read nor replaced.
        (file / "in the way").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        manifest, calls = run(corpus, engine, [KIND], sink="lake-2", cache=cache_of(corpus))
    assert calls == NUM_FILES
    assert manifest["verdict"] == "complete"
    assert "the run goes on without the cache" in caplog.text


def answer(document, number, says="L1"):
    result = Result(
        request_key=f"{number:064x}",
        stage="kind",
        outcome="succeeded",
        output={"says": says},
        mode="instant",
    )
    return Answer(document_key=document, run="", shard="", result=result)


def check_two_writers_lose_nothing(storages):
    document = "d" * 64
    written = [[answer(document, 100 * mine + n) for n in range(12)] for mine in (1, 2)]
    place = place_of(written[0][0])

    def work(storage, answers):
        # None of them knows what the other one has put there since.
        shelf = read_shelf(storage, place)
        for one in answers:
            merge(storage, place, [one], shelf)

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(storages, written, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_shelf(storages[0], place).answers) == 24


def test_two_writers_of_one_shelf_lose_nothing(tmp_path):
    check_two_writers_lose_nothing([LocalStorage(tmp_path), LocalStorage(tmp_path)])


def test_two_writers_of_one_shelf_lose_nothing_in_a_bucket(bucket):
    check_two_writers_lose_nothing([open_storage(bucket), open_storage(bucket)])


def test_cache_in_a_bucket_is_shared(corpus, engine, bucket):
    run(corpus, engine, [KIND, TITLE, ALL], cache=bucket)
    manifest, calls = run(corpus, engine, [KIND, TITLE, ALL], sink="lake-2", cache=bucket)
    assert calls == 0
    assert manifest["stages"]["title"]["from_cache"] == NUM_FILES


def test_missing_bucket_is_told_before_the_first_call(corpus, engine, bucket):
    with pytest.raises(StorageError, match="cache 's3://not-there.*check that bucket"):
        run(corpus, engine, [KIND], cache="s3://not-there/cache")
    assert not engine.calls


def test_missing_permission_is_told_before_the_first_call(
    corpus, engine, object_store, bucket, monkeypatch
):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "reader")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", object_store.keys["reader"])
    with pytest.raises(StorageError, match="cache 's3://.*cannot be used: .*access denied"):
        run(corpus, engine, [KIND], cache=bucket)
    assert not engine.calls


def test_nothing_is_paid_twice_when_a_run_ends_between_cache_and_commit(corpus, engine):
    begun = job(corpus, engine, [KIND], cache=cache_of(corpus))
    in_the_way = corpus / "lake" / "documents" / "s00000.parquet"
    in_the_way.mkdir(parents=True)
    with pytest.raises(StorageError):
        run_job(begun)
    assert len(shelves(corpus)) >= 2
    in_the_way.rmdir()
    again = run_job(reopen(begun.run_id, None, "resume"))
    assert again["verdict"] == "complete"
    assert again["stages"]["kind"]["replayed"] == 0
    assert len(engine.calls) == NUM_FILES
    _, calls = run(corpus, engine, [KIND], sink="lake-2", cache=cache_of(corpus))
    assert calls == 0


def test_broken_shelf_is_counted_by_the_line(tmp_path):
    one = answer("d" * 64, 1)
    storage = LocalStorage(tmp_path)
    storage.put(place_of(one), b"broken\n" + as_line(one).encode() + b"\xff\n")
    shelf = AnswerCache(storage).read(place_of(one))
    assert (list(shelf.answers.values()), shelf.num_strange) == ([one], 2)


def test_run_goes_on_without_its_cache_when_told_so(corpus, engine):
    first, _ = run(corpus, engine, [KIND], cache=cache_of(corpus), budget_tokens=1000)
    assert first["verdict"] == "budget_reached"
    (corpus / "cache" / "cache.json").write_text("{")
    options = Options(budget_tokens=10**6)
    with pytest.raises(ConfigError, match="cache"):
        run_job(reopen(first["run_id"], None, "resume", options))
    options = Options(budget_tokens=10**6, cache="")
    assert run_job(reopen(first["run_id"], None, "resume", options))["verdict"] == "complete"


def test_fresh_is_for_new_runs_and_for_stages_that_ask(corpus, engine):
    computed = (
        "{name: sums, over: corpus, needs: [kind], output: {num: integer},"
        ' compute: "SELECT COUNT(*) AS num FROM kind"}'
    )
    asked = job(corpus, engine, [KIND, computed], fresh=True)
    assert [stage.fresh for stage in asked.pipeline.stages] == [True, False]
    first = run_job(asked)
    with pytest.raises(ConfigError, match="--fresh: cannot change when a run goes on"):
        reopen(first["run_id"], None, "resume", Options(fresh=True))
