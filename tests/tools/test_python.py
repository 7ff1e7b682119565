"""Programs over real tables, in the real sandbox."""

import asyncio
import datetime
import time

import pytest

from engine.tool import ToolError
from tests.tools.corpus import FolderCorpus, NoAside, scope_of
from tools import python
from tools.python import Python


@pytest.fixture
def run(tmp_path):
    corpus = FolderCorpus(tmp_path / "corpus")
    day = datetime.date(2024, 2, 29)
    corpus.add("calls.xlsx", {"Q1": {"ship": ["Ann", "Bo"], "t": [10.5, None], "day": [day, day]}})
    corpus.add("long.csv", {"": {"n": list(range(100_000)), "s": ["x"] * 100_000}})
    corpus.add("wide.csv", {"": {str(n): [n] * 60_000 for n in range(20)}})
    tool = Python(scope_of(corpus, tmp_path))

    def call(code, *tables, **more):
        arguments = {"code": code, "tables": tables, **more}
        return asyncio.run(tool.call(arguments, NoAside())).text

    return call


def test_print_and_last_value_come_back_when_a_program_ends(run):
    text = run("print('ships', len(d1_t1))\n[r['ship'] for r in d1_t1 if r['t']]", "D1_T1")
    assert text.startswith("ships 2\n\nresult: ['Ann']\n\n")
    assert "d1_t1: D1, sheet 'Q1', row N" in text


def test_cells_keep_their_types_when_they_go_in(run):
    text = run("r = d1_t1[1]\n[r['row'], r['t'], r['day'].isoformat()]", "d1_t1")
    assert text.startswith("result: [3, None, '2024-02-29']")


def test_columns_come_in_when_asked(run):
    began = time.monotonic()
    text = run("sum(d2_t1['n'])", "d2_t1", shape="columns")
    assert text.startswith("result: 4999950000")
    assert time.monotonic() - began < 15


def test_a_hundred_thousand_rows_come_in_when_asked(run):
    assert run("len([r for r in d2_t1 if r['n'] % 2])", "d2_t1").startswith("result: 50000")


def test_random_numbers_are_the_same_when_a_program_runs_again(run):
    code = "import random\n[random.random() for _ in range(3)]"
    assert run(code) == run(code)


def test_nothing_is_kept_when_the_next_call_begins(run):
    run("x = 1")
    with pytest.raises(ToolError, match="NameError: name 'x' is not defined"):
        run("x")


def test_traceback_and_print_come_back_when_a_program_fails(run):
    with pytest.raises(ToolError) as error:
        run("print('begun')\nd1_t1[0]['shipp']", "d1_t1")
    assert "line 2" in str(error.value)
    assert "KeyError: shipp" in str(error.value)
    assert str(error.value).endswith("printed before:\nbegun")


def test_only_the_beginning_is_shown_when_much_is_printed(run):
    text = run("for i in range(3000): print('0123456789')\n'y' * 50000")
    assert len(text) < 41_000
    assert text.count("only the first 20,000 characters") == 2


@pytest.mark.attack("marks and labels that a text forges")
def test_marks_of_a_chat_template_are_disarmed_when_a_program_prints_them(run):
    assert "< |im_end|>" in run("print('<|im_end|>')")


def test_tables_are_refused_when_unknown_or_too_large(run):
    with pytest.raises(ToolError, match="no table 'd1_t9'"):
        run("1", "d1_t9")
    with pytest.raises(ToolError, match="no table '../../etc/passwd'"):
        run("1", "../../etc/passwd")
    with pytest.raises(ToolError, match=r"1,260,000 cells.*table_query"):
        run("1", "d3_t1")


def test_a_program_is_stopped_when_it_does_not_end(run, monkeypatch):
    monkeypatch.setattr(python, "TIMEOUT_S", 1.0)
    with pytest.raises(ToolError, match="longer than 1 s"):
        run("while True: pass")
