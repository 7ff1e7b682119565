"""Quotes that are checked before they are cited."""

import pytest

from engine.tool import ToolError
from tools.labels import find_lines


def cite(use, lines, quote, claim="The crane stopped."):
    return use("cite", claim=claim, lines=lines, quote=quote)


def test_label_and_place_come_back_when_the_quote_stands_there(use):
    text = cite(use, ["D3L2"], "“crane stopped at noon”")
    assert text.startswith(
        "VERIFIED [D3L2]: the quote stands in reports/board.pdf (D3), page 1.\n"
        "[D3L2] The crane stopped at noon on 12 March."
    )
    assert "Note" not in text


def test_label_in_front_does_not_count_when_a_model_copies_it_too(use):
    assert cite(use, ["[D3L2]"], "[D3L2] The crane stopped").startswith("VERIFIED [D3L2]")


def test_quote_may_run_over_lines_when_they_are_neighbours(use):
    text = cite(use, ["D3L3-L4"], "in the second motor. Repairs cost 4300 euro")
    assert text.startswith(
        "VERIFIED [D3L3-L4]: the quote stands in reports/board.pdf (D3), page 2."
    )


def test_right_label_is_told_when_the_quote_stands_elsewhere(use):
    text = cite(use, ["D6L2"], "Ship 27")
    assert text.startswith("VERIFIED [D6L60]")
    assert "cite this label instead" in text
    assert "Ships!A28:C28" in text


def test_lines_are_shown_as_they_are_when_the_quote_does_not_stand(use):
    text = cite(use, ["D3L2", "D3L4"], "The crane stopped at midnight")
    assert text.startswith("NOT VERIFIED")
    assert text.endswith(
        "[D3L2] The crane stopped at noon on 12 March.\n[D3L4] Repairs cost 4,300 euro."
    )


@pytest.mark.attack("marks and labels that a text forges")
def test_forged_line_does_not_verify_when_it_names_another_document(use):
    assert cite(use, ["D3L4"], "The dues are 900 euro a day").startswith("NOT VERIFIED")
    with pytest.raises(ToolError, match="there is no document D9; documents are D1 to D6"):
        cite(use, ["D9L1"], "The dues are 900 euro a day")


def test_numbers_are_named_when_the_claim_has_some_that_the_lines_lack(use):
    text = cite(use, ["D3L4"], "Repairs cost 4,300 euro", claim="They cost 4300 or 5,300 [D3L4].")
    assert text.startswith("VERIFIED [D3L4]")
    assert "the claim says 5,300, which the lines do not" in text


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("D3L6", "D3 has no line 6; its lines are D3L1 to D3L5"),
        ("D3L0", "D3 has no line 0"),
        ("D3L2-L9", "D3 has no line 9"),
        ("D3L4-L2", "must be a range of 1 to 40 lines"),
        ("D6L1-L60", "must be a range of 1 to 40 lines"),
        ("D3L1-D4L2", "runs over two documents"),
        ("L4", "'L4' is no label of a line; they look like D3L120"),
        ("D3", "is no label of a line"),
        ("../D3L1", "is no label of a line"),
    ],
)
def test_reason_is_told_when_a_label_is_wrong(label, said, use):
    with pytest.raises(ToolError, match=said):
        cite(use, [label], "crane")


def test_quote_without_words_is_refused_when_checked(use):
    with pytest.raises(ToolError, match="no words"):
        cite(use, ["D3L2"], "[D3L2] …")


def test_lines_are_found_when_a_model_writes_labels_its_own_way(corpus):
    for label in ("D3L2", " [D3L2] ", "d3l2", "D3 L2"):
        assert [place.label for place in find_lines(corpus, label, most=4)] == ["D3L2"]
    for label in ("D3L2-4", "D3L2-L4", "D3L2-D3L4", "[D3L2–D3L4]"):
        assert len(find_lines(corpus, label, most=4)) == 3
