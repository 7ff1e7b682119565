"""Stages over rows of a sheet: the order at the engine, and records as the sheet has its rows."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Mapping
from typing import Any

import polars as pl
import pytest

from config.load import set_environment
from connectors.citations import Quotable
from flows.estimate import estimate
from flows.run.bench import Bench
from flows.run.core import run_job
from flows.run.job import Job, Options, make_job
from tests.fakes.engine_server import FakeEngine, Fault

LINE = re.compile(r"^\[L1\] (.*)$", re.MULTILINE)
NUM_ROWS = 60
PORTS = ["Oslo Gardermoen, Norway", "Bergen Flesland, Norway", "Kirkenes Lufthavn, Norway"]
PIPELINE = """
name: flights
failure_limit: 1
chunk: {max_tokens: 400}
rows: {order: ORDER}
stages:
  - {name: first, over: rows, prompt: TASK first, output: {row: line, says: cited, port: string}}
"""
DEPENDENT = """
  - {name: second, over: rows, needs: [first], prompt: "TASK second {{ upstream.first.port }}",
     output: {port: string}}
"""
CHUNK_STAGE = """
  - {name: kind, prompt: TASK kind, output: {port: string}}
  - {name: after, over: rows, needs: [kind], prompt: "TASK after {{ upstream.kind.port }}",
     output: {port: string}}
"""


@pytest.fixture(autouse=True)
def _environment(tmp_path):
    set_environment({"XDG_CACHE_HOME": str(tmp_path / "cache")})


@pytest.fixture
def sheet(tmp_path):
    """Write a table whose first column is every row's own, and the others' values repeat."""
    (tmp_path / "in").mkdir()
    lines = ["flight,port,plane,seats"]
    lines += [f'{n},"{PORTS[n % 3]}",Airbus A320-{n % 2}00,{150 + n % 2}' for n in range(NUM_ROWS)]
    (tmp_path / "in/flights.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "in/flights.csv"


class Engine(FakeEngine):
    """Quotes the line it is shown, and answers with the port in it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(script=self._answer, **options)

    def _answer(self, _number: int, body: Mapping[str, Any]) -> Fault:
        line = _line(body)
        port = re.search(r"port: ([^|]+?)(?: \||$)", line)
        answer: dict[str, Any] = {"port": port[1] if port else "none"}
        if _task(body) == "first":
            claim = {"lines": ["L1"], "quote": line, "text": "It flies."}
            answer |= {"row": "L1", "says": claim}
        return Fault(content=json.dumps(answer))

    def tasks(self, before: int = 0) -> list[tuple[str, str]]:
        return [(_task(body), _line(body)) for body in self.calls[before:]]


def _text(body: Mapping[str, Any]) -> str:
    text = body["messages"][-1]["content"]
    return text if isinstance(text, str) else text[-1]["text"]


def _line(body: Mapping[str, Any]) -> str:
    found = LINE.search(_text(body))
    assert found is not None
    return found[1]


def _task(body: Mapping[str, Any]) -> str:
    found = re.search(r"TASK (\w+)", _text(body))
    assert found is not None
    return found[1]


def _job(tmp_path, engine: Engine, order: str, stages: str = "", lake: str = "lake") -> Job:
    (tmp_path / "flights.yaml").write_text(
        PIPELINE.replace("ORDER", order) + stages, encoding="utf-8"
    )
    options = Options(source=f"{tmp_path}/in", sink=f"{tmp_path}/{lake}", engine=engine.url)
    return make_job(tmp_path / "flights.yaml", options)


def _records(tmp_path, stage: str, lake: str = "lake") -> list[dict[str, Any]]:
    found = pl.read_parquet(f"{tmp_path}/{lake}/records/stage={stage}/*.parquet")
    return found.sort("unit").to_dicts()


def test_rows_that_say_the_same_come_one_after_the_other_when_order_is_shared(
    sheet, tmp_path, monkeypatch
):
    monkeypatch.setattr(Bench, "max_in_flight", 1)
    with Engine() as engine:
        run_job(_job(tmp_path, engine, "shared"))
        lines = [line for _, line in engine.tasks()]
    assert len(lines) == NUM_ROWS
    assert all(line.endswith(f"| flight: {line.rpartition(' ')[2]}") for line in lines)
    beginnings = [line.rpartition(" | ")[0] for line in lines]
    # Three ports and two planes, each of the six together only once.
    assert [key for key, _ in itertools.groupby(beginnings)] == list(dict.fromkeys(beginnings))
    assert len(set(beginnings)) == 6


def test_rows_come_as_the_table_has_them_when_order_is_given(sheet, tmp_path, monkeypatch):
    monkeypatch.setattr(Bench, "max_in_flight", 1)
    with Engine() as engine:
        run_job(_job(tmp_path, engine, "given"))
        lines = [line for _, line in engine.tasks()]
    assert (
        lines[7]
        == "flight: 7 | port: Bergen Flesland, Norway | plane: Airbus A320-100 | seats: 151"
    )
    assert [line.split(" | ")[0] for line in lines] == [f"flight: {n}" for n in range(NUM_ROWS)]


@pytest.mark.parametrize("order", ["shared", "given"])
def test_records_and_citations_are_as_the_sheet_has_its_rows(sheet, tmp_path, order):
    with Engine() as engine:
        manifest = run_job(_job(tmp_path, engine, order))
    assert manifest["stages"]["first"]["outcomes"] == {"succeeded": NUM_ROWS}
    records = _records(tmp_path, "first")
    texts = sheet.read_text(encoding="utf-8").splitlines()[1:]
    for number, (record, text) in enumerate(zip(records, texts, strict=True)):
        row_text = f"{number + 2},{text}"
        assert record["row"] == row_text
        assert record["port"] == PORTS[number % 3]
        assert [claim["verdict"] for claim in record["claims"]] == ["verified"]
        assert {cited["quote"] for cited in record["citations"]} == {row_text}
        cells = {cited["span"]["cells"] for cited in record["citations"]}
        assert cells == {f"A{number + 2}:D{number + 2}"}


def test_quotes_over_fields_are_found_in_the_line_that_was_shown():
    shown = "port: Oslo, Norway | seats: 1,500 | delay: -5 | note: <3 | flight: 7"
    sheet_has = '8,7,"Oslo, Norway","1,500",-5,<3'
    quotable = Quotable([shown])
    for quote in (
        "port: Oslo, Norway | seats: 1,500",
        "seats: 1500",
        "delay: -5 | note: <3",
        "Norway | Seats",
    ):
        assert quotable.find(quote) == range(1), quote
        if "|" in quote:
            assert Quotable([sheet_has]).find(quote) is None
    for wrong in ("delay: 5", "note: 3", "seats: 150", "flight: 7 | port: Oslo"):
        assert quotable.find(wrong) is None, wrong


def test_nothing_is_asked_anew_when_the_order_changes(sheet, tmp_path):
    with Engine() as engine:
        run_job(_job(tmp_path, engine, "shared", DEPENDENT))
        before = len(engine.calls)
        first = _records(tmp_path, "second")
        # Every row of a changed file is looked at again, and all but one are known.
        text = sheet.read_text(encoding="utf-8").replace(",150\n", ",149\n", 1)
        sheet.write_text(text, encoding="utf-8")
        run_job(_job(tmp_path, engine, "given", DEPENDENT))
        assert [task for task, _ in engine.tasks(before)] == ["first", "second"]
    second = _records(tmp_path, "second")
    assert [row["request_key"] for row in first[1:]] == [row["request_key"] for row in second[1:]]


def test_dependent_stages_ask_about_a_family_before_the_next_when_the_cache_is_small(
    sheet, tmp_path, monkeypatch
):
    monkeypatch.setattr(Bench, "family_tokens", 1)
    monkeypatch.setattr(Bench, "max_in_flight", 4)
    with Engine() as engine:
        run_job(_job(tmp_path, engine, "shared", DEPENDENT))
        asked = engine.tasks()
    assert len(asked) == 2 * NUM_ROWS
    for start in range(0, len(asked), 32):
        family = asked[start : start + 32]
        by_task = [{line for task, line in family if task == name} for name in ("first", "second")]
        assert by_task[0] == by_task[1]


@pytest.mark.parametrize("family_tokens", [1, None])
def test_rows_wait_for_what_is_asked_about_their_chunk_and_nothing_stands_still(
    sheet, tmp_path, monkeypatch, family_tokens
):
    monkeypatch.setattr(Bench, "family_tokens", family_tokens)
    done: set[str] = set()
    lock = threading.Lock()

    class Checking(Engine):
        def _answer(self, number: int, body: Mapping[str, Any]) -> Fault:
            if _task(body) == "kind":
                lines = re.findall(r"^\[L\d+\] (\d+),", _text(body), re.MULTILINE)
                with lock:
                    done.update(str(int(number) - 2) for number in lines)
                return Fault(content=json.dumps({"port": "all"}), hang_s=0.02)
            if _task(body) == "after":
                found = re.search(r"flight: (\d+)", _line(body))
                assert found is not None
                with lock:
                    assert found[1] in done
                assert "TASK after all" in _text(body)
            return super()._answer(number, body)

    with Checking() as engine:
        manifest = run_job(_job(tmp_path, engine, "shared", CHUNK_STAGE))
        assert engine.tasks()
    assert manifest["stages"]["kind"]["inputs"] > 1
    for stage in ("first", "after"):
        assert manifest["stages"][stage]["outcomes"] == {"succeeded": NUM_ROWS}


def test_rows_that_are_equal_are_asked_once_and_each_has_its_record(tmp_path):
    (tmp_path / "in").mkdir()
    table = "port,seats\n" + "Oslo,1\nOslo,1\nBergen,2\n"
    (tmp_path / "in/flights.csv").write_text(table, encoding="utf-8")
    with Engine() as engine:
        run_job(_job(tmp_path, engine, "shared"))
        assert len(engine.calls) == 2
    records = _records(tmp_path, "first")
    assert [record["row"] for record in records] == ["2,Oslo,1", "3,Oslo,1", "4,Bergen,2"]


def test_planned_cached_tokens_count_what_rows_share_and_a_plan_says_the_same(sheet, tmp_path):
    planned = {}
    with Engine() as engine:
        for order in ("given", "shared"):
            stage = run_job(_job(tmp_path, engine, order, lake=order))["stages"]["first"]
            planned[order] = stage["planned_cached_tokens"]
        estimated = {
            order: estimate(_job(tmp_path, engine, order, lake="none"), sample=None, notify=print)
            for order in ("given", "shared")
        }
    # As given no row begins as the one before does, so only instructions repeat.
    instructions, rest = divmod(planned["given"], NUM_ROWS)
    assert rest == 0
    assert planned["shared"] > planned["given"] + 54 * 10
    for order, found in estimated.items():
        (stage,) = found["stages"]
        assert stage["planned_cached_tokens"] == planned[order]
        assert stage["assumed"][0].startswith(f"rows in {order} order begin alike in ")
    assert "0% as given" in estimated["shared"]["stages"][0]["assumed"][0]
    assert instructions > 0
