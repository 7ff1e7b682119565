"""Stages from chunks to one answer about the corpus, with an engine that computes from what it is sent."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from config.load import set_environment
from flows.run.core import run_job
from flows.run.job import Options, make_job
from tests.fakes.engine_server import FakeEngine, Fault

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
    lines, task = LINE.findall(text), re.search(r"TASK (\w+)", text)
    assert task is not None
    orders = [(label, *found) for label, line in lines for found in ORDER.findall(line)]
    if task[1] == "kind":
        return {"kind": "order" if orders else "letter"}
    if task[1] == "facts":
        return {
            "vendor": orders[0][1],
            "orders": [
                {"lines": [label], "quote": f"{who} orders {n} ropes", "text": f"{who} orders {n} ropes"}
                for label, who, n in orders
            ],
        }
    totals = [(label, n) for label, line in lines for n in TOTAL.findall(line)]
    found = totals or [(label, n) for label, _, n in orders]
    quotes = dict(lines)
    total = sum(int(n) for _, n in found)
    claim = {
        "lines": [label for label, _ in found][:8],
        "quote": re.sub(r" \(«.*", "", quotes[found[0][0]]).partition(": ")[2],
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


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(12):
        vendor = ["Ada", "Bob", "Cyd"][number % 3]
        lines = [f"This is page {line} about the weather." for line in range(5)]
        if number != 7:
            lines[2] = f"{vendor} orders {number + 1} ropes."
            lines[4] = f"{vendor} orders 100 ropes."
        (folder / f"{number:03d}.txt").write_text("\n\n".join(lines), encoding="utf-8")
    return folder


def run(tmp_path: Path, engine: Engine, pipeline: str = PIPELINE) -> Mapping[str, Any]:
    set_environment({"HEADRACE_STATE": f"{tmp_path}/state"})
    (tmp_path / "graph.yaml").write_text(pipeline, encoding="utf-8")
    asked = Options(source=f"{tmp_path}/in", sink=f"{tmp_path}/lake", engine=engine.url)
    return run_job(make_job(tmp_path / "graph.yaml", asked))


def rows(tmp_path: Path, stage: str) -> list[dict[str, Any]]:
    files = sorted((tmp_path / "lake" / "records" / f"stage={stage}").glob("*.parquet"))
    return pl.concat([pl.read_parquet(file) for file in files]).to_dicts()


def test_answer_about_the_corpus_is_right_when_stages_build_on_one_another(corpus, tmp_path):
    with Engine() as engine:
        manifest = run(tmp_path, engine)
    print(json.dumps(manifest["stages"], indent=1)[:3000])
    for stage in manifest["stages"].values():
        assert stage["inputs"] == sum(stage["outcomes"].values())
    total = sum(number + 1 + 100 for number in range(12) if number != 7)
    (answer,) = rows(tmp_path, "all")
    print(answer)
    assert answer["total"] == total
    assert answer["claims"][0]["verdict"] == "verified"
