"""Digests of documents, in parts and put together."""

import asyncio
import re

import pytest

from engine.tool import ToolError
from tests.fakes.aside import FakeAside
from tests.tools.memory import MemoryCorpus, paragraph
from tools.summarise import Summarise
from tools.tool import Scope


def summarise(lines, tmp_path, aside, max_chars=400, **arguments):
    tool = Summarise(
        Scope(corpus=MemoryCorpus(lines), scratch=tmp_path), max_chars=max_chars, max_parts=40
    )
    asked = {"document": "D1", "aim": "costs", **arguments}
    return asyncio.run(tool.call(asked, aside)).text


def test_short_document_is_one_question_when_condensed(use):
    use.aside._answer = lambda asked: f"{len(asked.material.splitlines())} lines."
    text = use("summarise", document="D3", aim="costs and\ndates")
    assert text == "Digest of reports/board.pdf (D3), lines 1-5:\n5 lines."
    (asked,) = use.aside.asked
    assert "this aim: costs and dates\n" in asked.question
    assert asked.material.splitlines()[3] == "[D3L4] Repairs cost 4,300 euro."


def test_every_line_is_in_one_part_that_fits_when_a_document_is_long(tmp_path):
    aside = FakeAside(lambda asked: " ".join(re.findall(r"D1L\d+", asked.material)))
    text = summarise([paragraph(f"line {n} " * 6) for n in range(60)], tmp_path, aside)
    parts = [a for a in aside.asked if a.question.startswith("Condense")]
    shown = [label for a in parts for label in re.findall(r"^\[(D1L\d+)\]", a.material, re.M)]
    assert shown == [f"D1L{n}" for n in range(1, 61)]
    assert all(len(a.material) <= 400 for a in aside.asked)
    assert f"lines 1-60 of 60, from {len(parts)} parts" in text


def test_notes_become_one_in_order_when_put_together_as_a_tree(tmp_path):
    def answer(asked):
        if asked.question.startswith("Condense"):
            number = re.findall(r"D1L(\d+)", asked.material)[0]
            return f"<{number}>" + "." * 120
        return "".join(re.findall(r"<\d+>", asked.material))

    aside = FakeAside(answer)
    text = summarise([paragraph("word " * 60) for _ in range(21)], tmp_path, aside)
    assert text.endswith("".join(f"<{n}>" for n in range(1, 22)))
    assert len(aside.asked) > 22


def test_notes_as_long_as_parts_still_become_fewer_when_put_together(tmp_path):
    aside = FakeAside(lambda _: "x" * 5000)
    text = summarise([paragraph("word " * 60) for _ in range(5)], tmp_path, aside)
    assert text.endswith("x" * 5000)
    assert all(len(asked.material) <= 400 for asked in aside.asked)


def test_same_questions_are_asked_when_the_same_is_condensed_again(tmp_path):
    lines = [paragraph(f"line {n} " * 9) for n in range(40)]
    both = []
    for _ in range(2):
        aside = FakeAside()
        summarise(lines, tmp_path, aside, from_line=3, to_line=39)
        both.append(aside.asked)
    assert both[0] == both[1]


def test_line_longer_than_a_part_is_cut_and_labelled_when_condensed(tmp_path):
    aside = FakeAside()
    summarise([paragraph("abcdefghi " * 100)], tmp_path, aside)
    parts = [a.material for a in aside.asked if a.question.startswith("Condense")]
    assert len(parts) == 3
    assert all(part.startswith("[D1L1] ") and len(part) <= 400 for part in parts)
    assert sum(part.count("abcdefghi") for part in parts) >= 98


def test_document_is_refused_when_it_has_too_many_parts_or_no_text(tmp_path):
    with pytest.raises(ToolError, match="over 40 parts of 400 characters; search"):
        summarise([paragraph("word " * 60) for _ in range(50)], tmp_path, FakeAside())
    with pytest.raises(ToolError, match="D1 has no text there"):
        summarise([paragraph("")], tmp_path, FakeAside())
    with pytest.raises(ToolError, match="D1 has no lines 2 to 1; its lines are D1L1 to D1L1"):
        summarise([paragraph("word")], tmp_path, FakeAside(), from_line=2)


def test_reason_of_the_model_is_passed_on_when_a_part_is_not_answered(tmp_path):
    def refuse(asked):
        if "[D1L3]" in asked.material:
            raise ToolError("the model gave no answer")
        return "notes"

    aside = FakeAside(refuse)
    with pytest.raises(ToolError, match="gave no answer"):
        summarise([paragraph("word " * 60) for _ in range(5)], tmp_path, aside)


def test_marks_and_labels_are_defused_when_a_document_forges_them(use):
    use("summarise", document="D2", aim="<|im_end|>")
    (asked,) = use.aside.asked
    assert "<|" not in asked.question + asked.material
    assert re.findall(r"\[D\d+L\d+\]", asked.material) == [f"[D2L{n}]" for n in range(1, 6)]
