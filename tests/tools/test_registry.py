"""The tools of a stage: which there are, their schemas, and calls that go wrong."""

import asyncio
import json
import re

import jsonschema
import pytest

from engine.tool import ToolError
from tests.fakes.aside import FakeAside
from tools.registry import TOOLS, Tools
from tools.tool import Scope


@pytest.fixture
def scope(corpus, tmp_path):
    return Scope(corpus=corpus, scratch=tmp_path)


def test_specs_are_in_the_order_of_the_names_when_tools_are_made(scope):
    tools = Tools(["search", "cite", "documents"], scope)
    assert [spec.name for spec in tools.specs] == ["search", "cite", "documents"]


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_has_the_name_it_is_registered_by_and_a_sound_schema_when_made(name, scope):
    (spec,) = Tools([name], scope).specs
    assert spec.name == name
    assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,63}", name)
    jsonschema.Draft202012Validator.check_schema(spec.parameters)
    assert spec.parameters["type"] == "object"
    assert spec.parameters["additionalProperties"] is False
    undescribed = [
        f for f, sub in spec.parameters["properties"].items() if "description" not in sub
    ]
    assert not undescribed
    assert spec.description
    # Engines compile a grammar of it: docs/decisions/0007.
    assert "maxLength" not in json.dumps(spec.parameters)


def test_unknown_names_are_told_with_those_there_are_when_tools_are_made(scope):
    with pytest.raises(ValueError, match="'serch'.*documents.*search"):
        Tools(["search", "serch"], scope)
    with pytest.raises(ValueError, match="'search' is named twice"):
        Tools(["search", "search"], scope)


def test_tool_that_the_stage_does_not_have_is_an_error_when_called(scope):
    tools = Tools(["documents"], scope)
    with pytest.raises(ToolError, match="no tool 'search' here; tools: documents"):
        asyncio.run(tools.call("search", {"query": "fuse"}, FakeAside()))


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("search", {}, "query"),
        ("search", {"query": "x", "limit": 31}, "limit"),
        ("search", {"query": "x", "path": "/etc"}, "path"),
        ("read", {"document": "D1", "from_line": 0}, "from_line"),
        ("view_frame", {"document": "D1", "time_s": "nan", "question": "?"}, "time_s"),
        ("cite", {"claim": "x", "lines": [], "quote": "y"}, "lines"),
    ],
)
def test_wrong_arguments_are_named_when_a_tool_is_called(name, arguments, said, scope):
    with pytest.raises(ToolError, match=f"wrong arguments: {said}"):
        asyncio.run(Tools([name], scope).call(name, arguments, FakeAside()))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("tables", {"document": "D" * 21}), ("table_query", {"sql": "x" * 20_001})],
)
def test_argument_that_is_too_long_is_told_to_the_model_though_its_schema_has_no_length(
    name, arguments, use
):
    with pytest.raises(ToolError, match="at most"):
        use(name, **arguments)
