"""What docs/agents.md says of tools and pipelines is so."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl

from config.load import load_profile
from tests.fakes.shipped_scripts import Comparer
from tests.flows.test_shipped_agents import LAWS, run
from tools.registry import TOOLS

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "agents.md").read_text(encoding="utf-8")


def test_table_of_tools_names_each_tool_once_in_order():
    table = PAGE.partition("<!-- TOOLS")[2].partition("\n\nEvery agent")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [*TOOLS]


def test_profiles_of_hosts_of_vectors_load_as_they_stand_there(tmp_path):
    profiles = []
    for name, shown in zip(("e5", "tei"), PAGE.split("<!-- PROFILE")[1:], strict=True):
        text = shown.partition("```\n")[2].partition("```")[0]
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        profiles.append(load_profile(str(tmp_path / f"{name}.yaml")))
    e5, tei = profiles
    assert e5.embeddings is not None
    assert e5.embeddings.query_prefix == "query: "
    assert tei.embeddings is not None
    assert (tei.model, tei.listed) == ("BAAI/bge-m3", False)


def test_laws_are_compared_without_a_planning_model_by_the_pipeline_of_the_page(tmp_path):
    (text,) = [
        code
        for code in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
        if "name: jurisdictions_each" in code
    ]
    (tmp_path / "each.yaml").write_text(text, encoding="utf-8")
    laws = ROOT / "config" / "samples" / "jurisdictions"
    run(tmp_path / "each.yaml", Comparer(), tmp_path, source=str(laws))
    rows = pl.read_parquet(f"{tmp_path}/lake/records/stage=duties/*.parquet").to_dicts()
    assert [row["outcome"] for row in rows] == ["succeeded"] * 4, [row["error"] for row in rows]
    for row in rows:
        assert {one["path"] for one in row["citations"]} == {row["path"]}
    (compared,) = pl.read_parquet(f"{tmp_path}/lake/records/stage=compare/*.parquet").to_dicts()
    assert compared["outcome"] == "succeeded", compared["error"]
    assert [one["question"] for one in compared["comparison"]] == [*LAWS]
    assert {claim["verdict"] for claim in compared["claims"]} == {"verified"}
    places = {one["path"] for one in compared["citations"]}
    assert places == {row["path"] for row in rows}
