"""Stages from chunks to one answer about the corpus, with an engine that computes from what it is sent."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from config.load import set_environment
from connectors.sinks.lake import Lake
from flows.run import in_order
from flows.run.approvals import decide, questions
from flows.run.bench import Bench
from flows.run.core import run_job
from flows.run.families import Scheduler
from flows.run.job import Options, make_job
from flows.run.resume import reopen
from tests.fakes.engine_server import FakeEngine, Fault

NUM_FILES = 40
SMALL = 1000
"""Tokens of a context that holds about a dozen answers about documents."""
LEVELS = 3

PIPELINE = """
name: graph
failure_limit: 1
chunk: {max_tokens: 400}
documents_per_shard: 4
stages:
  - name: kind
    prompt: "TASK kind"
    output: {kind: order|letter}
    max_output_tokens: 32
  - name: facts
    needs: [kind]
    when: upstream.kind.kind == 'order'
    prompt: "TASK facts"
    output: {vendor: string, orders: [cited]}
    max_output_tokens: 200
  - name: merge
    over: document
    needs: [facts]
    prompt: "TASK merge"
    output: {vendor: string, total: integer, sum: cited}
    max_output_tokens: 200
  - name: vendors
    over: group
    by: merge.vendor
    needs: [merge]
    prompt: "TASK total of {{ group }}"
    output: {total: integer, sum: cited}
    max_output_tokens: 200
  - name: all
    over: corpus
    needs: [merge]
    prompt: "TASK all"
    output: {total: integer, sum: cited}
    max_output_tokens: 200
  - name: table
    over: corpus
    needs: [merge]
    compute: >
      SELECT vendor, SUM(total) AS total, ARRAY_AGG(row_key) AS row_keys FROM merge GROUP BY vendor
    output: {vendor: string, total: integer}
"""

LINE = re.compile(r"^\[(L\d+)\] (.*)$", re.MULTILINE)
ORDER = re.compile(r"(\w+) orders (\d+) ropes")
TOTAL = re.compile(r"in all (\d+) ropes")


def reply(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return an answer that follows from the lines in the prompt, and from nothing else."""
    text = body["messages"][-1]["content"]
    text = text if isinstance(text, str) else text[-1]["text"]
    # What an earlier claim quotes stands behind it, and is not to be counted twice.
    lines = [(label, line.partition(" («")[0]) for label, line in LINE.findall(text)]
    task = re.search(r"TASK (\w+)", text)
    assert task is not None
    orders = [(label, *found) for label, line in lines for found in ORDER.findall(line)]
    if task[1] == "kind":
        return {"kind": "order" if orders else "letter"}
    if task[1] == "facts":
        return {
            "vendor": orders[0][1],
            "orders": [
                {
                    "lines": [label],
                    "quote": f"{who} orders {n} ropes",
                    "text": f"{who} orders {n} ropes",
                }
                for label, who, n in orders
            ],
        }
    totals = [(label, n) for label, line in lines for n in TOTAL.findall(line)]
    found = totals or [(label, n) for label, _, n in orders]
    quotes = dict(lines)
    total = sum(int(n) for _, n in found)
    claim = {
        "lines": [label for label, _ in found][:8],
        "quote": quotes[found[0][0]].partition(": ")[2],
        "text": f"in all {total} ropes",
    }
    answer = {"total": total, "sum": claim}
    return answer | ({"vendor": orders[0][1]} if task[1] == "merge" else {})


class Engine(FakeEngine):
    """Answers from what it is sent; `tasks` counts what it was asked."""

    def __init__(self, **options: Any) -> None:
        super().__init__(script=self._answer, **options)

    def _answer(self, _number: int, body: Mapping[str, Any]) -> Fault:
        return Fault(content=json.dumps(reply(body)))

    def tasks(self) -> list[str]:
        texts = [json.dumps(call["messages"]) for call in self.calls]
        return [found[1] for text in texts if (found := re.search(r"TASK (\w+)", text))]


def write(folder: Path, number: int, ropes: int) -> None:
    """Write a letter with two orders; the second one is of 100 ropes."""
    vendor = ["Ada", "Bob", "Cyd"][number % 3]
    lines = [f"This is line {line} about the weather." for line in range(5)]
    lines[2] = f"{vendor} orders {ropes} ropes."
    lines[4] = f"{vendor} orders 100 ropes."
    (folder / f"{number:03d}.txt").write_text("\n\n".join(lines), encoding="utf-8")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(NUM_FILES):
        write(folder, number, number + 1)
    (folder / "007.txt").write_text("A letter about the weather, and nothing else.")
    return folder


def run(
    tmp_path: Path, engine: Engine, pipeline: str = PIPELINE, sink: str = "lake"
) -> Mapping[str, Any]:
    set_environment({"HEADRACE_STATE": f"{tmp_path}/state"})
    (tmp_path / "graph.yaml").write_text(pipeline, encoding="utf-8")
    asked = Options(source=f"{tmp_path}/in", sink=f"{tmp_path}/{sink}", engine=engine.url)
    manifest = run_job(make_job(tmp_path / "graph.yaml", asked))
    for stage in manifest["stages"].values():
        assert stage["inputs"] == sum(stage["outcomes"].values())
    return manifest


def rows(tmp_path: Path, stage: str, table: str = "records") -> list[dict[str, Any]]:
    files = sorted((tmp_path / "lake" / table / f"stage={stage}").glob("*.parquet"))
    return pl.concat([pl.read_parquet(file) for file in files]).to_dicts()


def total_of(numbers: Iterable[int]) -> int:
    return sum(number + 1 + 100 for number in numbers if number != 7)


def asked(engine: Engine, since: int = 0) -> dict[str, int]:
    return dict(Counter(engine.tasks()[since:]))


def test_answers_are_right_and_cited_when_stages_build_on_one_another(corpus, tmp_path):
    with Engine(max_model_len=SMALL) as engine:
        manifest = run(tmp_path, engine)
    assert manifest["verdict"] == "complete"
    assert manifest["stages"]["facts"]["skipped"] == {"when": 1}
    (answer,) = rows(tmp_path, "all")
    assert answer["total"] == total_of(range(NUM_FILES))
    assert (answer["num_inputs"], answer["num_answered"]) == (NUM_FILES - 1, NUM_FILES - 1)
    assert manifest["stages"]["all"]["parts"] > 2
    assert len(rows(tmp_path, "all", "partial")) == manifest["stages"]["all"]["parts"]
    groups = {row["unit"]: row["total"] for row in rows(tmp_path, "vendors")}
    assert groups == {
        f"group-{name}": total_of(range(first, NUM_FILES, 3))
        for first, name in enumerate(["Ada", "Bob", "Cyd"])
    }
    computed = {row["vendor"]: row["total"] for row in rows(tmp_path, "table")}
    assert computed == {name.removeprefix("group-"): total for name, total in groups.items()}


def test_citations_lead_to_the_source_when_answers_were_reduced_in_levels(corpus, tmp_path):
    with Engine(max_model_len=SMALL) as engine:
        run(tmp_path, engine)
    for stage in ("facts", "merge", "vendors", "all", "table"):
        for row in rows(tmp_path, stage):
            if row["outcome"] != "succeeded":
                continue
            assert row["citations"]
            assert all(claim["verdict"] == "verified" for claim in row["claims"])
            for cited in row["citations"]:
                text = (corpus / cited["path"]).read_text(encoding="utf-8")
                span = cited["span"]
                assert text[span["char_start"] : span["char_end"]] == cited["quote"]
                assert ORDER.search(cited["quote"])


def test_few_questions_are_in_memory_when_their_material_is_long(corpus, tmp_path, monkeypatch):
    held: list[int] = []
    ask = Scheduler.ask

    async def counting(self: Scheduler, inquiry: Any, family: int) -> Any:
        if inquiry.stage.name == "all":
            held.append(held[-1] + 1 if held else 1)
        found = await ask(self, inquiry, family)
        if inquiry.stage.name == "all":
            held.append(held[-1] - 1)
        return found

    monkeypatch.setattr(Scheduler, "ask", counting)
    monkeypatch.setattr(in_order, "MAX_TOKENS", 1)
    monkeypatch.setattr(Bench, "max_in_flight", 2)
    with Engine(max_model_len=SMALL) as engine:
        run(tmp_path, engine)
    assert max(held) == 2
    (row,) = rows(tmp_path, "all")
    assert row["total"] == total_of(range(NUM_FILES))


def test_the_next_question_about_the_corpus_is_begun_when_one_has_ended(
    corpus, tmp_path, monkeypatch
):
    order: list[int] = []
    ask = Scheduler.ask

    async def noting(self: Scheduler, inquiry: Any, family: int) -> Any:
        found = await ask(self, inquiry, family)
        if inquiry.unit.startswith("corpus~0"):
            order.append(int(inquiry.unit[-5:]))
        return found

    monkeypatch.setattr(Scheduler, "ask", noting)
    monkeypatch.setattr(in_order, "MAX_INQUIRIES", 3)

    class Slow(Engine):
        """Takes its time for the second question about the corpus."""

        def _answer(self, number: int, body: Mapping[str, Any]) -> Fault:
            asked = ["TASK all" in json.dumps(one["messages"]) for one in self.calls[: number + 1]]
            if asked[-1] and sum(asked) == 2:
                time.sleep(0.5)
            return super()._answer(number, body)

    with Slow(max_model_len=SMALL) as engine:
        run(tmp_path, engine)
    assert order.index(3) < order.index(1)
    assert sorted(order) == list(range(len(order)))
    (row,) = rows(tmp_path, "all")
    assert row["total"] == total_of(range(NUM_FILES))


def test_a_chunk_is_done_with_before_the_next_one_when_the_cache_holds_one(
    corpus, tmp_path, monkeypatch
):
    monkeypatch.setattr(Bench, "family_tokens", 1)
    monkeypatch.setattr(Bench, "max_in_flight", 4)
    with Engine(max_model_len=SMALL) as engine:
        run(tmp_path, engine, PIPELINE.replace("per_shard: 4", "per_shard: 40"))
        tasks = [task for task in engine.tasks() if task in {"kind", "facts", "merge"}]
    assert tasks == ["kind", "facts", "merge"] * 7 + ["kind"] + ["kind", "facts", "merge"] * 32


def test_shards_that_wait_for_each_other_go_on_when_the_cache_holds_one_chunk(
    tmp_path, monkeypatch
):
    folder = tmp_path / "in"
    folder.mkdir()
    orders = list(range(8))
    # Each shard begins with what the other one ends with.
    for shard, numbers in (("a", orders), ("b", orders[::-1])):
        for place, number in enumerate(numbers):
            text = f"Ada orders {number + 1} ropes.\n\nAda orders 100 ropes."
            (folder / f"{shard}{place}.txt").write_text(text, encoding="utf-8")
    monkeypatch.setattr(Bench, "family_tokens", 1)
    with Engine(max_model_len=SMALL, latency_s=0.05) as engine:
        run(tmp_path, engine, PIPELINE.replace("per_shard: 4", "per_shard: 8"))
        assert Counter(engine.tasks())["facts"] == 8
    (row,) = rows(tmp_path, "all")
    assert row["num_answered"] == 16


def test_parts_of_a_stage_wait_together_until_a_person_has_agreed(corpus, tmp_path):
    held = PIPELINE.replace("name: all\n", "name: all\n    approval: required\n")
    with Engine(max_model_len=SMALL) as engine:
        first = run(tmp_path, engine, held)
        assert "all" not in asked(engine)
        assert first["verdict"] == "awaiting_approval"
        assert [row["error_class"] for row in rows(tmp_path, "all")] == ["upstream_over_budget"]
        lake = Lake(f"{tmp_path}/lake")
        ((question, _),) = questions(lake, first["run_id"])
        assert question.waiting is not None
        num_parts = len(rows(tmp_path, "all", "partial"))
        assert question.waiting.requests == num_parts > 2
        decide(lake, first["run_id"], question, is_approved=True, reason="")
        manifest = run_job(reopen(first["run_id"], None, "resume"))
    assert manifest["verdict"] == "complete"
    (answer,) = rows(tmp_path, "all")
    assert answer["total"] == total_of(range(NUM_FILES))


def test_nothing_is_asked_when_nothing_has_changed(corpus, tmp_path):
    with Engine(max_model_len=SMALL) as engine:
        run(tmp_path, engine)
        before = len(engine.calls)
        run(tmp_path, engine)
        assert len(engine.calls) == before


def test_only_the_path_to_the_root_is_asked_when_a_document_changes(corpus, tmp_path):
    with Engine(max_model_len=SMALL) as engine:
        first = run(tmp_path, engine)
        before = len(engine.calls)
        write(corpus, 10, 999)
        run(tmp_path, engine)
        found = asked(engine, before)
    assert (found["kind"], found["facts"], found["merge"]) == (1, 1, 1)
    # One request per level: the run with the document, and what rests on it.
    assert found["total"] <= LEVELS
    assert found["all"] <= LEVELS < first["stages"]["all"]["parts"]
    (answer,) = rows(tmp_path, "all")
    assert answer["total"] == total_of(range(NUM_FILES)) - 11 + 999


def test_stages_behind_it_are_asked_when_a_prompt_changes(corpus, tmp_path):
    with Engine(max_model_len=SMALL) as engine:
        first = run(tmp_path, engine)["stages"]
        before = len(engine.calls)
        run(tmp_path, engine, PIPELINE.replace('"TASK all"', '"TASK all please"'))
        assert asked(engine, before) == {"all": first["all"]["parts"] + 1}
        before = len(engine.calls)
        run(tmp_path, engine, PIPELINE.replace('"TASK merge"', '"TASK merge please"'))
        # Its answers are the same as before, and so is all that rests on them.
        assert asked(engine, before) == {"merge": NUM_FILES - 1}


def test_records_of_the_old_columns_stay_when_an_upstream_schema_changes(corpus, tmp_path):
    wider = "output: {vendor: string, total: integer, sum: cited}\n    max_output_tokens: 200\n  - name: vendors"
    assert wider in PIPELINE
    with Engine(max_model_len=SMALL) as engine:
        run(tmp_path, engine)
        before = len(engine.calls)
        run(tmp_path, engine, PIPELINE.replace(wider, wider.replace("integer", "number")))
        found = asked(engine, before)
    assert found["merge"] == NUM_FILES - 1
    assert not {"kind", "facts"} & found.keys()
    assert (tmp_path / "lake/records/stage=merge@2").is_dir()
    assert len(rows(tmp_path, "merge")) == NUM_FILES


def test_missing_inputs_are_counted_when_some_have_no_answer(corpus, tmp_path):
    class Broken(Engine):
        def _answer(self, number: int, body: Mapping[str, Any]) -> Fault:
            text = json.dumps(body["messages"])
            if "TASK merge" in text and "orders 12 ropes" in text:
                return Fault(content="no JSON at all")
            return super()._answer(number, body)

    with Broken(max_model_len=SMALL) as engine:
        manifest = run(tmp_path, engine)
    assert manifest["stages"]["merge"]["outcomes"]["invalid_output"] == 1
    (answer,) = rows(tmp_path, "all")
    assert answer["total"] == total_of(range(NUM_FILES)) - 112
    assert (answer["num_inputs"], answer["num_answered"]) == (NUM_FILES - 1, NUM_FILES - 2)


def test_stage_is_skipped_with_the_reason_when_all_its_inputs_failed(corpus, tmp_path):
    class Broken(Engine):
        def _answer(self, number: int, body: Mapping[str, Any]) -> Fault:
            failed = "TASK facts" in json.dumps(body["messages"])
            return Fault(content="no JSON") if failed else super()._answer(number, body)

    with Broken(max_model_len=SMALL) as engine:
        manifest = run(tmp_path, engine)
    (answer,) = rows(tmp_path, "all")
    assert (answer["outcome"], answer["error_class"]) == ("skipped", "no_input")
    assert answer["num_answered"] == 0
    assert manifest["stages"]["vendors"]["inputs"] == 1
    assert manifest["stages"]["table"]["inputs"] == 0


def test_corpus_is_skipped_when_everything_is_filtered_out(corpus, tmp_path):
    with Engine(max_model_len=SMALL) as engine:
        manifest = run(tmp_path, engine, PIPELINE.replace("'order'", "'neither'"))
    assert manifest["stages"]["facts"]["skipped"] == {"when": NUM_FILES}
    (answer,) = rows(tmp_path, "all")
    assert (answer["outcome"], answer["error_class"]) == ("skipped", "when")
    assert manifest["stages"]["vendors"]["inputs"] == 0
    assert manifest["verdict"] == "complete"


def test_corpus_answer_follows_when_all_documents_are_deleted(corpus, tmp_path):
    with Engine(max_model_len=SMALL) as engine:
        run(tmp_path, engine)
        for file in corpus.iterdir():
            file.unlink()
        run(tmp_path, engine)
    (answer,) = rows(tmp_path, "all")
    assert (answer["outcome"], answer["error_class"]) == ("skipped", "no_input")
    assert answer["num_inputs"] == 0


def test_claim_is_not_found_when_the_model_invents_label_or_quote(corpus, tmp_path):
    class Liar(Engine):
        def _answer(self, number: int, body: Mapping[str, Any]) -> Fault:
            answer = reply(body)
            for claim in answer.get("orders", []):
                claim |= {"lines": ["L77"], "quote": "Zoe orders 5 ropes"}
            return Fault(content=json.dumps(answer))

    with Liar(max_model_len=SMALL) as engine:
        manifest = run(tmp_path, engine)
    assert manifest["stages"]["facts"]["claims"] == {"not_found": 2 * (NUM_FILES - 1)}
    # What rests on it is no better.
    assert manifest["stages"]["all"]["claims"] == {"not_found": 1}


def test_failed_part_is_asked_again_when_the_run_is_retried(corpus, tmp_path):
    class Shaky(Engine):
        is_down = True

        def _answer(self, number: int, body: Mapping[str, Any]) -> Fault:
            if self.is_down and "TASK all" in json.dumps(body["messages"]):
                return Fault(content="no JSON")
            return super()._answer(number, body)

    with Shaky(max_model_len=SMALL) as engine:
        manifest = run(tmp_path, engine)
        before = len(engine.calls)
        engine.is_down = False
        run_job(reopen(manifest["run_id"], f"{tmp_path}/lake", "retry"))
        found = asked(engine, before)
    assert found.keys() == {"all"}
    (answer,) = rows(tmp_path, "all")
    assert answer["total"] == total_of(range(NUM_FILES))


def test_rows_of_a_table_are_asked_one_by_one(tmp_path):
    (tmp_path / "in").mkdir()
    table = "vendor,text\n" + "".join(f"V{n},Ada orders {n} ropes\n" for n in range(1, 6))
    (tmp_path / "in/orders.csv").write_text(table, encoding="utf-8")
    pipeline = """
name: graph
failure_limit: 1
chunk: {max_tokens: 300}
stages:
  - {name: facts, over: rows, prompt: TASK facts, output: {vendor: string, orders: [cited]}}
  - {name: all, over: corpus, needs: [facts], prompt: TASK all, output: {total: integer, sum: cited}}
"""
    with Engine() as engine:
        manifest = run(tmp_path, engine, pipeline.replace("TASK facts", "TASK facts"))
    assert manifest["stages"]["facts"]["inputs"] in {5, 6}
    (answer,) = rows(tmp_path, "all")
    assert answer["total"] == 15
    assert next(cited["span"]["cells"] for cited in answer["citations"]) == "A2:B2"


def test_sheet_of_the_corpus_is_joined_when_sql_names_it(corpus, tmp_path):
    (corpus / "vendors.csv").write_text("vendor,country\nAda,NO\nBob,DK\nCyd,NO\n")
    joined = """
  - name: countries
    over: corpus
    needs: [merge]
    tables: {lands: vendors.csv}
    compute: >
      SELECT l.country, SUM(m.total) AS total, COUNT(*) AS num
      FROM merge m JOIN lands l ON m.vendor = l.vendor GROUP BY l.country
    output: {country: string, total: integer, num: integer}
"""
    with Engine() as engine:
        run(tmp_path, engine, PIPELINE + joined)
        found = {row["country"]: row["total"] for row in rows(tmp_path, "countries")}
        lands = {"NO": total_of(n for n in range(NUM_FILES) if n % 3 != 1)}
        assert found == lands | {"DK": total_of(range(1, NUM_FILES, 3))}
        before = len(engine.calls)
        wrong = joined.replace("l.country, SUM", "l.nothing, SUM")
        manifest = run(tmp_path, engine, PIPELINE + wrong)
        assert len(engine.calls) == before
    assert manifest["stages"]["countries"]["outcomes"] == {"failed": 1}
    assert "nothing" in manifest["failures"][0]["example"]
