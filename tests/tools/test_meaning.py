"""Search by meaning over corpora in memory, beside the words, and what both found put together."""

import asyncio

import pytest

from connectors.document import Segment, Span
from connectors.errors import DiskFull, StorageError
from connectors.index import Hit
from connectors.storage import open_storage
from connectors.vectors import VectorStore
from engine.errors import BudgetReached, EngineMisconfigured, VectorsUnavailable
from engine.modes.mode import LogFailed
from tests.fakes.aside import FakeAside
from tests.fakes.embedding_server import NUM_DIMS
from tests.tools.memory import MemoryCorpus, paragraph
from tools import meaning
from tools.meaning import fused
from tools.search import Search
from tools.tool import Scope

HOTEL = paragraph("A hotel night may cost 150 EUR at most.")
PUMP = paragraph("The pump was oiled.")


def store_of(folder, *, texts_per_call=4):
    storage = open_storage(str(folder / "sink"))
    return VectorStore(
        storage, "vectors/m", folder / "vectors", num_dims=NUM_DIMS, texts_per_call=texts_per_call
    )


def tool_of(folder, *documents, store=None):
    scope = Scope(
        corpus=MemoryCorpus(*documents), scratch=folder, vectors=store or store_of(folder)
    )
    return Search(scope)


def asked(tool, aside, **arguments):
    return asyncio.run(tool.call(arguments, aside)).text


def passages(aside):
    return [text for texts, are_queries in aside.embedded if not are_queries for text in texts]


def hit(number):
    return Hit(document=0, first=number, last=number, score=0.0)


def test_ranks_are_added_up_and_of_equals_the_words_come_first():
    found = fused([hit(1), hit(2)], [hit(3), hit(2)], 5)
    assert [(one.hit.first, one.by) for one in found] == [
        (2, "words and meaning"), (1, "words"), (3, "meaning"),
    ]  # fmt: skip
    assert [one.hit.first for one in fused([hit(1)], [hit(3), hit(2)], 2)] == [1, 3]


def test_spec_is_the_same_as_ever_without_vectors(tmp_path):
    plain = Search(Scope(corpus=MemoryCorpus([HOTEL]), scratch=tmp_path))
    assert "meaning" not in plain.spec.description
    assert not plain.spec.keeps_own_time
    assert "meaning" in tool_of(tmp_path, [HOTEL]).spec.description


def test_only_named_documents_are_searched_by_meaning_when_there_is_a_filter(tmp_path):
    aside = FakeAside()
    tool = tool_of(tmp_path, [HOTEL], [PUMP], [paragraph("A hotel night in Narvik.")])
    text = asked(tool, aside, query="overnight accommodation", document="D3")
    assert "[D3L1]" in text
    assert "[D1L1]" not in text


def test_heading_and_names_of_columns_stand_with_their_lines(tmp_path):
    aside = FakeAside()
    head = Segment(kind="heading", text="name,kind,amount", span=Span())
    rows = [paragraph(f"Ada {number},hotel,140 " * 40) for number in range(3)]
    asked(tool_of(tmp_path, [head, *rows]), aside, query="lodging")
    texts = passages(aside)
    assert len(texts) > 1
    assert all(text.startswith("name,kind,amount\n") for text in texts)
    assert all(text.count("name,kind,amount") == 1 for text in texts)


def test_text_that_stands_twice_is_made_into_a_vector_once(tmp_path):
    aside = FakeAside()
    tool = tool_of(tmp_path, [HOTEL], [HOTEL], [PUMP])
    text = asked(tool, aside, query="lodging")
    assert sorted(passages(aside)) == sorted([HOTEL.text, PUMP.text])
    assert {"[D1L1]", "[D2L1]"} <= set(text.split())


def test_blank_texts_are_not_asked_for(tmp_path):
    aside = FakeAside()
    tool = tool_of(tmp_path, [HOTEL], [paragraph("  \n ")])
    assert asked(tool, aside, query=" ").startswith("Nothing found")
    asked(tool, aside, query="lodging")
    assert aside.embedded == [([HOTEL.text], False), (["lodging"], True)]


def test_searches_at_once_share_what_they_pay_for(tmp_path):
    aside, store = FakeAside(), store_of(tmp_path)
    lines = [paragraph(f"Line {number} of the hotel. " * 30) for number in range(20)]
    tools = [tool_of(tmp_path / str(number), lines, store=store) for number in range(6)]

    async def ask():
        return await asyncio.gather(*(tool.call({"query": "lodging"}, aside) for tool in tools))

    answers = asyncio.run(ask())
    assert len({answer.text for answer in answers}) == 1
    assert len(passages(aside)) == len(set(passages(aside))) == 20


class Failing(FakeAside):
    """Fails at its second call for vectors."""

    num_calls = 0

    async def embed(self, texts, *, are_queries=False):
        self.num_calls += 1
        if self.num_calls == 2:
            raise TimeoutError
        return await super().embed(texts, are_queries=are_queries)


def test_what_was_paid_before_a_failure_is_not_paid_again(tmp_path):
    lines = [paragraph(f"Line {number} of the hotel. " * 30) for number in range(8)]
    tool, failing, aside = tool_of(tmp_path, lines), Failing(), FakeAside()
    with pytest.raises(TimeoutError):
        asked(tool, failing, query="lodging")
    asked(tool, aside, query="lodging")
    assert len(passages(failing)) == len(passages(aside)) == 4
    assert not set(passages(failing)) & set(passages(aside))


def test_corpus_of_too_many_passages_is_searched_by_words_and_nothing_is_paid(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(meaning, "MOST_PASSAGES", 2)
    aside = FakeAside()
    tool = tool_of(tmp_path, [HOTEL], [PUMP], [paragraph("A hotel in Narvik.")])
    text = asked(tool, aside, query="hotel")
    assert text.startswith("2 passages, best first, by words only, since the corpus is too large")
    text = asked(tool, aside, query="lodging", document="D2")
    assert text.startswith("Nothing found.")
    assert "by words only, since the corpus is too large for vectors. " in text
    assert text.endswith("in the named documents only.")
    assert not aside.embedded


@pytest.mark.parametrize(
    ("query", "begin"), [('"hotel"', "2 passages, best first:"), ('"inn"', "Nothing")]
)
def test_quotes_are_not_taken_for_a_corpus_that_is_too_large(tmp_path, monkeypatch, query, begin):
    monkeypatch.setattr(meaning, "MOST_PASSAGES", 2)
    tool = tool_of(tmp_path, [HOTEL], [PUMP], [paragraph("A hotel in Narvik.")])
    asked(tool, FakeAside(), query="hotel")
    text = asked(tool, FakeAside(), query=query)
    assert text.startswith(begin)
    assert "by words only" not in text


def test_corpus_of_as_many_passages_as_can_be_is_searched_by_meaning(tmp_path, monkeypatch):
    monkeypatch.setattr(meaning, "MOST_PASSAGES", 2)
    assert "by meaning" in asked(tool_of(tmp_path, [HOTEL], [PUMP]), FakeAside(), query="lodging")


class Full(VectorStore):
    """Has no room left."""

    def put(self, vectors):
        raise StorageError("no space left", uri="sink")


def test_run_stops_where_vectors_that_are_paid_for_cannot_be_kept(tmp_path):
    storage = open_storage(str(tmp_path / "sink"))
    full = Full(storage, "v", tmp_path / "v", num_dims=NUM_DIMS, texts_per_call=4)
    with pytest.raises(LogFailed, match="cannot be kept: no space left"):
        asked(tool_of(tmp_path, [HOTEL], store=full), FakeAside(), query="lodging")


class Unread:
    """A storage that cannot be read."""

    def __init__(self, error):
        self.error = error

    def list(self, _prefix):
        raise self.error


def unread(folder, error):
    return VectorStore(Unread(error), "v", folder / "v", num_dims=NUM_DIMS, texts_per_call=4)


def test_request_ends_where_vectors_cannot_be_read(tmp_path):
    store = unread(tmp_path, StorageError("access denied", uri="sink"))
    with pytest.raises(VectorsUnavailable, match=r"the sink cannot be read: access denied"):
        asked(tool_of(tmp_path, [HOTEL], store=store), FakeAside(), query="lodging")


def test_run_stops_where_the_disk_has_no_room_for_what_is_read(tmp_path):
    store = unread(tmp_path, DiskFull("no space left", uri="vectors.f4"))
    with pytest.raises(LogFailed, match=r"^no space left$"):
        asked(tool_of(tmp_path, [HOTEL], store=store), FakeAside(), query="lodging")


class Ending(FakeAside):
    """Its calls for vectors end with these, in their order."""

    def __init__(self, *ends):
        super().__init__()
        self.ends = list(ends)

    async def embed(self, texts, *, are_queries=False):
        end = self.ends.pop(0) if self.ends else None
        if end is not None:
            raise end
        return await super().embed(texts, are_queries=are_queries)


OF_REQUEST = (BudgetReached("no more"), VectorsUnavailable("no answer"))


@pytest.mark.parametrize("ends", [OF_REQUEST, OF_REQUEST[::-1]])
def test_what_ends_the_run_is_told_before_what_ends_one_request(tmp_path, ends):
    lines = [paragraph(f"Line {number} of the hotel. " * 30) for number in range(12)]
    aside = Ending(*ends, EngineMisconfigured("the key is gone"))
    with pytest.raises(EngineMisconfigured, match="the key is gone"):
        asked(tool_of(tmp_path, lines), aside, query="lodging")


def test_run_stops_for_vectors_that_cannot_be_kept_also_where_others_cannot_be_had(tmp_path):
    lines = [paragraph(f"Line {number} of the hotel. " * 30) for number in range(8)]
    full = Full(
        open_storage(str(tmp_path)), "v", tmp_path / "v", num_dims=NUM_DIMS, texts_per_call=4
    )
    with pytest.raises(LogFailed, match="no space left"):
        asked(tool_of(tmp_path, lines, store=full), Ending(OF_REQUEST[0]), query="lodging")
