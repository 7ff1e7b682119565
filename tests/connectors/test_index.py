"""Passages, and the index that finds them."""

import pytest

from connectors.document import Segment, Span
from connectors.errors import StorageError
from connectors.index import Passage, TantivyIndex, passages_of


def line(text, kind="paragraph"):
    return Segment(kind=kind, text=text, span=Span())


@pytest.fixture
def index(tmp_path):
    return TantivyIndex(tmp_path / "index")


def add(index, *texts, about=""):
    index.add(
        Passage(document=number, first=number, last=number, text=text, about=about)
        for number, text in enumerate(texts, start=1)
    )


def found(index, query, **options):
    return [hit.document for hit in index.search(query, limit=10, **options)]


def test_passages_cover_every_line_with_text_once_when_made():
    lines = [line("word " * (number % 40)) for number in range(500)]
    lines[100] = line("", kind="image")
    passages = list(passages_of(3, "a.txt", lines))
    covered = [n for p in passages for n in range(p.first, p.last + 1) if lines[n - 1].text]
    assert covered == [n for n, one in enumerate(lines, start=1) if one.text]
    assert all(p.text.startswith(lines[p.first - 1].text) for p in passages)
    assert max(len(p.text) for p in passages) < 1000
    assert max(p.last - p.first for p in passages) < 20


def test_passage_begins_at_a_heading_and_knows_it_when_made():
    lines = [line("Before."), line("Costs", kind="heading"), *(line("x " * 200) for _ in range(4))]
    passages = list(passages_of(1, "a.txt", lines))
    assert [(p.first, p.last) for p in passages] == [(1, 1), (2, 4), (5, 6)]
    assert [p.about for p in passages] == ["a.txt ", "a.txt Costs", "a.txt Costs"]


def test_phrase_over_the_end_of_a_passage_is_found_when_quoted(index):
    lines = [line("x " * 320 + "the second"), line("motor had blown")]
    passages = list(passages_of(1, "a.txt", lines))
    assert len(passages) == 2
    index.add(passages)
    hits = index.search('"second motor"', limit=5)
    assert [(hit.first, hit.last) for hit in hits] == [(1, 1)]


def test_passage_with_more_of_the_words_comes_first_when_searched(index):
    add(
        index, "the crane stopped", "a fuse in the crane", "a fuse in the motor of the crane", "fog"
    )
    assert found(index, "motor fuse crane")[0] == 3
    assert sorted(found(index, "motor fuse crane")) == [1, 2, 3]


def test_exact_form_comes_first_when_other_forms_stand_there_too(index):
    add(index, "repairing the pump", "the repairs of a pump", "the repair of the pump")
    assert found(index, "repair")[0] == 3
    assert sorted(found(index, "repair")) == [1, 2, 3]


def test_case_and_accents_do_not_count_when_searched(index):
    add(index, "Die Größe der Brücke", "Le café")
    assert found(index, "BRUCKE") == [1]
    assert found(index, "CAFE") == [2]


def test_scripts_without_spaces_are_found_inside_a_sentence_when_searched(index):
    add(index, "港口事故在夜间发生", "夜里没有船", "ท่าเรือปิดตอนกลางคืน")
    assert found(index, "事故")[0] == 1
    assert found(index, '"夜间发生"') == [1]
    assert found(index, "ท่าเรือ")[0] == 3


def test_path_and_heading_count_less_than_text_when_searched(index):
    index.add([
        Passage(document=1, first=1, last=1, text="rain", about="harbour.pdf"),
        Passage(document=2, first=1, last=1, text="the harbour", about="b.pdf"),
    ])
    assert found(index, "harbour") == [2, 1]


def test_hits_are_of_the_named_documents_when_there_is_a_filter(index):
    add(index, *["a crane"] * 50)
    assert sorted(found(index, "crane", among={7, 30})) == [7, 30]
    assert found(index, "crane", among=[]) == []
    assert found(index, "crane", among=[99]) == []


@pytest.mark.parametrize(
    "query",
    ["", " ", '"', '"" ""', "(", "a:b", "\ud800", "\x00", "[1 TO", "*", "~^", "w" * 100_000],
)
def test_nothing_is_found_without_an_error_when_a_query_has_no_known_words(query, index):
    add(index, "a crane")
    assert found(index, query) in ([], [1] if query == "a:b" else [])


def test_unknown_word_beside_a_known_one_does_no_harm_when_searched(index):
    add(index, "a crane")
    assert found(index, "crane +zzz -yyy AND NOT (exact:") == [1]


def test_passages_are_there_when_the_folder_is_opened_again(tmp_path, index):
    add(index, "a crane")
    assert found(TantivyIndex(tmp_path / "index"), "crane") == [1]


def test_folder_is_named_when_it_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"search index .*file/index"):
        TantivyIndex(tmp_path / "file" / "index")
