"""The pipelines that come along for agents and swarms, whole, on scripted models and real tools."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from flows.run.core import run_job
from flows.run.job import Options, make_job
from tests.fakes.agent_faults import Faults
from tests.fakes.agent_server import AgentServer
from tests.fakes.shipped_scripts import Auditor, Comparer
from tests.flows.test_agents import PROFILE

ROOT = Path(__file__).resolve().parent.parent.parent


def run(pipeline, script, folder, faults=None, **options):
    """Return the manifest of a run on a scripted model, and the server it was run on."""
    with AgentServer(script, faults=faults, latency=0.03) as server:
        (folder / "scripted.yaml").write_text(PROFILE.format(url=server.url), encoding="utf-8")
        asked = Options(sink=str(folder / "lake"), engine=str(folder / "scripted.yaml"), **options)
        manifest = run_job(make_job(pipeline, asked))
    assert server.counts["refused"] == 0
    return manifest, server


def records(folder, stage):
    return pl.read_parquet(f"{folder}/lake/records/stage={stage}/*.parquet").to_dicts()


def cited(row):
    """Return the paths that each field of a record cites."""
    found = {}
    for one in row["citations"]:
        found.setdefault(one["field"], set()).add(one["path"])
    return found


def report(folder):
    (page,) = (folder / "lake" / "reports").glob("*/report.md")
    return page.read_text(encoding="utf-8")


def num_broken(server):
    return sum(fault is not None for one in server.received for fault in one.call_faults)


BREACHES = {
    ("hotels", "Cora Weiss", Decimal(39)),
    ("hotels", "Ada Lind", Decimal(62)),
    ("meals", "Dov Marsh", Decimal("12.40")),
    ("approval", "Ben Oduya", Decimal(12950)),
    ("approval", "Ben Oduya", Decimal(7150)),
    ("approval", "Cora Weiss", Decimal(9800)),
    ("two_persons", "Ada Lind", Decimal(5600)),
    ("paid_once", "Dov Marsh", Decimal(2375)),
    ("suppliers", "Dov Marsh", Decimal(1450)),
}
"""What was put into the samples."""

FAULTS = [None, *(Faults.broken_calls(0.12, seed=seed) for seed in (1, 2))]
NAMES = ["sound", "broken-1", "broken-2"]


@pytest.mark.parametrize("faults", FAULTS, ids=NAMES)
def test_breaches_of_the_policy_are_found_with_row_and_rule(faults, tmp_path):
    manifest, server = run("compliance", Auditor(), tmp_path, faults)
    (row,) = records(tmp_path, "review")
    assert row["outcome"] == "succeeded", row["error"]
    assert {(b["rule"], b["person"], b["amount"]) for b in row["breaches"]} == BREACHES
    assert len(row["breaches"]) == len(BREACHES)
    assert {claim["verdict"] for claim in row["claims"]} == {"verified"}
    places = cited(row)
    for number, breach in enumerate(row["breaches"]):
        table = "expenses.csv" if breach["rule"] in {"hotels", "meals"} else "payments.csv"
        assert places[f"breaches[{number}].what"] == {table, "spending_policy.txt"}
    assert manifest["stages"]["review"]["claims"]["verified"] == len(BREACHES) + 1
    assert manifest["stages"]["review"]["mode_mismatches"] == 0
    text = report(tmp_path)
    assert "A payment of more than 5,000 needs the approval" in text
    assert "expenses.csv" in text
    assert "not found" not in text
    sums = {row["rule"]: (row["breaches"], row["amount"]) for row in records(tmp_path, "by_rule")}
    assert sums["approval"] == (3, Decimal(29900))
    assert sums["hotels"] == (2, Decimal(101))
    if faults is not None:
        assert num_broken(server) > 0


LAWS = {
    "retention": {"ten", "seven", "five", "six"},
    "form": {"electronic form.", "paper.", "electronic form only", "left to the company"},
    "place": {"within the Republic", "in any country", "on servers"},
    "penalty": {"20,000 crowns", "8,000 marks", "surcharge", "12,000 florins"},
}
"""What stands in the laws; Dunmoor's says nothing on the place."""


@pytest.mark.parametrize("faults", FAULTS, ids=NAMES)
def test_laws_are_compared_by_a_reader_each(faults, tmp_path):
    _, server = run("jurisdictions", Comparer(), tmp_path, faults)
    (row,) = records(tmp_path, "compare")
    assert row["outcome"] == "succeeded", row["error"]
    assert {claim["verdict"] for claim in row["claims"]} == {"verified"}
    for question, words in LAWS.items():
        said = [one["answer"] for one in row["answers"] if one["question"] == question]
        assert len(said) == len(words)
        assert all(any(word in text for text in said) for word in words), said
    assert row["gaps"] == [
        {"jurisdiction": "Province of Dunmoor", "question": "place"},
    ]
    places = cited(row)
    laws = {"Arvenia": "arvenia", "Belmark": "belmark", "Castrel": "castrel", "Dunmoor": "dunmoor"}
    for number, answer in enumerate(row["answers"]):
        file = laws[answer["jurisdiction"].split()[-1]]
        assert places[f"answers[{number}].answer"] == {f"{file}.txt"}
    assert places["comparison[0].difference"] == {f"{file}.txt" for file in laws.values()}
    assert row["mode"] == "swarm"
    assert "ten years from the end of the year" in report(tmp_path)
    if faults is None:
        assert server.most_in_flight >= len(laws)
    else:
        assert num_broken(server) > 0
