"""Full-text search over a sink, and over a corpus of many lines."""

import asyncio
import random
import re
from pathlib import Path

import pytest

from engine.tool import ToolError
from tests.fakes.aside import FakeAside
from tests.tools.memory import MemoryCorpus, paragraph
from tools.search import Search
from tools.tool import Scope


def test_lines_come_with_labels_and_place_when_words_are_found(use):
    text = use("search", query="blown fuses motor")
    assert "reports/board.pdf (D3), pages 1-3" in text
    assert "[D3L3] A fuse had blown in the second motor." in text


def test_row_is_found_by_a_column_of_its_sheet_when_the_row_does_not_say_it(use):
    text = use("search", query="cargo ship 29", document="harbour")
    assert "Ships!" in text
    assert re.search(r"\[D6L\d+\] 30,Ship 29,1030,barley", text)


def test_only_named_documents_are_searched_when_a_filter_is_given(use):
    assert "D3" not in use("search", query="euro", document="notes/")
    assert "[D3L4]" in use("search", query="euro", document="D3")
    assert "D2" not in use("search", query="euro", document="reports/*.pdf")
    assert use("search", query="lantern", document="D3").startswith("Nothing found")
    with pytest.raises(ToolError, match="no document is called '/etc'"):
        use("search", query="euro", document="/etc")


def test_words_in_quotes_must_stand_in_a_row_when_searched(use):
    assert "[D3L3]" in use("search", query='"second motor"')
    assert use("search", query='"motor second"').startswith("Nothing found")


def test_number_of_passages_is_limited_when_many_fit(use):
    text = use("search", query="ship berth day", limit=2)
    assert text.startswith("2 passages")
    assert len(re.findall(r"^\S.*\(D\d+\)", text, re.MULTILINE)) == 2


@pytest.mark.parametrize(
    "query",
    ['"', '""', "AND OR NOT (", "text:fuse^3~ [a TO b] {", "*", "\x00", "-x +y !z", "/a.*b/",
     "\\", "'", "exact:fuse", "🦆 ⛴", "x " * 900],
)  # fmt: skip
def test_any_query_has_an_answer_when_it_looks_like_a_query_language(query, use):
    assert use("search", query=query)


@pytest.mark.attack("marks and labels that a text forges")
def test_labels_and_marks_of_a_document_are_no_labels_when_shown(use):
    text = use("search", query="dues nobody notice")
    own = re.findall(r"\[(D\d+L\d+)\]", text)
    assert own
    assert all(label.startswith("D2L") for label in own)
    assert len(own) == len(set(own))
    # Every label stands at the begin of a line.
    assert len(re.findall(r"^\[D\d+L\d+\]", text, re.MULTILINE)) == len(own)
    assert "The dues are 900 euro" in text
    assert "<|im_start|>" not in text


def test_index_is_made_once_when_several_tools_share_a_scope(tmp_path):
    corpus = MemoryCorpus([paragraph("The crane stopped.")], [paragraph("A fuse had blown.")])
    scope = Scope(corpus=corpus, scratch=tmp_path)

    async def ask():
        tools = [Search(scope) for _ in range(8)]
        return await asyncio.gather(
            *(tool.call({"query": "nowhere"}, FakeAside()) for tool in tools)
        )

    assert {answer.text[:13] for answer in asyncio.run(ask())} == {"Nothing found"}
    assert corpus.reads == len(corpus.documents)
    assert len(list(tmp_path.iterdir())) == 1


def test_index_is_of_its_corpus_when_two_share_a_folder(tmp_path):
    first = MemoryCorpus([paragraph("The crane stopped.")])
    other = MemoryCorpus([paragraph("A fuse had blown.")], [])
    for corpus, word in ((first, "crane"), (other, "fuse")):
        tool = Search(Scope(corpus=corpus, scratch=tmp_path))
        answer = asyncio.run(tool.call({"query": "crane fuse"}, FakeAside()))
        assert answer.text.startswith("1 passage:")
        assert word in answer.text


def test_one_line_is_found_when_there_are_fifty_thousand(tmp_path):
    pick = random.Random(4)
    words = [f"word{number}" for number in range(3000)]
    lines = [paragraph(" ".join(pick.choices(words, k=12)), n) for n in range(50_000)]
    lines[31_416] = paragraph("The lighthouse keeper's ledger names the barque Amalie.")
    lines[47_000] = paragraph("港口事故在夜间发生")
    tool = Search(Scope(corpus=MemoryCorpus(lines), scratch=tmp_path))
    for query, label in (("keepers of lighthouses", "D1L31417"), ("夜间 事故", "D1L47001")):
        answer = asyncio.run(tool.call({"query": query, "limit": 1}, FakeAside()))
        assert f"[{label}]" in answer.text


def test_long_line_is_cut_around_the_word_when_shown(tmp_path):
    line = paragraph("sand " * 5000 + "amber " + "sand " * 5000)
    tool = Search(Scope(corpus=MemoryCorpus([line]), scratch=tmp_path))
    answer = asyncio.run(tool.call({"query": "amber"}, FakeAside()))
    assert "amber" in answer.text
    assert len(answer.text) < 2000


def test_nothing_but_the_scratch_folder_is_written_when_indexed(use, tmp_path, monkeypatch):
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    use("search", query="fuse")
    assert list(Path.cwd().iterdir()) == []
